//! Keys, certificate authorities and tokens, over the real API; tokens are signed by the real `ssh-keygen`.

use crate::support::MACHINES;
use crate::support::people::{People, ask, key, launch, refused};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use mashines_fleet::access::Standing;
use mashines_fleet::api;
use mashines_fleet::record::Role;
use serde_json::{Value, json};

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
    refused(&of_team, Method::GET, "/v1/hosts", Value::Null, 403, "account team may not see hosts").await;
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
    let page = include_str!("../../../docs/access.md");
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
