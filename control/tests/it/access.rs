//! Who may what, over the real API: roles and shares. Each refusal is held to its words.

use crate::support::people::{People, ask, key, launch, refused};
use crate::support::{MACHINES, eventually};
use http::{HeaderName, HeaderValue, Method};
use mashines_fleet::access::Standing;
use mashines_fleet::api;
use mashines_fleet::record::Role;
use serde_json::{Value, json};

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
    // Whoever came with a part of what their account may does not decide for it.
    let lesser = people.client("bob", &[(api::ROLE_HEADER, "operator"), (api::ACT_FOR_HEADER, "team")]);
    refused(&lesser, Method::DELETE, "/v1/account/members/bob", Value::Null, 403, "may not remove members")
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
