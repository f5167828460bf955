//! `git@mashine.dev:web`: git's own client, and a script in the place of the machine's agent.

use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, OnceLock};

use crate::common::{Output, Stage, finish, machine};
use axum::Json;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::process::Command;

/// Serves a bare repository beside the script, and notes what it was asked.
const AGENT: &str = "
here=$(dirname \"$0\")
echo \"$*\" >> $here/asked
shift
service=$1; shift
while [ $# -gt 0 ]; do case $1 in --protocol) export GIT_PROTOCOL=$2;; esac; shift 2; done
[ -d $here/repo.git ] || git init -q --bare $here/repo.git
exec git $service $here/repo.git
";

async fn git(stage: &Stage, arguments: &[&str]) -> Output {
    let work = stage.path("work");
    std::fs::create_dir_all(&work).unwrap();
    let mut options = stage.options("ann");
    options.extend(["-p".to_owned(), stage.gateway.port().to_string()]);
    let mut git = Command::new("git");
    git.args(["-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main"]);
    git.args(arguments).current_dir(work).env("GIT_SSH_COMMAND", format!("ssh {}", options.join(" ")));
    finish(git, b"").await
}

async fn commit(stage: &Stage) {
    for arguments in [&["init", "-q"][..], &["commit", "-q", "--allow-empty", "-m", "first"]] {
        let output = git(stage, arguments).await;
        assert_eq!(output.code, Some(0), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_and_a_clone_reach_the_machines_repository() {
    let mut stage = Stage::new().await;
    stage.with_agent(AGENT).await;
    commit(&stage).await;
    let pushed = git(&stage, &["push", "git@127.0.0.1:web", "HEAD:refs/heads/main"]).await;
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    let cloned = git(&stage, &["clone", "-q", "git@127.0.0.1:/web.git", "copy"]).await;
    assert_eq!(cloned.code, Some(0), "{cloned:?}");
    let asked = std::fs::read_to_string(stage.path("asked")).unwrap();
    assert_eq!(asked.lines().next(), Some("git receive-pack --by ann"), "{asked}");
    assert_eq!(asked.lines().nth(1), Some("git upload-pack --protocol version=2"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_repository_and_a_missing_one_are_refused_in_words() {
    let mut stage = Stage::new().await;
    stage.with_agent(AGENT).await;
    for (path, why) in [
        ("git@127.0.0.1:theirs", "belongs to another account"),
        ("git@127.0.0.1:no-such", "there is no machine no-such; push to it"),
        ("git@127.0.0.1:a/b", "names none"),
    ] {
        let output = git(&stage, &["ls-remote", path]).await;
        assert!(output.code != Some(0) && output.err.contains(why), "{path}: {output:?}");
    }
    assert!(!stage.path("asked").exists(), "nothing was asked of any machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_push_makes_the_machine() {
    let made: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (noted, published) = (Arc::clone(&made), Arc::new(OnceLock::<Arc<Stage>>::new()));
    let own = Arc::clone(&published);
    let stage = Stage::with_control(move |directory| {
        let create = post(move |Json(body): Json<Value>| async move {
            noted.lock().unwrap().push(body);
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                let fresh = machine(9, "fresh", "ann", Ipv6Addr::LOCALHOST, "started");
                own.get().unwrap().publish_more(|_| (), vec![fresh]);
            });
            Json(json!({}))
        });
        crate::common::certificates(directory).route("/v1/apps/default/machines", create)
    })
    .await;
    let mut stage = stage;
    stage.with_agent(AGENT).await;
    let stage = Arc::new(stage);
    assert!(published.set(Arc::clone(&stage)).is_ok());
    commit(&stage).await;
    let pushed = git(&stage, &["push", "git@127.0.0.1:fresh", "HEAD:refs/heads/main"]).await;
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    assert!(pushed.err.contains("there is no machine fresh yet: it is being made"), "{pushed:?}");
    let made = made.lock().unwrap();
    assert_eq!(
        (made.len(), &made[0]["name"], &made[0]["config"]["image"]),
        (1, &json!("fresh"), &json!("container-os"))
    );
}
