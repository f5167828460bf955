//! One channel that stalls stalls nobody else, and no order of events makes two sides wait for each other. Each test that names a bug
//! is one that another gateway had.

use std::process::Stdio;
use std::time::Duration;

use crate::common::clients::{Agent, Master, ask, hearer, hurried, noise, reach, stay, succeed, tool};
use crate::common::{Stage, finish, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

impl Master {
    /// Eight commands over it, which all answer.
    async fn is_alive(&self, stage: &Stage) {
        let all = (0..8).map(|n| {
            let line = format!("head -c 500000 /dev/zero | wc -c; echo {n}");
            let command = stage.ssh_with("ann", "web", &["-o", &self.option], &[&line]);
            async move { (n, succeed(command, b"").await.text()) }
        });
        for (n, text) in futures_util::future::join_all(all).await {
            assert_eq!(text, format!("500000\n{n}\n"));
        }
    }
}

/// Writes until nobody takes any more for a second; how much that was.
async fn fill(to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> usize {
    let chunk = vec![7; 1 << 16];
    let mut written = 0;
    while written < (64 << 20) {
        match tokio::time::timeout(Duration::from_secs(1), to.write(&chunk)).await {
            Ok(length) => written += length.unwrap(),
            Err(_full) => return written,
        }
    }
    panic!("64 MiB were taken though nobody reads them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_reads_nothing_holds_back_its_own_input_and_nothing_else() {
    let stage = Stage::with(hurried).await;
    let master = Master::open(&stage, &[]).await;
    let mut stalled = stay(stage.ssh_with("ann", "web", &["-o", &master.option], &["sleep 1000"]));
    let written = fill(stalled.stdin.as_mut().unwrap()).await;
    assert!(written < 24 << 20, "{written} bytes are kept somewhere");
    master.is_alive(&stage).await;
}

/// warpgate #2498.
#[tokio::test(flavor = "multi_thread")]
async fn a_forward_whose_target_never_answers_stalls_no_other_channel() {
    let stage = Stage::with(hurried).await;
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (local, port) = (free_port(), deaf.local_addr().unwrap().port());
    let forward = format!("{local}:localhost:{port}");
    let master = Master::open(&stage, &["-L", &forward]).await;
    let mut stalled = reach(local).await;
    let (held, _) = deaf.accept().await.unwrap();
    fill(&mut stalled).await;
    // And one that is not even confirmed: the target's queue is full.
    let _waiting = futures_util::future::join_all((0..8).map(|_| reach(local))).await;
    master.is_alive(&stage).await;
    drop(held);
}

/// Both directions of one channel, the client slower than the machine: its window news must not wait behind its own data.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slower_than_it_writes_gets_everything() {
    let stage = Stage::with(hurried).await;
    let data = noise(32 << 20);
    let mut cat = stay(stage.ssh("ann", "web", "cat"));
    let (mut to, mut from) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let sent = data.clone();
    let writing = tokio::spawn(async move { to.write_all(&sent).await.unwrap() });
    // Long enough for every buffer on the way to be full.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut back = Vec::new();
    let reading = from.read_to_end(&mut back);
    tokio::time::timeout(Duration::from_secs(40), reading).await.expect("both sides wait").unwrap();
    writing.await.unwrap();
    assert!(back == data);
}

/// warpgate #1459.
#[tokio::test(flavor = "multi_thread")]
async fn parallel_agent_channels_all_answer() {
    let stage = Stage::with(hurried).await;
    let agent = Agent::with(&stage, &[stage.path("bob")]).await;
    let mut options = stage.options("ann");
    options.retain(|option| option != "IdentityAgent=none");
    let at = options.iter().position(|option| option.starts_with("IdentityFile")).unwrap() - 1;
    options.insert(at, format!("IdentityAgent={}", agent.socket.display()));
    let mut ssh = tool("ssh", "openssh-client");
    let line = "for n in $(seq 24); do ssh-add -L > $0.$n & done; wait; cat $0.* | sort | uniq -c";
    let line = format!("sh -c '{line}' {}", stage.path("listed").display());
    ssh.args(&options).args(["-A", "-p", &stage.port(), "web@127.0.0.1", &line]);
    let output = succeed(ssh, b"").await;
    assert!(output.text().trim().starts_with("24 ssh-ed25519"), "{output:?}");
}

/// warpgate #2328: a server that speaks first does so before the client has confirmation of its channel.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_says_at_once_is_not_lost() {
    let stage = Stage::with(hurried).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _gone = stream.write_all(b"220 at once\r\n").await;
        }
    });
    let local = free_port();
    let forward = format!("{local}:localhost:{port}");
    let _master = Master::open(&stage, &["-L", &forward]).await;
    let greetings = (0..40).map(|_| async {
        let mut said = String::new();
        reach(local).await.read_to_string(&mut said).await.unwrap();
        said
    });
    for said in futures_util::future::join_all(greetings).await {
        assert_eq!(said, "220 at once\r\n");
    }
}

/// warpgate #2598: a machine that keeps many channels waiting, each of which sends already.
#[tokio::test(flavor = "multi_thread")]
async fn many_channels_that_wait_for_their_machine_lose_nothing() {
    let mut stage = Stage::with(hurried).await;
    let master = Master::open(&stage, &[]).await;
    stage.stop_sshd().await;
    // Who connects now is neither refused nor answered.
    let silent = TcpListener::bind(("::1", stage.machine_port)).await.unwrap();
    let data = noise(3 << 20);
    let running = (0..24).map(|_| {
        let command = stage.ssh_with("ann", "web", &["-o", &master.option], &["md5sum"]);
        tokio::spawn({
            let data = data.clone();
            async move { finish(command, &data).await }
        })
    });
    let running: Vec<_> = running.collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The lobby answers meanwhile, over another connection; the machine comes up.
    assert_eq!(finish(stage.ssh("ann", "lobby", "help"), b"").await.code, Some(0));
    drop(silent);
    stage.start_sshd().await;
    let (mut done, mut broke) = (Vec::new(), 0);
    for running in running {
        let output = running.await.unwrap();
        match output.code {
            Some(0) => done.push(output.text()),
            _ => broke += usize::from(output.err.contains("machine web")),
        }
    }
    // Those whose TCP connection had been taken by what went away are told so; none hangs, none is told nothing.
    assert_eq!(done.len() + broke, 24, "{done:?}");
    done.dedup();
    assert!(done.len() <= 1, "{done:?}");
    master.is_alive(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_65th_channel_of_a_connection_is_refused_loudly() {
    let stage = Stage::with(hurried).await;
    let heard = hearer().await;
    let local = free_port();
    let forward = format!("{local}:localhost:{heard}");
    let mut ssh = stage.loud_with("ann", "web", &["-N", "-L", &forward]);
    let mut ssh = ssh.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(reach(local).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut refused = reach(local).await;
    assert_eq!(refused.read(&mut [0; 8]).await.unwrap_or(0), 0);
    held.truncate(10);
    // The other end hears of it a moment later.
    let again = async {
        while ask(reach(local).await, "again").await.ok().as_deref() != Some("heard again") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("places are given back");
    ssh.kill().await.unwrap();
    let mut told = String::new();
    ssh.stderr.take().unwrap().read_to_string(&mut told).await.unwrap();
    assert!(told.contains("no more than 64 channels in one connection"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_anew_in_the_middle_of_transfers_and_silence_is_kept_alive() {
    let stage = Stage::with(hurried).await;
    let data = noise(24 << 20);
    let options = ["-o", "RekeyLimit=1M", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"];
    let both = succeed(stage.ssh_with("ann", "web", &options, &["cat"]), &data);
    let silence = succeed(stage.ssh_with("ann", "web", &options, &["sleep 5; echo still here"]), b"");
    let (both, silence) = tokio::join!(both, silence);
    assert!(both.out == data);
    assert_eq!(silence.text(), "still here\n");
}
