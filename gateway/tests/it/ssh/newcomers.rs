//! People whose key nobody knows, and how they come to an account: OpenSSH's client, its questions answered by `SSH_ASKPASS`.

use std::sync::{Arc, Mutex, OnceLock};

use crate::common::{Output, Stage, account, finish, fleet_config};
use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use mashines_fleet::view::Change;
use serde_json::{Value, json};
use tokio::process::Command;

fn policy(sign_up: &str) -> Change {
    let mut config = fleet_config();
    config.value.as_mut().unwrap()["sign_up"] = json!(sign_up);
    config
}

/// A stranger comes to the lobby and gives those answers.
async fn come(stage: &Stage, answers: &[&str]) -> Output {
    let (script, asked) = (stage.path("askpass"), stage.path("asked"));
    let lines: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
    std::fs::write(stage.path("answers"), lines).unwrap();
    // Each question takes the next answer.
    let text = format!(
        "#!/bin/sh\necho \"$1\" >> {asked}\nhead -n 1 {answers}\nsed -i 1d {answers}\n",
        asked = asked.display(),
        answers = stage.path("answers").display(),
    );
    std::fs::write(&script, text).unwrap();
    crate::common::run("chmod", &["755", script.to_str().unwrap()]);
    let mut ssh = Command::new("ssh");
    ssh.args(
        stage.options("stranger").into_iter().map(|option| option.replace("LogLevel=ERROR", "LogLevel=INFO")),
    );
    ssh.args([
        "-o",
        "NumberOfPasswordPrompts=3",
        "-p",
        &stage.gateway.port().to_string(),
        "127.0.0.1",
        "whoami",
    ]);
    ssh.env("SSH_ASKPASS", script).env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", "none");
    finish(ssh, b"").await
}

/// Control that makes accounts, and refuses the name `taken`.
async fn stage(asked: Arc<Mutex<Vec<Value>>>) -> Arc<Stage> {
    let published: Arc<OnceLock<Arc<Stage>>> = Arc::default();
    let own = Arc::clone(&published);
    let stage = Stage::with_control(move |directory| {
        let sign_up = post(move |Json(body): Json<Value>| async move {
            asked.lock().unwrap().push(body.clone());
            if body["name"] == "taken" {
                let why = json!({"error": "the name taken is taken", "code": "conflict"});
                return (StatusCode::CONFLICT, Json(why)).into_response();
            }
            let stage = own.get().unwrap();
            let new =
                account(body["name"].as_str().unwrap(), &[body["public_key"].as_str().unwrap().to_owned()]);
            stage.publish_more(|_| (), vec![policy("open"), new]);
            Json(json!({"id": body["name"]})).into_response()
        });
        let whoami = get(|headers: axum::http::HeaderMap| async move {
            headers["x-mashines-account"].to_str().unwrap().to_owned()
        });
        crate::common::certificates(directory)
            .route("/internal/v1/sign-up", sign_up)
            .route("/v1/account", whoami)
    })
    .await;
    let stage = Arc::new(stage);
    assert!(published.set(Arc::clone(&stage)).is_ok());
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn first_contact_of_an_unknown_key_makes_an_account_where_that_is_open() {
    let asked = Arc::default();
    let stage = stage(Arc::clone(&asked)).await;
    stage.publish_more(|_| (), vec![policy("open")]);
    let output = come(&stage, &["dora"]).await;
    // Signed up, let in, and in the lobby as dora: the test's control knows no more than her name.
    assert!(!output.err.contains("Permission denied"), "{output:?}");
    let sent = asked.lock().unwrap().clone();
    assert_eq!((sent.len(), &sent[0]["name"], &sent[0]["source"]), (1, &json!("dora"), &json!("127.0.0.1")));
    assert!(stage.public_key("stranger").starts_with(sent[0]["public_key"].as_str().unwrap()));
    assert!(std::fs::read_to_string(stage.path("asked")).unwrap().contains("Name of your account"));
    // The next time there is nothing to ask.
    std::fs::remove_file(stage.path("asked")).unwrap();
    come(&stage, &["other"]).await;
    assert!(!stage.path("asked").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_sign_up_says_why_and_an_invite_is_passed_on() {
    let asked = Arc::default();
    let stage = stage(Arc::clone(&asked)).await;
    stage.publish_more(|_| (), vec![policy("invite")]);
    let output = come(&stage, &["taken", "inv_123"]).await;
    assert_eq!(output.code, Some(255));
    assert!(
        output.err.contains("The name taken is taken") || output.err.contains("the name taken is taken"),
        "{output:?}"
    );
    assert_eq!(asked.lock().unwrap()[0]["invite"], json!("inv_123"));
    // Who gives no name leaves without one.
    let output = come(&stage, &["", ""]).await;
    assert_eq!((output.code, asked.lock().unwrap().len()), (Some(255), 1), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_fleet_asks_nothing() {
    let asked = Arc::default();
    let stage = stage(Arc::clone(&asked)).await;
    let output = come(&stage, &["dora"]).await;
    assert!(output.err.contains("is in no account: SHA256:"), "{output:?}");
    assert!(!stage.path("asked").exists() && asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_many_keys_comes_to_the_known_one_without_a_question() {
    let asked = Arc::default();
    let stage = stage(Arc::clone(&asked)).await;
    stage.publish_more(|_| (), vec![policy("open")]);
    let mut options = stage.options("stranger");
    for number in 0..5 {
        let key = stage.path(&format!("other{number}"));
        crate::common::run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key.to_str().unwrap()],
        );
        options.extend(["-i".to_owned(), key.display().to_string()]);
    }
    for strangers in [1, 2, 3, 6] {
        let mut ssh = Command::new("ssh");
        ssh.args(&options[..options.len() - 2 * (6 - strangers)]);
        ssh.args(["-i", stage.path("ann").to_str().unwrap(), "-p", &stage.gateway.port().to_string()]);
        ssh.args(["web@127.0.0.1", "echo in"])
            .env("SSH_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS_REQUIRE", "force");
        let output = finish(ssh, b"").await;
        assert_eq!(output.text(), "in\n", "behind {strangers} unknown keys: {output:?}");
    }
    assert!(asked.lock().unwrap().is_empty());
}
