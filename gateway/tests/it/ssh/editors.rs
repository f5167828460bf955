//! What VS Code Remote and JetBrains Gateway do with a connection, and the rest of what `ssh` can ask for.

use crate::common::clients::{Master, hearer, hearer_at, hurried, reach, say, stay, succeed};
use crate::common::{Stage, free_port};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};

/// Through a SOCKS5 proxy to a port inside the machine (RFC 1928).
async fn by_socks(proxy: u16, port: u16) -> TcpStream {
    let mut stream = reach(proxy).await;
    stream.write_all(&[5, 1, 0]).await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    let mut ask = vec![5, 1, 0, 3, 9];
    ask.extend_from_slice(b"localhost");
    ask.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&ask).await.unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[1], 0, "the proxy refuses: {answer:?}");
    stream
}

/// `ssh -T -D PORT -o ConnectTimeout=15 HOST sh`: a script goes in by standard input, a server comes up in the machine, everything else
/// goes through the proxy.
#[tokio::test(flavor = "multi_thread")]
async fn vs_code_starts_its_server_by_a_script_and_reaches_it_by_socks() {
    let stage = Stage::with(hurried).await;
    let (proxy, heard) = (free_port(), hearer().await);
    let dynamic = proxy.to_string();
    let options = ["-T", "-D", &dynamic, "-o", "ConnectTimeout=15"];
    let mut ssh = stay(stage.ssh_with("ann", "web", &options, &["sh"]));
    let mut script = ssh.stdin.take().unwrap();
    let mut lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
    script.write_all(b"uname -s\necho listeningOn==31337==\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "Linux");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "listeningOn==31337==");
    let all = (0..48).map(|n| async move {
        let word = format!("{n}").repeat(20_000);
        assert_eq!(say(by_socks(proxy, heard).await, &word).await, format!("heard {word}"));
    });
    futures_util::future::join_all(all).await;
    // The server's shell stays usable all the while, and ends with its input.
    script.write_all(b"echo after\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "after");
    drop(script);
    assert!(ssh.wait().await.unwrap().success());
}

/// Many commands, an sftp and forwards to sockets and ports, all over one connection and all at once.
#[tokio::test(flavor = "multi_thread")]
async fn jetbrains_runs_many_channels_of_all_kinds_over_one_connection() {
    let stage = Stage::with(hurried).await;
    let (there, here) = (stage.path("there"), stage.path("here"));
    hearer_at(&there);
    let (heard, local) = (hearer().await, free_port());
    let (sockets, ports) =
        (format!("{}:{}", here.display(), there.display()), format!("{local}:localhost:{heard}"));
    let master = Master::open(&stage, &["-L", &sockets, "-L", &ports]).await;
    let commands = (0..12).map(|n| {
        let line = format!("cat; exit {n}");
        let command = stage.ssh_with("ann", "web", &["-o", &master.option], &[&line]);
        async move {
            let output = crate::common::finish(command, &vec![b'x'; 200_000]).await;
            assert_eq!((output.code, output.out.len()), (Some(n), 200_000), "{}", output.err);
        }
    });
    let by_port = (0..12).map(|n| async move {
        assert_eq!(say(reach(local).await, &n.to_string()).await, format!("heard {n}"));
    });
    let by_socket = (0..12).map(|n| {
        let here = here.clone();
        async move {
            let stream = UnixStream::connect(here).await.unwrap();
            assert_eq!(say(stream, &n.to_string()).await, format!("heard {n}"));
        }
    });
    let mut sftp = crate::common::clients::tool("sftp", "openssh-client");
    sftp.args(stage.options("ann")).args([
        "-o",
        &master.option,
        "-P",
        &stage.port(),
        "-b",
        "-",
        "web@127.0.0.1",
    ]);
    let script = format!("ls {}\n", stage.directory.path().display());
    let all = futures_util::future::join3(
        futures_util::future::join_all(commands),
        futures_util::future::join_all(by_port),
        futures_util::future::join_all(by_socket),
    );
    tokio::join!(all, succeed(sftp, script.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_and_output_are_a_port_inside_the_machine() {
    let stage = Stage::with(hurried).await;
    let target = format!("localhost:{}", hearer().await);
    let output = succeed(stage.ssh_with("ann", "web", &["-W", &target], &[]), b"by -W").await;
    assert_eq!(output.text(), "heard by -W");
}

#[tokio::test(flavor = "multi_thread")]
async fn x11_is_refused_politely() {
    let stage = Stage::with(hurried).await;
    let mut ssh = stage.loud_with("ann", "web", &["-Y"]);
    ssh.arg("echo display $DISPLAY.").env("DISPLAY", "127.0.0.1:77");
    let output = succeed(ssh, b"").await;
    assert_eq!(output.text(), "display .\n");
    assert!(output.err.contains("X11 forwarding request failed"), "{output:?}");
}
