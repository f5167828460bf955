//! What one account may have open and how fast, what is recorded, and how a gateway ends.

use std::num::NonZeroU64;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Stage, finish, free_port};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_a_number_of_sessions_and_is_told_when_they_are_used_up() {
    let stage = Stage::with(|config| config.account_limits.sessions = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut ssh = stage.ssh("ann", "web", "echo in; sleep 60");
        let mut child = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).await.unwrap();
        held.push(child);
    }
    let output = finish(stage.ssh("ann", "web", "echo in"), b"").await;
    assert_eq!(output.code, Some(255));
    assert!(output.err.contains("account ann has 2 sessions and forwarded connections open"), "{output:?}");
    drop(held);
    for _ in 0..50 {
        if finish(stage.ssh("ann", "web", "echo in"), b"").await.text() == "in\n" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("places are not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_its_bandwidth_and_nothing_is_lost_by_it() {
    let stage = Stage::with(|config| {
        config.account_limits.bytes_per_second = NonZeroU64::new(1_000_000);
    })
    .await;
    let begun = Instant::now();
    let output = finish(stage.ssh("ann", "web", "head -c 4000000 /dev/zero"), b"").await;
    assert_eq!(output.out.len(), 4_000_000);
    // The first second's worth goes at once.
    assert!(begun.elapsed() > Duration::from_millis(2500), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_sends_through_a_remote_forward_is_the_accounts_bandwidth_too() {
    let stage = Stage::with(|config| {
        config.account_limits.bytes_per_second = NonZeroU64::new(1_000_000);
    })
    .await;
    let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, there) = (here.local_addr().unwrap(), free_port());
    let counted = tokio::spawn(async move {
        let (mut stream, _) = here.accept().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        got.len()
    });
    let begun = Instant::now();
    let send = format!("exec bash -c 'head -c 3000000 /dev/zero >/dev/tcp/127.0.0.1/{there}'");
    let forward = format!("127.0.0.1:{there}:{at}");
    let mut ssh = stage.ssh_with("ann", "web", &["-o", "ExitOnForwardFailure=yes", "-R", &forward], &[&send]);
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The session ends once the machine has handed over its bytes; the forward goes on until they are here.
    let mut child = ssh.spawn().unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), counted).await.unwrap().unwrap(), 3_000_000);
    assert!(begun.elapsed() > Duration::from_millis(1700), "{:?}", begun.elapsed());
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_are_recorded_where_the_owner_wants_it_and_programs_never() {
    let stage = Stage::new().await;
    stage.publish_with(|machine| machine["config"]["record_sessions"] = json!(true));
    let copied = finish(stage.ssh("ann", "web", "cat"), b"a secret file").await;
    assert_eq!((copied.text().as_str(), copied.err.as_str()), ("a secret file", ""));
    let recordings = stage.path("gateway/recordings/web");
    assert!(!recordings.exists(), "a session without a terminal is no terminal's");
    let shown = finish(stage.ssh_with("ann", "web", &["-tt"], &["echo seen"]), b"").await;
    assert!(shown.text().contains("seen") && shown.err.contains("this session is recorded"), "{shown:?}");
    let file = std::fs::read_dir(&recordings).unwrap().next().unwrap().unwrap().path();
    for _ in 0..50 {
        let text = std::fs::read_to_string(&file).unwrap();
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if events.iter().skip(1).any(|event| event[2].as_str().is_some_and(|text| text.contains("seen"))) {
            assert_eq!(events[0]["version"], 2);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{}", std::fs::read_to_string(&file).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_lets_sessions_end_and_tells_those_that_do_not() {
    let stage = Stage::with(|config| config.drain_s = 4).await;
    let begin = |seconds: u32| {
        let mut ssh = stage.ssh("ann", "web", &format!("echo in; sleep {seconds}; echo out"));
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut short, mut long) = (begin(2), begin(60));
    for child in [&mut short, &mut long] {
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).await.unwrap();
    }
    stage.stop();
    let refused = finish(stage.ssh("ann", "web", "echo in"), b"").await;
    assert_eq!(refused.code, Some(255), "nobody new is let in: {refused:?}");
    let short = short.wait_with_output().await.unwrap();
    assert_eq!((short.status.code(), &short.stdout[..]), (Some(0), &b"out\n"[..]));
    let begun = Instant::now();
    let long = long.wait_with_output().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    let told = String::from_utf8_lossy(&long.stderr);
    assert!(told.contains("this gateway restarts; connect again"), "{told}");
}
