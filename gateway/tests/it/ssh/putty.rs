//! PuTTY's programs through the gateway: plink, psftp, pscp.

use crate::common::clients::{Agent, hearer, hurried, need, noise, reach, say, stay, succeed, tool};
use crate::common::{Stage, finish, free_port};
use tokio::process::Command;

const PACKAGE: &str = "putty-tools";

/// A stage with ann's key in PuTTY's format.
async fn stage() -> Stage {
    need("plink", PACKAGE);
    let stage = Stage::with(hurried).await;
    let mut convert = tool("puttygen", PACKAGE);
    convert.arg(stage.path("ann")).args(["-O", "private", "-o"]).arg(stage.path("ann.ppk"));
    succeed(convert, b"").await;
    stage
}

/// One of PuTTY's programs, told the key, the port and the host key; it keeps its state in the stage's directory.
fn putty(program: &str, stage: &Stage) -> Command {
    let mut command = tool(program, PACKAGE);
    command.args(["-batch", "-hostkey", &stage.fingerprint(), "-P", &stage.port(), "-i"]);
    command.arg(stage.path("ann.ppk")).env("PUTTYDIR", stage.path("putty"));
    command
}

fn plink(stage: &Stage, options: &[&str], command: &[&str]) -> Command {
    let mut plink = putty("plink", stage);
    plink.args(options).arg("web@127.0.0.1").args(command);
    plink
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_has_output_errors_exit_codes_and_a_terminal() {
    let stage = stage().await;
    let output = finish(plink(&stage, &[], &["echo out; echo err >&2; exit 7"]), b"").await;
    assert_eq!((output.code, output.text().as_str(), output.err.as_str()), (Some(7), "out\n", "err\n"));
    let terminal = succeed(plink(&stage, &["-t"], &["tty; stty size"]), b"").await;
    assert!(terminal.text().contains("/dev/pts/"), "{terminal:?}");
    let shell = finish(plink(&stage, &["-T"], &[]), b"echo shell; exit 3\n").await;
    assert_eq!((shell.code, shell.text().contains("shell\n")), (Some(3), true), "{shell:?}");
    let mut theirs = putty("plink", &stage);
    theirs.args(["theirs@127.0.0.1", "true"]);
    let refused = finish(theirs, b"").await;
    assert!(refused.err.contains("belongs to another account"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_moves_megabytes_both_ways_with_each_cipher_and_key_exchange() {
    let stage = stage().await;
    let data = noise(8_000_000);
    let back = succeed(plink(&stage, &[], &["cat"]), &data).await;
    assert!(back.out == data);
    // PuTTY takes the order of its algorithms from a saved session.
    std::fs::create_dir_all(stage.path("putty/sessions")).unwrap();
    let some = &data[..300_000];
    let orders = ["aesgcm", "chacha20", "aes"]
        .map(|cipher| format!("Cipher={cipher},WARN\n"))
        .into_iter()
        .chain(["ecdh"].map(|kex| format!("KEX={kex},WARN\n")));
    for (n, order) in orders.enumerate() {
        let session = format!("Protocol=ssh\nHostName=127.0.0.1\nPortNumber={}\n{order}", stage.port());
        std::fs::write(stage.path(&format!("putty/sessions/order{n}")), session).unwrap();
        let mut plink = putty("plink", &stage);
        plink.args(["-load", &format!("order{n}"), "-l", "web", "cat"]);
        let back = succeed(plink, some).await;
        assert!(back.out == some, "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_forwards_ports_both_ways_and_speaks_through_one() {
    let stage = stage().await;
    let (heard, local, remote) = (hearer().await, free_port(), free_port());
    let forwards = [format!("{local}:localhost:{heard}"), format!("{remote}:127.0.0.1:{heard}")];
    let _plink = stay(plink(&stage, &["-N", "-L", &forwards[0], "-R", &forwards[1]], &[]));
    for n in 0..4 {
        assert_eq!(say(reach(local).await, &n.to_string()).await, format!("heard {n}"));
        assert_eq!(say(reach(remote).await, &n.to_string()).await, format!("heard {n}"));
    }
    let netcat = plink(&stage, &["-nc", &format!("localhost:{heard}")], &[]);
    assert_eq!(succeed(netcat, b"nc").await.text(), "heard nc");
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_shares_a_connection_and_forwards_an_agent() {
    let stage = stage().await;
    let agent = Agent::with(&stage, &[stage.path("bob")]).await;
    let mut forwarded = plink(&stage, &["-A"], &["ssh-add -L"]);
    forwarded.env("SSH_AUTH_SOCK", &agent.socket);
    let listed = succeed(forwarded, b"").await;
    assert!(listed.text().contains(stage.public_key("bob").split(' ').nth(1).unwrap()), "{listed:?}");
    let mut first = stay(plink(&stage, &["-share"], &["cat"]));
    let downstream = async {
        loop {
            let shared = finish(plink(&stage, &["-share", "-shareexists"], &[]), b"").await;
            if shared.code == Some(0) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let runs = (0..4).map(|n| {
            let line = format!("echo {n}");
            succeed(plink(&stage, &["-share"], &[&line]), b"")
        });
        futures_util::future::join_all(runs).await
    };
    let outputs = tokio::time::timeout(std::time::Duration::from_secs(30), downstream).await.unwrap();
    assert_eq!(outputs.iter().map(crate::common::Output::text).collect::<String>(), "0\n1\n2\n3\n");
    first.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn x11_is_refused_politely() {
    let stage = stage().await;
    let mut plink = plink(&stage, &["-X"], &["echo $DISPLAY."]);
    plink.env("DISPLAY", ":77");
    let output = succeed(plink, b"").await;
    assert_eq!(output.text(), ".\n", "the session goes on without a display: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psftp_and_pscp_carry_files_with_both_protocols() {
    let stage = stage().await;
    let data = noise(3_000_000);
    std::fs::write(stage.path("source"), &data).unwrap();
    let (there, back) = (stage.path("there"), stage.path("back"));
    let script = format!(
        "put {} {}\nget {} {}\nmkdir {}\nls {}\n",
        stage.path("source").display(),
        there.display(),
        there.display(),
        back.display(),
        stage.path("folder").display(),
        stage.directory.path().display()
    );
    std::fs::write(stage.path("batch"), script).unwrap();
    let mut psftp = putty("psftp", &stage);
    psftp.arg("-b").arg(stage.path("batch")).arg("web@127.0.0.1");
    let output = succeed(psftp, b"").await;
    assert!(output.text().contains("folder"), "{output:?}");
    assert!(std::fs::read(&there).unwrap() == data && std::fs::read(&back).unwrap() == data);
    for protocol in ["-sftp", "-scp"] {
        let at = |path: &std::path::Path| format!("web@127.0.0.1:{}", path.display());
        std::fs::remove_file(&there).unwrap();
        std::fs::remove_file(&back).unwrap();
        let mut up = putty("pscp", &stage);
        up.args(["-q", protocol]).arg(stage.path("source")).arg(at(&there));
        succeed(up, b"").await;
        let mut down = putty("pscp", &stage);
        down.args(["-q", protocol]).arg(at(&there)).arg(&back);
        succeed(down, b"").await;
        assert!(std::fs::read(&back).unwrap() == data, "{protocol}");
    }
}
