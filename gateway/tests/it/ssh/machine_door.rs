//! `ssh web@gateway`: what works against a machine's own sshd works through the gateway.

use std::process::Stdio;
use std::time::Duration;

use crate::common::clients::{Agent, Master};
use crate::common::{Stage, finish};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_output_its_errors_and_its_exit_code() {
    let stage = Stage::new().await;
    let output = finish(stage.ssh("ann", "web", "echo out; echo err >&2; exit 7"), b"").await;
    assert_eq!((output.code, output.text().as_str(), output.err.as_str()), (Some(7), "out\n", "err\n"));
    let piped = finish(stage.ssh("ann", "web", "tr a-z A-Z"), b"hello").await;
    assert_eq!((piped.code, piped.text().as_str()), (Some(0), "HELLO"));
    let env =
        finish(stage.ssh_with("ann", "web", &["-o", "SetEnv=LC_WORD=blue"], &["echo $LC_WORD"]), b"").await;
    assert_eq!(env.text(), "blue\n");
    let signal = finish(stage.ssh("ann", "web", "kill -TERM $$"), b"").await;
    assert_eq!(signal.code, Some(255), "{signal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_command_uses_the_connection_of_the_first() {
    let stage = Stage::new().await;
    let command = "echo $PPID; echo $SSH_CONNECTION";
    let first = finish(stage.ssh("ann", "web", command), b"").await;
    let second = finish(stage.ssh("ann", "web", command), b"").await;
    assert_eq!(first.code, Some(0), "{first:?}");
    assert_eq!(first.text(), second.text(), "the same sshd process and client port");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_come_through_both_ways_unchanged() {
    let stage = Stage::new().await;
    let data: Vec<u8> = (0..10_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let back = finish(stage.ssh("ann", "web", "cat"), &data).await;
    assert_eq!(back.code, Some(0), "{}", back.err);
    assert!(back.out == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_and_scp_work() {
    let stage = Stage::new().await;
    let (source, copy, back) = (stage.path("source"), stage.path("copy"), stage.path("back"));
    std::fs::write(&source, vec![42; 300_000]).unwrap();
    let port = stage.gateway.port().to_string();
    let remote = |path: &std::path::Path| format!("web@127.0.0.1:{}", path.display());
    for old in [&[][..], &["-O"][..]] {
        let mut scp = Command::new("scp");
        scp.args(stage.options("ann")).args(["-q", "-P", &port]).args(old).arg(&source).arg(remote(&copy));
        let output = finish(scp, b"").await;
        assert_eq!(output.code, Some(0), "{old:?} {output:?}");
        let mut scp = Command::new("scp");
        scp.args(stage.options("ann")).args(["-q", "-P", &port]).args(old).arg(remote(&copy)).arg(&back);
        let output = finish(scp, b"").await;
        assert_eq!(output.code, Some(0), "{old:?} {output:?}");
        assert_eq!(std::fs::read(&back).unwrap().len(), 300_000);
        std::fs::remove_file(&copy).unwrap();
        std::fs::remove_file(&back).unwrap();
    }
    let mut sftp = Command::new("sftp");
    sftp.args(stage.options("ann")).args(["-q", "-P", &port, "-b", "-", "web@127.0.0.1"]);
    let output = finish(sftp, format!("put {} {}\n", source.display(), copy.display()).as_bytes()).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(std::fs::read(&copy).unwrap().len(), 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal_of_the_right_size() {
    let stage = Stage::new().await;
    // `script` gives ssh a terminal to take the size from.
    let mut ssh = vec!["stty rows 33 cols 77;".to_owned(), "ssh".to_owned(), "-tt".to_owned()];
    ssh.extend(stage.options("ann").iter().map(|o| format!("'{o}'")));
    ssh.extend([
        "-p".into(),
        stage.gateway.port().to_string(),
        "web@127.0.0.1".into(),
        "'stty size; tty'".into(),
    ]);
    let mut script = Command::new("script");
    script.args(["-qec", &ssh.join(" "), "/dev/null"]);
    let output = finish(script, b"").await;
    assert!(output.text().contains("33 77"), "{output:?}");
    assert!(output.text().contains("/dev/pts/"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_reaches_the_machine_by_name_and_by_address() {
    let stage = Stage::new().await;
    let jump = |host: &str| {
        let proxy = format!(
            "ssh {} -p {} -W '[%h]:%p' lobby@127.0.0.1",
            stage.options("ann").join(" ").replace("LogLevel=ERROR", "LogLevel=INFO"),
            stage.gateway.port()
        );
        let mut command = Command::new("ssh");
        command.args(stage.options("ann")).args(["-o", &format!("ProxyCommand={proxy}")]);
        command.args([&format!("root@{host}"), "echo $SSH_CONNECTION; exit 5"]);
        command
    };
    for host in ["web", "web.mashine.dev", "::1"] {
        let output = finish(jump(host), b"").await;
        assert_eq!(output.code, Some(5), "{host}: {output:?}");
    }
    let theirs = finish(jump("theirs"), b"").await;
    assert_eq!(theirs.code, Some(255));
    assert!(theirs.err.contains("belongs to another account"), "{theirs:?}");
    let relay = finish(jump("192.0.2.1"), b"").await;
    assert!(relay.err.contains("none of your machines"), "{relay:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_inside_the_machine_are_forwarded() {
    let stage = Stage::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"from inside").await.unwrap();
        }
    });
    let local = crate::common::free_port();
    let forward = format!("{local}:localhost:{inside}");
    let mut ssh =
        stage.ssh_with("ann", "web", &["-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward], &[]);
    let _ssh = ssh.stdin(Stdio::null()).spawn().unwrap();
    let mut read = String::new();
    for _ in 0..100 {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", local)).await {
            stream.read_to_string(&mut read).await.unwrap();
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read, "from inside");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_sockets_of_the_machine_lead_back_to_the_client() {
    let stage = Stage::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mine = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = String::new();
            stream.read_to_string(&mut asked).await.unwrap();
            stream.write_all(format!("the client heard {asked}").as_bytes()).await.unwrap();
        }
    });
    let (there, socket) = (crate::common::free_port(), stage.path("there"));
    let options = [
        "-R".to_owned(),
        format!("{there}:127.0.0.1:{mine}"),
        "-R".to_owned(),
        format!("{}:127.0.0.1:{mine}", socket.display()),
        "-o".to_owned(),
        "ExitOnForwardFailure=yes".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    // The "machine" is this host: what listens there can be reached from here.
    let mut ssh = stage.ssh_with("ann", "web", &options, &["echo up; cat"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0u8; 3];
    ssh.stdout.as_mut().unwrap().read_exact(&mut up).await.unwrap();
    for n in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", there)).await.unwrap();
        assert_eq!(asked(&mut stream, n).await, format!("the client heard {n}"));
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        assert_eq!(asked(&mut stream, n).await, format!("the client heard {n}"));
    }
    drop(ssh.stdin.take());
    assert!(ssh.wait().await.unwrap().success());
    for _ in 0..100 {
        if tokio::net::TcpStream::connect(("127.0.0.1", there)).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the machine still listens though the client has gone");
}

/// Sends a number, ends the sending, reads the answer.
async fn asked(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    number: i32,
) -> String {
    stream.write_all(number.to_string().as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_machines_choice_is_told_and_one_that_is_taken_is_refused() {
    let stage = Stage::new().await;
    // Of both families: sshd is content with one.
    let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap().port();
    let _holder6 = tokio::net::TcpListener::bind(("::1", taken)).await.unwrap();
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"];
    let chosen = finish(stage.ssh_with("ann", "web", &options, &["true"]), b"").await;
    assert_eq!(chosen.code, Some(0), "{chosen:?}");
    let refused = format!("{taken}:127.0.0.1:1");
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", refused.as_str()];
    let refused = finish(stage.ssh_with("ann", "web", &options, &["true"]), b"").await;
    assert_eq!(refused.code, Some(255), "{refused:?}");
    let lobby = finish(stage.ssh_with("ann", "lobby", &options, &["ls"]), b"").await;
    assert_eq!(lobby.code, Some(255), "the lobby listens for nobody: {lobby:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_forwarded_into_the_machine_and_its_connection_is_not_shared() {
    let stage = Stage::new().await;
    let agent = Agent::with(&stage, &[stage.path("bob")]).await;
    let identity_agent = format!("IdentityAgent={}", agent.socket.display());
    let mut options = stage.options("ann");
    options.retain(|o| o != "IdentityAgent=none");
    // The option that is left without its value is given the new one.
    let at = options.iter().position(|o| o.starts_with("IdentityFile")).unwrap() - 1;
    options[at - 1] = "-o".into();
    options.insert(at, identity_agent);
    let mut ssh = Command::new("ssh");
    ssh.args(&options).args(["-A", "-p", &stage.gateway.port().to_string(), "web@127.0.0.1", "ssh-add -L"]);
    let output = finish(ssh, b"").await;
    let bob = std::fs::read_to_string(stage.path("bob.pub")).unwrap();
    assert!(output.text().contains(bob.split(' ').nth(1).unwrap()), "{output:?}");
    let after = finish(stage.ssh("ann", "web", "ssh-add -L"), b"").await;
    assert_ne!(after.code, Some(0), "the next session has no agent: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_channels_of_one_connection_work_at_once_and_a_stalled_one_stalls_no_other() {
    let stage = Stage::new().await;
    let master = Master::open(&stage, &[]).await;
    // Nobody reads what this one writes, and the machine never stops writing.
    let mut stalled = stage.ssh_with("ann", "web", &["-o", &master.option], &["cat /dev/zero"]);
    let mut stalled = stalled.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0u8; 1];
    stalled.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = (0..8).map(|n| {
        let line = format!("head -c 2000000 /dev/zero | wc -c; echo {n}");
        let command = stage.ssh_with("ann", "web", &["-o", &master.option], &[&line]);
        async move { (n, finish(command, b"").await) }
    });
    for (n, output) in futures_util::future::join_all(all).await {
        assert_eq!((output.code, output.text()), (Some(0), format!("2000000\n{n}\n")), "{}", output.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_taken_out_of_its_account_opens_no_further_door() {
    let stage = Stage::new().await;
    let master = Master::open(&stage, &[]).await;
    let again = || stage.ssh_with("ann", "web", &["-o", &master.option], &["echo in"]);
    assert_eq!(finish(again(), b"").await.text(), "in\n");
    std::fs::copy(stage.path("stranger.pub"), stage.path("ann.pub")).unwrap();
    stage.publish(None);
    // The gateway hears of it a moment later.
    let mut output = finish(again(), b"").await;
    for _ in 0..50 {
        if output.code == Some(255) {
            break;
        }
        output = finish(again(), b"").await;
    }
    assert_eq!(output.code, Some(255));
    assert!(output.err.contains("taken out of its account"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_session_sees_each_line_at_once() {
    let stage = Stage::new().await;
    let mut ssh = stage.ssh("ann", "web", "while read l; do echo got $l; done");
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for n in 0..20 {
        stdin.write_all(format!("{n}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.unwrap();
        assert_eq!(line.unwrap().unwrap(), format!("got {n}"));
    }
    drop(stdin);
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let mut stage = Stage::new().await;
    let theirs = finish(stage.ssh("ann", "theirs", "true"), b"").await;
    assert_eq!(theirs.code, Some(255));
    assert!(theirs.err.contains("belongs to another account"), "{theirs:?}");
    let stopped = finish(stage.ssh("ann", "off", "true"), b"").await;
    assert!(stopped.err.contains("is stopped") && stopped.err.contains("mashines start off"), "{stopped:?}");
    let stranger = finish(stage.loud("stranger", "web", "true"), b"").await;
    assert_eq!(stranger.code, Some(255));
    assert!(stranger.err.contains("is in no account: SHA256:"), "{stranger:?}");
    stage.stop_sshd().await;
    let down = finish(stage.ssh("ann", "web", "true"), b"").await;
    assert!(down.err.contains("machine web cannot be reached"), "{down:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_shows_another_host_key_than_its_record_is_not_trusted() {
    let stage = Stage::new().await;
    stage.publish_with(|machine| machine["host_key_public"] = stage.public_key("bob").into());
    let output = finish(stage.ssh("ann", "web", "true"), b"").await;
    assert_eq!(output.code, Some(255));
    assert!(output.err.contains("shows the host key"), "{output:?}");
    stage.publish_with(|machine| machine["host_key_public"] = stage.public_key("machine_host_key").into());
    let output = finish(stage.ssh("ann", "web", "true"), b"").await;
    assert_eq!(output.code, Some(0), "{output:?}");
}
