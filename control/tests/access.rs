//! Who may what, over the real API: roles, shares, invites, sign-up, signed tokens. Each refusal is held to its words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use mashines_fleet::access::Standing;
use mashines_fleet::api;
use mashines_fleet::pki::{Identity, PeerName, anonymous_client_config};
use mashines_fleet::record::{HostRole, Role};
use mashines_fleet::rpc::{Client, RpcError};
use serde_json::{Value, json};
use support::{Fleet, MACHINES, eventually};

/// A key's line, from a number.
fn key(n: u8) -> String {
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::private::Ed25519Keypair;
    PrivateKey::from(Ed25519Keypair::from_seed(&[n; 32])).public_key().to_openssh().unwrap()
}

struct People {
    fleet: Fleet,
    entry: Identity,
    /// Of a host that is no entry.
    host: Identity,
}

impl People {
    /// ann, the fleet's administrator, and by sign-up bob, cem and team.
    async fn up(hosts: &[&str]) -> Self {
        let mut fleet = Fleet::up(hosts).await;
        let entry = fleet.join("entry160", vec![HostRole::Entry]).await;
        let host = fleet.join("hostz", vec![HostRole::Host]).await;
        let people = Self { fleet, entry, host };
        people.policy("open").await;
        for (n, name) in ["bob", "cem", "team"].into_iter().enumerate() {
            let key = key(u8::try_from(n).unwrap());
            let body = json!({"public_key": key, "name": name, "source": format!("192.0.2.{n}")});
            people.entry_post::<api::SignedUp>("/internal/v1/sign-up", body).await.unwrap();
        }
        people
    }

    async fn policy(&self, policy: &str) {
        self.fleet.post::<api::SignUpPolicy>("/v1/fleet/sign-up", json!({"sign_up": policy})).await.unwrap();
    }

    async fn entry_post<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: Value,
    ) -> Result<T, RpcError> {
        Client::to_control(&self.entry, &self.fleet.url).unwrap().post(path, &body).await
    }

    /// As the lobby calls for `me`, with further headers.
    fn client(&self, me: &str, headers: &[(&'static str, &str)]) -> Client {
        let all =
            std::iter::once(&(api::ACCOUNT_HEADER, me)).chain(headers.iter()).copied().collect::<Vec<_>>();
        let client = Client::to_control(&self.entry, &self.fleet.url).unwrap();
        all.into_iter().fold(client, |client, (name, value)| {
            client.with_header(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        })
    }

    fn of(&self, me: &str) -> Client {
        self.client(me, &[])
    }

    fn acting(&self, me: &str, account: &str) -> Client {
        self.client(me, &[(api::ACT_FOR_HEADER, account)])
    }

    fn bearer(&self, token: &str) -> Client {
        let tls = anonymous_client_config(self.fleet.identity.ca_pem()).unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        Client::new(tls, &self.fleet.url, PeerName::control().server_name().unwrap())
            .with_header(AUTHORIZATION, bearer)
    }

    async fn member(&self, account: &str, member: &str, role: &str) {
        let body = json!({"account": member, "role": role});
        self.of(account).post::<_, Value>("/v1/account/members", &body).await.unwrap();
    }
}

async fn ask(client: &Client, method: Method, path: &str, body: Value) -> Result<Value, RpcError> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(method, path, &[], body.into()).await?;
    Ok(serde_json::from_slice(answer.body()).unwrap_or(Value::Null))
}

/// The call is refused with that status and these words.
async fn refused(client: &Client, method: Method, path: &str, body: Value, status: u16, says: &str) {
    let error = ask(client, method.clone(), path, body).await.err();
    let error = error.unwrap_or_else(|| panic!("{method} {path} was not refused"));
    let here = format!("{method} {path}: {error}");
    assert_eq!(error.status().map(|status| status.as_u16()), Some(status), "{here}");
    assert!(error.message().contains(says), "{here}");
}

fn launch(name: &str) -> Value {
    json!({"name": name, "config": {"image": "container-os", "guest": {"memory_mb": 256}, "env": {"SECRET": "s3"}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_what_it_may_and_is_told_who_may_more() {
    let people = People::up(&["hosta"]).await;
    let team = people.acting("team", "team");
    team.post::<_, api::Machine>(MACHINES, &launch("web")).await.unwrap();
    let stranger = people.acting("bob", "team");
    refused(&stranger, Method::GET, "/v1/machines", Value::Null, 403, "bob is no member of account team")
        .await;
    refused(
        &people.acting("bob", "nowhere"),
        Method::GET,
        "/v1/machines",
        Value::Null,
        403,
        "bob is no member of account nowhere",
    )
    .await;
    refused(
        &people.acting("bob", "No Where"),
        Method::GET,
        "/v1/machines",
        Value::Null,
        400,
        "mashines-act-for",
    )
    .await;

    people.member("team", "bob", "viewer").await;
    let bob = people.acting("bob", "team");
    let who: api::WhoAmI = bob.get("/v1/whoami").await.unwrap();
    assert_eq!((who.me.as_str(), who.account.as_str(), who.standing), ("bob", "team", Role::Viewer.into()));
    assert_eq!(who.acts_for, [api::Member { account: "team".parse().unwrap(), role: Role::Viewer }]);
    for path in [
        "/v1/machines",
        "/v1/machines/web",
        "/v1/volumes",
        "/v1/account/members",
        "/v1/account/keys",
        "/v1/usage",
    ] {
        ask(&bob, Method::GET, path, Value::Null).await.unwrap();
    }
    let web = format!("{MACHINES}/web");
    let operator = "operators, admins and the owner may";
    for (action, what) in [
        ("start", "start"),
        ("stop", "stop"),
        ("restart", "restart"),
        ("migrate", "move"),
        ("lease", "lease"),
    ] {
        let path = format!("{web}/{action}");
        refused(
            &bob,
            Method::POST,
            &path,
            Value::Null,
            403,
            &format!("bob is viewer here and may not {what} machine web: {operator}"),
        )
        .await;
    }
    let exec = json!({"cmd": "true"});
    refused(&bob, Method::POST, &format!("{web}/exec"), exec, 403, "may not run commands in machine web")
        .await;

    people.member("team", "bob", "operator").await;
    ask(&bob, Method::POST, &format!("{web}/stop"), json!({"timeout": 1})).await.unwrap();
    let admin = "admins and the owner may";
    for (method, path, body, what) in [
        (Method::POST, MACHINES, launch("two"), "make machines in account team"),
        (Method::POST, web.as_str(), json!({"config": {"image": "container-os"}}), "change machine web"),
        (Method::DELETE, web.as_str(), Value::Null, "remove machine web"),
        (Method::PUT, "/v1/apps/default/machines/web/metadata", json!({}), "change machine web"),
        (Method::POST, "/v1/apps", json!({"name": "shop"}), "make apps"),
        (Method::DELETE, "/v1/apps/shop", Value::Null, "remove apps"),
        (Method::POST, "/v1/apps/default/volumes", json!({"name": "v"}), "make volumes"),
        (Method::DELETE, "/v1/apps/default/volumes/v", Value::Null, "remove volumes"),
        (Method::PUT, "/v1/apps/default/volumes/v/extend", json!({"size_gb": 9}), "extend volumes"),
        (
            Method::POST,
            "/v1/account/members",
            json!({"account": "cem", "role": "viewer"}),
            "make members viewer",
        ),
        (
            Method::POST,
            "/v1/account/cas",
            json!({"public_key": key(9), "role": "viewer"}),
            "trust certificate authorities",
        ),
        (
            Method::POST,
            "/v1/account/invites",
            json!({"to": "account", "role": "viewer"}),
            "invite members as viewer",
        ),
        (Method::GET, "/v1/account/invites", Value::Null, "see the invites"),
        (Method::GET, "/v1/account/tokens", Value::Null, "see the tokens"),
        (Method::POST, "/v1/invites/accept", json!({"invite": "x"}), "use invites"),
        (
            Method::POST,
            "/v1/apps/default/machines/web/shares",
            json!({"account": "cem", "role": "viewer"}),
            "share machine web",
        ),
    ] {
        refused(&bob, method.clone(), path, body.clone(), 403, &format!("may not {what}")).await;
        refused(&bob, method, path, body, 403, admin).await;
    }

    people.member("team", "bob", "admin").await;
    bob.post::<_, api::Machine>(MACHINES, &launch("two")).await.unwrap();
    for (method, path, body) in [
        (Method::POST, "/v1/account/keys", json!({"public_key": key(9)})),
        (Method::DELETE, "/v1/account/keys/x", Value::Null),
        (Method::DELETE, "/v1/account/tokens/x", Value::Null),
        (Method::POST, "/v1/account/tokens/revoke", json!({"nonce": "abcdefgh"})),
        (Method::POST, "/v1/account/members", json!({"account": "cem", "role": "admin"})),
        (Method::POST, "/v1/account/cas", json!({"public_key": key(9), "role": "admin"})),
        (Method::POST, "/v1/account/invites", json!({"to": "account", "role": "admin"})),
    ] {
        refused(&bob, method, path, body, 403, ": the owner may").await;
    }
    people.member("team", "cem", "admin").await;
    refused(
        &bob,
        Method::DELETE,
        "/v1/account/members/cem",
        Value::Null,
        403,
        "remove members that are admin",
    )
    .await;
    refused(
        &bob,
        Method::POST,
        "/v1/account/members",
        json!({"account": "cem", "role": "viewer"}),
        403,
        "change what an admin is",
    )
    .await;
    refused(&bob, Method::DELETE, "/v1/account/members/cmm", Value::Null, 404, "did you mean cem?").await;
    refused(
        &bob,
        Method::POST,
        "/v1/account/members",
        json!({"account": "zed", "role": "viewer"}),
        404,
        "no account zed",
    )
    .await;
    refused(
        &bob,
        Method::POST,
        "/v1/account/members",
        json!({"account": "team", "role": "viewer"}),
        409,
        "owns itself",
    )
    .await;
    // Whoever wants to leave may, and is out at once.
    ask(&bob, Method::DELETE, "/v1/account/members/bob", Value::Null).await.unwrap();
    refused(&bob, Method::GET, "/v1/machines", Value::Null, 403, "no member").await;
    // A name that is not in the account at hand, but in one that they act for, is told.
    refused(
        &people.of("cem"),
        Method::GET,
        "/v1/machines/web",
        Value::Null,
        404,
        "it is account team's: `--account team`",
    )
    .await;
    refused(
        &people.of("bob"),
        Method::GET,
        "/v1/machines/web",
        Value::Null,
        404,
        "there is no machine \"web\"",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entrys_role_header_only_lowers() {
    let people = People::up(&[]).await;
    people.member("team", "bob", "operator").await;
    let standing = |me: &'static str, role: &'static str, account: &'static str| {
        let client = people.client(me, &[(api::ROLE_HEADER, role), (api::ACT_FOR_HEADER, account)]);
        async move { client.get::<api::WhoAmI>("/v1/whoami").await.unwrap().standing }
    };
    assert_eq!(standing("bob", "viewer", "bob").await, Role::Viewer.into());
    assert_eq!(standing("bob", "admin", "team").await, Role::Operator.into());
    assert_eq!(standing("bob", "viewer", "team").await, Role::Viewer.into());
    let bad = people.client("bob", &[(api::ROLE_HEADER, "root")]);
    refused(&bad, Method::GET, "/v1/whoami", Value::Null, 400, "is no role").await;
    // The administrators' account lends its power only to those who are admins in it.
    people
        .of("ann")
        .post::<_, Value>("/v1/account/members", &json!({"account": "bob", "role": "viewer"}))
        .await
        .unwrap();
    let bob = people.acting("bob", "ann");
    ask(&bob, Method::GET, "/v1/hosts", Value::Null).await.unwrap();
    refused(&bob, Method::POST, "/v1/hosts/entry160/cordon", Value::Null, 403, "may not cordon hosts").await;
    refused(&people.of("bob"), Method::GET, "/v1/hosts", Value::Null, 403, "administrators may").await;
    refused(
        &people.of("bob"),
        Method::POST,
        "/v1/fleet/sign-up",
        json!({"sign_up": "open"}),
        403,
        "administrators may",
    )
    .await;
    // A person with a token cannot lower or raise anything by the entries' headers, nor be another.
    let token = people
        .bearer(&people.fleet.token)
        .with_header(HeaderName::from_static(api::ACCOUNT_HEADER), HeaderValue::from_static("bob"));
    let who: api::WhoAmI = token.get("/v1/whoami").await.unwrap();
    assert_eq!((who.me.as_str(), who.standing), ("ann", Standing::Owner));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_machine_is_seen_and_operated_and_never_changed() {
    let people = People::up(&["hosta"]).await;
    let ann = people.of("ann");
    ann.post::<_, api::Machine>(MACHINES, &launch("web")).await.unwrap();
    people.fleet.wait("web", "started").await;
    let (bob, shares, web) = (people.of("bob"), format!("{MACHINES}/web/shares"), format!("{MACHINES}/web"));
    refused(&bob, Method::GET, "/v1/machines/web", Value::Null, 404, "no machine").await;
    ann.post::<_, Value>(&shares, &json!({"account": "bob", "role": "viewer"})).await.unwrap();
    let seen: Vec<api::Machine> = bob.get("/v1/machines").await.unwrap();
    assert_eq!((seen[0].slug.as_str(), seen[0].account.as_str()), ("web", "ann"));
    assert_eq!(seen[0].shared.as_ref().unwrap().role, Role::Viewer);
    assert!(seen[0].config.env.is_empty(), "a viewer by a share does not see secrets");
    let own: Vec<api::Machine> = bob.get(MACHINES).await.unwrap();
    assert!(own.is_empty(), "an app lists its own");
    assert!(ann.get::<api::Machine>("/v1/machines/web").await.unwrap().shared.is_none());
    refused(
        &bob,
        Method::POST,
        &format!("{web}/stop"),
        Value::Null,
        403,
        "bob is viewer here and may not stop machine web",
    )
    .await;

    let answer = ann
        .post::<_, Vec<api::Share>>(&shares, &json!({"account": "bob", "role": "operator", "ttl": 3600}))
        .await
        .unwrap();
    assert!(answer[0].expires_at.is_some() && answer.len() == 1);
    let usage: Vec<api::Usage> = bob.get("/v1/usage").await.unwrap();
    assert_eq!(usage[0].slug.as_str(), "web");
    ask(&bob, Method::POST, &format!("{web}/stop"), json!({"timeout": 1})).await.unwrap();
    people.fleet.wait("web", "stopped").await;
    ask(&bob, Method::POST, &format!("{web}/start"), Value::Null).await.unwrap();
    for (method, path, what) in [
        (Method::DELETE, web.clone(), "remove"),
        (Method::DELETE, format!("{web}?force=true"), "remove"),
        (Method::PUT, format!("{web}/metadata"), "change"),
        (Method::POST, format!("{web}/lease"), "lease"),
        (Method::DELETE, format!("{shares}/cem"), "unshare"),
    ] {
        let says = format!("bob is operator here and may not {what} machine web");
        refused(&bob, method, &path, json!({}), 403, &says).await;
    }
    refused(
        &bob,
        Method::POST,
        &web,
        json!({"config": {"image": "container-os"}}),
        403,
        "may not change machine web",
    )
    .await;
    refused(
        &bob,
        Method::POST,
        &shares,
        json!({"account": "cem", "role": "viewer"}),
        403,
        "may not share machine web",
    )
    .await;
    refused(&ann, Method::POST, &shares, json!({"account": "bob", "role": "admin"}), 400, "makes no admin")
        .await;
    refused(&ann, Method::POST, &shares, json!({"account": "ann", "role": "viewer"}), 409, "own").await;
    refused(
        &ann,
        Method::POST,
        &shares,
        json!({"account": "nobody", "role": "viewer"}),
        404,
        "no account nobody",
    )
    .await;
    refused(&ann, Method::POST, &shares, json!({"account": "bob", "role": "viewer", "ttl": 0}), 400, "ttl 0")
        .await;
    refused(
        &ann,
        Method::DELETE,
        &format!("{shares}/bobb"),
        Value::Null,
        404,
        "not shared with \"bobb\"; did you mean bob?",
    )
    .await;

    // A member of bob's account has no more there than they have in it.
    people.member("bob", "cem", "viewer").await;
    let cem = people.acting("cem", "bob");
    refused(&cem, Method::POST, &format!("{web}/stop"), Value::Null, 403, "cem is viewer here").await;

    // An end that passes takes it all away.
    ann.post::<_, Value>(&shares, &json!({"account": "bob", "role": "operator", "ttl": 1})).await.unwrap();
    eventually("the share is over", || async { bob.get::<api::Machine>("/v1/machines/web").await.err() })
        .await;
    refused(&bob, Method::POST, &format!("{web}/stop"), Value::Null, 404, "no machine").await;
    // Whoever it is shared with may give it up.
    ann.post::<_, Value>(&shares, &json!({"account": "bob", "role": "operator"})).await.unwrap();
    ask(&bob, Method::DELETE, &format!("{shares}/bob"), Value::Null).await.unwrap();
    assert!(ann.get::<Vec<api::Share>>(&shares).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_good_once_for_what_it_says_and_its_secret_is_nowhere() {
    let people = People::up(&["hosta"]).await;
    let (ann, bob) = (people.of("ann"), people.of("bob"));
    ann.post::<_, api::Machine>(MACHINES, &launch("web")).await.unwrap();
    let invites = "/v1/account/invites";
    let made: api::InviteMade =
        ann.post(invites, &json!({"to": "machine", "machine": "web", "role": "operator"})).await.unwrap();
    let listed: Value = ann.get(invites).await.unwrap();
    assert_eq!(listed[0]["id"], made.invite.id);
    assert_eq!(listed[0]["gives"]["slug"], "web");
    assert!(!listed.to_string().contains(&made.code.0) && !format!("{made:?}").contains(&made.code.0));
    refused(&people.of("ann"), Method::POST, "/v1/invites/accept", json!({"invite": made.code}), 409, "own")
        .await;

    // Of many who come with one use, one gets it.
    let accept = |client: Client| {
        let body = json!({"invite": made.code});
        async move { client.post::<_, api::Accepted>("/v1/invites/accept", &body).await }
    };
    let outcomes =
        futures_util::future::join_all(["bob", "cem", "team"].map(|who| accept(people.of(who)))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    refused(
        &people.of("cem"),
        Method::POST,
        "/v1/invites/accept",
        json!({"invite": made.code}),
        404,
        "used up or withdrawn",
    )
    .await;
    assert_eq!(ann.get::<Value>(invites).await.unwrap(), json!([]));

    // For membership, by key; not twice, not less.
    let made: api::InviteMade =
        people.of("team").post(invites, &json!({"to": "account", "role": "admin", "uses": 3})).await.unwrap();
    let body = json!({"public_key": key(0), "invite": made.code});
    let accepted: api::Accepted =
        people.entry_post("/internal/v1/invites/accept", body.clone()).await.unwrap();
    assert_eq!(accepted.given, api::Given::Account { account: "team".parse().unwrap(), role: Role::Admin });
    let again = people.entry_post::<api::Accepted>("/internal/v1/invites/accept", body).await.unwrap_err();
    assert!(again.message().contains("bob is admin in account team already"), "{again}");
    let unknown = json!({"public_key": key(77), "invite": made.code});
    let unknown =
        people.entry_post::<api::Accepted>("/internal/v1/invites/accept", unknown).await.unwrap_err();
    assert!(unknown.message().contains("sign up with the invite"), "{unknown}");
    let wrong = people
        .entry_post::<api::Accepted>("/internal/v1/invites/accept", json!({"invite": "x"}))
        .await
        .unwrap_err();
    assert!(wrong.message().contains("only one"), "{wrong}");

    // One that an admin made is void once they are none.
    let by_bob: api::InviteMade = people
        .acting("bob", "team")
        .post(invites, &json!({"to": "account", "role": "viewer"}))
        .await
        .unwrap();
    people.member("team", "bob", "operator").await;
    refused(
        &people.of("cem"),
        Method::POST,
        "/v1/invites/accept",
        json!({"invite": by_bob.code}),
        403,
        "no admin any more",
    )
    .await;
    // Withdrawn, expired, for newcomers, wrong.
    let team = people.of("team");
    refused(&team, Method::DELETE, "/v1/account/invites/zz", Value::Null, 404, "has no invite \"zz\"").await;
    ask(&team, Method::DELETE, &format!("{invites}/{}", made.invite.id), Value::Null).await.unwrap();
    refused(
        &people.of("cem"),
        Method::POST,
        "/v1/invites/accept",
        json!({"invite": made.code}),
        404,
        "withdrawn",
    )
    .await;
    let short: api::InviteMade =
        team.post(invites, &json!({"to": "account", "role": "viewer", "valid": 1})).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    refused(
        &people.of("cem"),
        Method::POST,
        "/v1/invites/accept",
        json!({"invite": short.code}),
        403,
        "has expired",
    )
    .await;
    let fleet: api::InviteMade = ann.post(invites, &json!({"to": "fleet"})).await.unwrap();
    refused(
        &bob,
        Method::POST,
        "/v1/invites/accept",
        json!({"invite": fleet.code}),
        409,
        "you have one: bob",
    )
    .await;
    refused(&bob, Method::POST, invites, json!({"to": "fleet"}), 403, "administrators may").await;
    refused(
        &ann,
        Method::POST,
        invites,
        json!({"to": "machine", "machine": "web", "role": "admin"}),
        400,
        "not with admins",
    )
    .await;
    refused(&ann, Method::POST, invites, json!({"to": "fleet", "uses": 0}), 400, "uses 1 to").await;
    refused(
        &bob,
        Method::POST,
        invites,
        json!({"to": "machine", "machine": "nope", "role": "viewer"}),
        404,
        "no machine",
    )
    .await;
    // Not too many.
    for _ in 0..99 {
        ann.post::<_, api::InviteMade>(invites, &json!({"to": "fleet"})).await.unwrap();
    }
    refused(&ann, Method::POST, invites, json!({"to": "fleet"}), 409, "100 invites").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_are_taken_as_the_policy_says() {
    let people = People::up(&["hosta"]).await;
    let sign_up = |body: Value| people.entry_post::<api::SignedUp>("/internal/v1/sign-up", body);
    let says = |outcome: Result<api::SignedUp, RpcError>| outcome.unwrap_err().message().to_owned();
    // Open.
    assert!(says(sign_up(json!({"public_key": key(40)})).await).contains("source is missing"));
    assert!(says(sign_up(json!({"public_key": "x", "source": "::1"})).await).contains("no public key"));
    assert!(
        says(sign_up(json!({"public_key": key(0), "source": "::1"})).await)
            .contains("of account bob already")
    );
    assert!(
        says(sign_up(json!({"public_key": key(40), "name": "bob", "source": "::1"})).await)
            .contains("bob is taken")
    );
    assert!(
        says(sign_up(json!({"public_key": key(40), "name": "root", "source": "::1"})).await)
            .contains("platform's own")
    );
    let made = sign_up(json!({"public_key": key(40), "source": "::1"})).await.unwrap();
    let client = people.of(made.account.as_str());
    client.post::<_, api::Machine>(MACHINES, &launch("first")).await.unwrap();
    let account: api::Account = client.get("/v1/account").await.unwrap();
    assert!(!account.admin && account.ssh_keys == [key(40)]);
    for n in 41..45 {
        sign_up(json!({"public_key": key(n), "source": "::1"})).await.unwrap();
    }
    assert!(
        says(sign_up(json!({"public_key": key(50), "source": "::2"})).await)
            .contains("5 accounts were made from ::2 within an hour")
    );
    // One key is one account, however often it comes at once.
    let many =
        (0..6).map(|n| sign_up(json!({"public_key": key(60), "source": format!("192.0.2.{}", 10 + n)})));
    let outcomes = futures_util::future::join_all(many).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    // By invite: it also gives what it is for.
    people.policy("invite").await;
    assert!(
        says(sign_up(json!({"public_key": key(70), "source": "192.0.2.99"})).await).contains("by invite")
    );
    assert!(
        says(sign_up(json!({"public_key": key(70), "invite": "msi_0"})).await).contains("invite is unknown")
    );
    let team = people.of("team");
    let made: api::InviteMade =
        team.post("/v1/account/invites", &json!({"to": "account", "role": "operator"})).await.unwrap();
    let body = json!({"public_key": key(70), "name": "dora", "invite": made.code});
    let signed_up = sign_up(body.clone()).await.unwrap();
    assert_eq!(
        signed_up.given,
        Some(api::Given::Account { account: "team".parse().unwrap(), role: Role::Operator })
    );
    people.acting("dora", "team").get::<Vec<api::Machine>>("/v1/machines").await.unwrap();
    assert!(
        says(sign_up(json!({"public_key": key(71), "invite": made.code})).await)
            .contains("invite is unknown")
    );
    let fleet: api::InviteMade =
        people.of("ann").post("/v1/account/invites", &json!({"to": "fleet"})).await.unwrap();
    let plain = sign_up(json!({"public_key": key(72), "invite": fleet.code})).await.unwrap();
    assert_eq!(plain.given, Some(api::Given::Fleet));
    // Closed.
    people.policy("closed").await;
    assert!(
        says(sign_up(json!({"public_key": key(80), "source": "192.0.2.98"})).await)
            .contains("takes no newcomers")
    );
    // Only an entry may.
    let host = Client::to_control(&people.host, &people.fleet.url).unwrap();
    refused(&host, Method::POST, "/internal/v1/sign-up", json!({"public_key": key(81)}), 403, "is no entry")
        .await;
    refused(
        &people.bearer(&people.fleet.token),
        Method::POST,
        "/internal/v1/sign-up",
        json!({"public_key": key(81)}),
        401,
        "members of the fleet",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_authorities_and_tokens_are_listed_and_removed_and_the_last_key_is_asked_about() {
    let people = People::up(&[]).await;
    let bob = people.of("bob");
    let keys: Vec<api::SshKey> = bob.get("/v1/account/keys").await.unwrap();
    assert_eq!(
        (keys.len(), keys[0].algorithm.as_str(), keys[0].public_key.as_str()),
        (1, "ssh-ed25519", key(0).as_str())
    );
    let last = format!("/v1/account/keys/{}", keys[0].id);
    refused(&bob, Method::DELETE, &last, Value::Null, 409, "is the last of account bob").await;
    bob.post::<_, api::Account>("/v1/account/keys", &json!({"public_key": key(20)})).await.unwrap();
    ask(&bob, Method::DELETE, &last, Value::Null).await.unwrap();
    refused(&bob, Method::DELETE, &last, Value::Null, 404, "has no key").await;
    let keys: Vec<api::SshKey> = bob.get("/v1/account/keys").await.unwrap();
    ask(&bob, Method::DELETE, &format!("/v1/account/keys/{}?last=true", keys[0].id), Value::Null)
        .await
        .unwrap();

    let add =
        json!({"public_key": format!("{} ca@work", key(30)), "principals": ["dev"], "role": "operator"});
    let cas: Vec<api::SshCa> = bob.post("/v1/account/cas", &add).await.unwrap();
    assert_eq!((cas[0].role, cas[0].principals.as_slice()), (Role::Operator, &["dev".to_owned()][..]));
    let again = json!({"public_key": key(30), "role": "viewer"});
    let cas: Vec<api::SshCa> = bob.post("/v1/account/cas", &again).await.unwrap();
    assert_eq!((cas.len(), cas[0].role), (1, Role::Viewer));
    refused(
        &bob,
        Method::POST,
        "/v1/account/cas",
        json!({"public_key": key(30), "principals": ["a,b"], "role": "viewer"}),
        400,
        "without commas",
    )
    .await;
    refused(&bob, Method::DELETE, "/v1/account/cas/x", Value::Null, 404, "no certificate authority").await;
    let cas =
        ask(&bob, Method::DELETE, &format!("/v1/account/cas/{}", cas[0].key.id), Value::Null).await.unwrap();
    assert_eq!(cas, json!([]));

    let ann = people.bearer(&people.fleet.token);
    let tokens: Vec<api::Token> = ann.get("/v1/account/tokens").await.unwrap();
    assert!(tokens.len() == 1 && tokens[0].this && tokens[0].kind == api::TokenKind::Kept);
    refused(&ann, Method::DELETE, "/v1/account/tokens/zz", Value::Null, 404, "no token \"zz\"").await;
    ask(&ann, Method::DELETE, &format!("/v1/account/tokens/{}", tokens[0].id), Value::Null).await.unwrap();
    refused(&ann, Method::GET, "/v1/account", Value::Null, 401, "mistyped or revoked").await;
}

/// `ssh-keygen -Y sign` of this machine over the JSON; the token.
fn signed(directory: &std::path::Path, key: &str, claims: &Value) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut sign = Command::new("ssh-keygen")
        .env("SSH_SK_PROVIDER", FIDO)
        .args(["-Y", "sign", "-n", "api@mashine.test", "-f", key])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let json = claims.to_string();
    sign.stdin.take().unwrap().write_all(json.as_bytes()).unwrap();
    let armored = String::from_utf8(sign.wait_with_output().unwrap().stdout).unwrap();
    let body: String = armored.lines().filter(|line| !line.starts_with("-----")).collect();
    format!("mss_{}.{}", URL_SAFE_NO_PAD.encode(json), URL_SAFE_NO_PAD.encode(STANDARD.decode(body).unwrap()))
}

/// FIDO without hardware, of Debian's openssh-tests.
const FIDO: &str = "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so";

fn keygen(directory: &std::path::Path, kind: &str) -> String {
    let made = std::process::Command::new("ssh-keygen")
        .env("SSH_SK_PROVIDER", FIDO)
        .current_dir(directory)
        .args(["-q", "-N", "", "-t", kind, "-f", kind])
        .status();
    assert!(made.unwrap().success());
    std::fs::read_to_string(directory.join(format!("{kind}.pub"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_key_signed_is_good_while_the_key_is_in_the_account() {
    let people = People::up(&["hosta"]).await;
    let directory = tempfile::tempdir().unwrap();
    let (ann, home) = (people.of("ann"), directory.path());
    let exp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600;
    let claims = |account: &str, role: &str, nonce: &str| json!({"account": account, "exp": exp, "role": role, "nonce": nonce});
    for name in ["web", "db"] {
        ann.post::<_, api::Machine>(MACHINES, &launch(name)).await.unwrap();
    }
    let fido: &[&str] = if std::path::Path::new(FIDO).exists() { &["ed25519-sk", "ecdsa-sk"] } else { &[] };
    for kind in ["ed25519", "ecdsa", "rsa"].iter().chain(fido).copied() {
        let public = keygen(home, kind);
        let token = signed(home, kind, &claims("ann", "viewer", &format!("nonce-of-{kind}")));
        let client = people.bearer(&token);
        refused(&client, Method::GET, "/v1/account", Value::Null, 401, "its key is not in account ann").await;
        ann.post::<_, api::Account>("/v1/account/keys", &json!({"public_key": public})).await.unwrap();
        let who: api::WhoAmI = client.get("/v1/whoami").await.unwrap();
        assert_eq!((who.me.as_str(), who.standing, who.admin), ("ann", Role::Viewer.into(), true), "{kind}");
        refused(
            &client,
            Method::POST,
            &format!("{MACHINES}/web/stop"),
            Value::Null,
            403,
            "ann is viewer here",
        )
        .await;
        refused(&client, Method::POST, "/v1/hosts/hosta/cordon", Value::Null, 403, "may not cordon").await;
        // Revoked by its nonce, and only it.
        ann.post::<_, Value>("/v1/account/tokens/revoke", &json!({"token": token})).await.unwrap();
        refused(&client, Method::GET, "/v1/account", Value::Null, 401, "it was revoked").await;
        let other = people.bearer(&signed(home, kind, &claims("ann", "owner", &format!("other-of-{kind}"))));
        assert_eq!(other.get::<api::WhoAmI>("/v1/whoami").await.unwrap().standing, Standing::Owner);
    }
    let tokens: Vec<api::Token> = ann.get("/v1/account/tokens").await.unwrap();
    assert_eq!(tokens.iter().filter(|token| token.kind == api::TokenKind::Revoked).count(), 3 + fido.len());

    // For some machines only.
    let mut only = claims("ann", "owner", "only-web-1");
    only["machines"] = json!(["web"]);
    let only = people.bearer(&signed(home, "ed25519", &only));
    let machines: Vec<api::Machine> = only.get("/v1/machines").await.unwrap();
    assert_eq!(machines.iter().map(|m| m.slug.as_str()).collect::<Vec<_>>(), ["web"]);
    refused(&only, Method::GET, "/v1/machines/db", Value::Null, 404, "no machine").await;
    refused(
        &only,
        Method::POST,
        MACHINES,
        launch("new"),
        403,
        "the token is for web only: it may not make machines",
    )
    .await;
    refused(&only, Method::GET, "/v1/volumes", Value::Null, 403, "for web only").await;
    refused(&only, Method::GET, "/v1/hosts", Value::Null, 403, "administrators may").await;
    ask(&only, Method::POST, &format!("{MACHINES}/web/stop"), Value::Null).await.unwrap();

    // For an account that the key's account is a member of, at most as that; and for that one alone.
    let of_team = people.bearer(&signed(home, "ed25519", &claims("team", "admin", "for-team-1")));
    refused(&of_team, Method::GET, "/v1/account", Value::Null, 401, "nor in a member of it").await;
    people.member("team", "ann", "operator").await;
    let who: api::WhoAmI = of_team.get("/v1/whoami").await.unwrap();
    assert_eq!((who.me.as_str(), who.account.as_str(), who.standing), ("ann", "team", Role::Operator.into()));
    let elsewhere =
        of_team.with_header(HeaderName::from_static(api::ACT_FOR_HEADER), HeaderValue::from_static("ann"));
    refused(&elsewhere, Method::GET, "/v1/account", Value::Null, 403, "for account team only").await;
    // ann may revoke it at home.
    ann.post::<_, Value>("/v1/account/tokens/revoke", &json!({"nonce": "for-team-1"})).await.unwrap();
    refused(&of_team, Method::GET, "/v1/account", Value::Null, 401, "revoked").await;

    // Without its key it is nothing.
    let last = people.bearer(&signed(home, "rsa", &claims("ann", "admin", "last-of-rsa")));
    last.get::<api::Account>("/v1/account").await.unwrap();
    let keys: Vec<api::SshKey> = ann.get("/v1/account/keys").await.unwrap();
    let rsa = keys.iter().find(|key| key.algorithm == "ssh-rsa").unwrap();
    ask(&ann, Method::DELETE, &format!("/v1/account/keys/{}", rsa.id), Value::Null).await.unwrap();
    refused(&last, Method::GET, "/v1/account", Value::Null, 401, "(any more)").await;
    refused(&people.bearer("mss_x"), Method::GET, "/v1/account", Value::Null, 401, "mashines tokens new")
        .await;
    let error =
        ask(&ann, Method::POST, "/v1/account/tokens/revoke", json!({"token": "msh_1"})).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_made_by_hand_as_the_documentation_says() {
    let people = People::up(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let public = keygen(directory.path(), "ed25519");
    people
        .of("ann")
        .post::<_, api::Account>("/v1/account/keys", &json!({"public_key": public}))
        .await
        .unwrap();
    let page = include_str!("../../docs/access.md");
    let recipe = page.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    let exp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600;
    let recipe = recipe.replace("1790000000", &exp.to_string()).replace("~/.ssh/id_ed25519", "ed25519");
    let recipe = recipe.replace("api@mashine.dev", "api@mashine.test");
    let made = std::process::Command::new("sh")
        .current_dir(directory.path())
        .args(["-ec", &recipe])
        .output()
        .unwrap();
    let token = String::from_utf8(made.stdout).unwrap();
    let who: api::WhoAmI = people.bearer(token.trim()).get("/v1/whoami").await.unwrap();
    assert_eq!((who.standing, who.token.unwrap().machines), (Role::Operator.into(), vec!["web".to_owned()]));
}
