//! Invites and sign-up, over the real API. Each refusal is held to its words.

use crate::support::MACHINES;
use crate::support::people::{People, ask, key, launch, refused};
use http::Method;
use mashines_fleet::api;
use mashines_fleet::record::Role;
use mashines_fleet::rpc::{Client, RpcError};
use serde_json::{Value, json};

/// An invite that does not let `client` in, and why.
async fn not_accepted(client: &Client, made: &api::InviteMade, status: u16, why: &str) {
    refused(client, Method::POST, "/v1/invites/accept", json!({"invite": made.code}), status, why).await;
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
    not_accepted(&people.of("ann"), &made, 409, "own").await;

    // Of many who come with one use, one gets it.
    let accept = |client: Client| {
        let body = json!({"invite": made.code});
        async move { client.post::<_, api::Accepted>("/v1/invites/accept", &body).await }
    };
    let outcomes =
        futures_util::future::join_all(["bob", "cem", "team"].map(|who| accept(people.of(who)))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    not_accepted(&people.of("cem"), &made, 404, "used up or withdrawn").await;
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
    not_accepted(&people.of("cem"), &by_bob, 403, "no admin any more").await;
    // Withdrawn, expired, for newcomers, wrong.
    let team = people.of("team");
    refused(&team, Method::DELETE, "/v1/account/invites/zz", Value::Null, 404, "has no invite \"zz\"").await;
    ask(&team, Method::DELETE, &format!("{invites}/{}", made.invite.id), Value::Null).await.unwrap();
    not_accepted(&people.of("cem"), &made, 404, "withdrawn").await;
    let short: api::InviteMade =
        team.post(invites, &json!({"to": "account", "role": "viewer", "valid": 1})).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    not_accepted(&people.of("cem"), &short, 403, "has expired").await;
    let fleet: api::InviteMade = ann.post(invites, &json!({"to": "fleet"})).await.unwrap();
    not_accepted(&bob, &fleet, 409, "you have one: bob").await;
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
