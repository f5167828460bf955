//! dropbear's dbclient through the gateway.

use crate::common::clients::{Agent, hearer, hurried, need, noise, reach, say, stay, succeed, tool};
use crate::common::{Stage, finish, free_port};
use tokio::process::Command;

const PACKAGE: &str = "dropbear-bin";

/// A stage with ann's key in dropbear's format.
async fn stage() -> Stage {
    need("dbclient", PACKAGE);
    let stage = Stage::with(hurried).await;
    let mut convert = tool("dropbearconvert", PACKAGE);
    convert.args(["openssh", "dropbear"]).arg(stage.path("ann")).arg(stage.path("ann.dropbear"));
    succeed(convert, b"").await;
    stage
}

/// dbclient's arguments before its command. `-y -y` asks for no host key: this is about what passes.
fn options(stage: &Stage, more: &[&str]) -> Vec<String> {
    let (key, port) = (stage.path("ann.dropbear").display().to_string(), stage.port());
    let all = ["-y", "-y", "-i", &key, "-p", &port].into_iter().chain(more.iter().copied());
    all.map(str::to_owned).collect()
}

fn dbclient(stage: &Stage, more: &[&str], command: &[&str]) -> Command {
    let mut dbclient = tool("dbclient", PACKAGE);
    dbclient
        .args(options(stage, more))
        .arg("web@127.0.0.1")
        .args(command)
        .env("HOME", stage.directory.path());
    dbclient
}

#[tokio::test(flavor = "multi_thread")]
async fn dbclient_has_output_errors_exit_codes_and_a_terminal() {
    let stage = stage().await;
    let output = finish(dbclient(&stage, &[], &["echo out; echo err >&2; exit 7"]), b"").await;
    assert_eq!((output.code, output.text().as_str()), (Some(7), "out\n"), "{output:?}");
    assert!(output.err.ends_with("err\n"), "{output:?}");
    let shell = finish(dbclient(&stage, &["-T"], &[]), b"echo shell; exit 3\n").await;
    assert_eq!((shell.code, shell.text().contains("shell\n")), (Some(3), true), "{shell:?}");
    // It asks for a terminal only when it has one, so `script` gives it one.
    let line = format!("dbclient {} -t web@127.0.0.1 tty", options(&stage, &[]).join(" "));
    let mut script = tool("script", "bsdutils");
    script.args(["-qec", &line, "/dev/null"]).env("HOME", stage.directory.path());
    let terminal = succeed(script, b"").await;
    assert!(terminal.text().contains("/dev/pts/"), "{terminal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dbclient_moves_megabytes_both_ways() {
    let stage = stage().await;
    let data = noise(8_000_000);
    let back = succeed(dbclient(&stage, &[], &["cat"]), &data).await;
    assert!(back.out == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn dbclient_forwards_ports_both_ways_and_speaks_through_one() {
    let stage = stage().await;
    let (heard, local, remote) = (hearer().await, free_port(), free_port());
    let forwards = [format!("{local}:localhost:{heard}"), format!("{remote}:127.0.0.1:{heard}")];
    let _dbclient = stay(dbclient(&stage, &["-N", "-L", &forwards[0], "-R", &forwards[1]], &[]));
    for n in 0..4 {
        assert_eq!(say(reach(local).await, &n.to_string()).await, format!("heard {n}"));
        assert_eq!(say(reach(remote).await, &n.to_string()).await, format!("heard {n}"));
    }
    let netcat = dbclient(&stage, &["-B", &format!("localhost:{heard}")], &[]);
    assert_eq!(succeed(netcat, b"nc").await.text(), "heard nc");
}

#[tokio::test(flavor = "multi_thread")]
async fn dbclient_forwards_an_agent() {
    let stage = stage().await;
    let agent = Agent::with(&stage, &[stage.path("bob")]).await;
    let mut forwarded = dbclient(&stage, &["-A"], &["ssh-add -L"]);
    forwarded.env("SSH_AUTH_SOCK", &agent.socket);
    let listed = succeed(forwarded, b"").await;
    assert!(listed.text().contains(stage.public_key("bob").split(' ').nth(1).unwrap()), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_travel_over_dbclient() {
    let stage = stage().await;
    let data = noise(3_000_000);
    let (source, there, back) = (stage.path("source"), stage.path("there"), stage.path("back"));
    std::fs::write(&source, &data).unwrap();
    // A program for scp and rsync to start: they bring their own options, which dbclient does not know.
    let wrapper = stage.path("over-dbclient");
    let line = format!(
        "#!/bin/sh\nexport HOME={}\nwhile :; do case $1 in -o|-F) shift 2;; -x|-a|-q|-oForward*|-oPerm*|-oClear*|-oRemote*|-oRequest*|--) shift;; *) break;; esac; done\nexec dbclient {} \"$@\"\n",
        stage.directory.path().display(),
        options(&stage, &[]).join(" ")
    );
    std::fs::write(&wrapper, line).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut rsync = tool("rsync", "rsync");
    rsync.arg("-e").arg(&wrapper).arg(&source).arg(format!("web@127.0.0.1:{}", there.display()));
    succeed(rsync, b"").await;
    let mut rsync = tool("rsync", "rsync");
    rsync.arg("-e").arg(&wrapper).arg(format!("web@127.0.0.1:{}", there.display())).arg(&back);
    succeed(rsync, b"").await;
    assert!(std::fs::read(&back).unwrap() == data);
    let mut sftp = tool("sftp", "openssh-client");
    sftp.arg("-D").arg(format!("dbclient {} -s web@127.0.0.1 sftp", options(&stage, &[]).join(" ")));
    sftp.env("HOME", stage.directory.path()).args(["-b", "-"]);
    let script = format!("put {} {}2\n", source.display(), there.display());
    succeed(sftp, script.as_bytes()).await;
    assert!(std::fs::read(stage.path("there2")).unwrap() == data);
}
