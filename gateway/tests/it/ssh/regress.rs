//! OpenSSH's own regress scripts, unmodified, through the gateway. `docs/openssh-regress.md` says which and why not the others.
//!
//! A script starts the sshd under test itself; the gateway takes that for the machine `web`. Scripts that run an sshd for each
//! connection mean the machine `inetd`, which this program plays. In place of `ssh` they call `regress/ssh`.
//! `REGRESS="NAME NAME"` in the environment runs those.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::common::clients::{hurried, need, succeed, tool};
use crate::common::{Output, Stage, account, fleet_config, machine};
use mashines_fleet::view::{Batch, View};
use tokio::net::TcpListener;
use tokio::process::Command;

/// Where Debian's package `openssh-tests` puts them.
const SUITE: &str = "/usr/lib/openssh/regress";

/// Every script that asks a server for something that a gateway passes on. Those of one line use the same ports.
const SCRIPTS: &[&str] = &[
    "multiplex forwarding cfgmatch",
    "exit-status",
    "channel-timeout connect connect-uri connect-privsep reexec",
    "dynamic-forward",
    "agent envpass exit-status-signal localcommand allow-deny-users authinfo",
    "transfer stderr-data stderr-after-eof broken-pipe yes-head scp-uri sftp-uri sftp-chroot",
];

/// For one script. The longest takes half a minute on two cores that do nothing else.
const PATIENCE: Duration = Duration::from_secs(150);

/// A copy of the suite with the keys that each script would otherwise make for itself.
async fn suite() -> tempfile::TempDir {
    assert!(Path::new(SUITE).exists(), "{SUITE} is not there: apt-get install openssh-tests");
    need("sshd", "openssh-server");
    std::fs::create_dir_all("/run/sshd").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut copy = tool("cp", "coreutils");
    copy.args(["-a", SUITE]).arg(folder.path());
    succeed(copy, b"").await;
    let nothing = folder.path().join("regress/nothing.sh");
    std::fs::write(&nothing, "tid=nothing\n").unwrap();
    succeed(script(&folder.path().join("regress"), "nothing"), b"").await;
    folder
}

/// A script as the suite's makefile runs it.
fn script(objects: &Path, name: &str) -> Command {
    let mut sh = tool("sh", "dash");
    sh.arg(objects.join("test-exec.sh")).arg(objects).arg(objects.join(format!("{name}.sh")));
    sh.current_dir(objects).env("TEST_SHELL", "sh").env("BUILDDIR", objects).env("OBJ", objects);
    sh.env("TEST_SSH_SFTPSERVER", "/usr/lib/openssh/sftp-server").env("TEST_SSH_UNSAFE_PERMISSIONS", "1");
    sh.env("PATH", "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin").env("USER", "root");
    sh.env("LOGNAME", "root").env_remove("SSH_AUTH_SOCK");
    sh
}

/// A gateway whose machines are the script's two kinds of sshd.
async fn stage(objects: &Path) -> Stage {
    let mut stage = Stage::with(|config| {
        hurried(config);
        // Scripts change the configuration of their sshd between two commands.
        config.machine_idle_s = 0;
    })
    .await;
    stage.stop_sshd().await;
    let mut view = View::default();
    let changes = vec![
        fleet_config(),
        account("ann", &[stage.public_key("ann")]),
        machine(1, "web", "ann", Ipv4Addr::LOCALHOST.to_ipv6_mapped(), "started"),
        machine(2, "inetd", "ann", "::1".parse().unwrap(), "started"),
    ];
    assert_eq!(view.apply(&Batch { revision: 1, changes }), []);
    stage.views.send_replace(Arc::new(view));
    let known = stage.known_host();
    let key = known.split_once(' ').unwrap().1;
    std::fs::write(stage.path("known_hosts"), format!("the-gateway {key}")).unwrap();
    tokio::spawn(inetd(
        TcpListener::bind(("::1", stage.machine_port)).await.unwrap(),
        objects.join("sshd_proxy"),
    ));
    stage
}

/// Runs an sshd for each connection, with the configuration that is there at that moment.
async fn inetd(listener: TcpListener, config: PathBuf) {
    while let Ok((stream, _)) = listener.accept().await {
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let (one, two) = (stream.try_clone().unwrap(), stream);
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.arg("-i").arg("-f").arg(&config).stdin(Stdio::from(std::os::fd::OwnedFd::from(one)));
        sshd.stdout(Stdio::from(std::os::fd::OwnedFd::from(two))).stderr(Stdio::null());
        let mut child = sshd.spawn().unwrap();
        drop(sshd);
        tokio::spawn(async move { child.wait().await });
    }
}

/// Runs one through a gateway of its own; what it said if it failed.
async fn run(suite: &Path, name: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let mut copy = tool("cp", "coreutils");
    copy.arg("-a").arg(suite.join("regress")).arg(folder.path());
    succeed(copy, b"").await;
    let objects = folder.path().join("regress");
    let stage = stage(&objects).await;
    let mut sh = script(&objects, name);
    let at = |name: &str| stage.path(name).display().to_string();
    let options = format!("TrustedUserCAKeys {}\nMaxStartups 100\n", at("ca.pub"));
    let told = format!(
        "#!/bin/sh\nTHROUGH={} THROUGH_KEY={} THROUGH_KNOWN_HOSTS={} TEST_SSH_PORT={}\n{}",
        stage.port(),
        at("ann"),
        at("known_hosts"),
        stage.machine_port,
        include_str!("../../regress/ssh")
    );
    let wrapper = folder.path().join("ssh");
    std::fs::write(&wrapper, told).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    sh.env("TEST_SSH_PORT", stage.machine_port.to_string()).env("TEST_SSH_SSHD_CONFOPTS", options);
    sh.env("TEST_SSH_SSH", wrapper).stdin(Stdio::null()).kill_on_drop(true);
    let Ok(output) = tokio::time::timeout(PATIENCE, sh.output()).await else {
        return Err(format!("takes longer than {PATIENCE:?}"));
    };
    let output = output.unwrap();
    let output = Output {
        code: output.status.code(),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    if output.code == Some(0) && !output.text().contains("SKIPPED") {
        return Ok(());
    }
    let log = std::fs::read_to_string(objects.join("failed-ssh.log")).unwrap_or_default();
    let end: Vec<&str> = log.lines().rev().filter(|line| !line.starts_with("debug")).take(6).collect();
    Err(format!("{}{}\n{end:?}", output.text(), output.err))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes, most of them asleep: scripts/test runs it beside the others"]
async fn openssh_s_own_scripts_pass_through_the_gateway() {
    let suite = suite().await;
    let chosen = std::env::var("REGRESS").ok();
    let lines = chosen.as_ref().map_or_else(|| SCRIPTS.to_vec(), |names| vec![names.as_str()]);
    let all = lines.into_iter().map(async |line| {
        let mut failed = Vec::new();
        for name in line.split_whitespace() {
            match run(suite.path(), name).await {
                Ok(()) => println!("passes: {name}"),
                Err(why) => {
                    println!("FAILS: {name}: {why}");
                    failed.push(name);
                }
            }
        }
        failed
    });
    let failed = futures_util::future::join_all(all).await.concat();
    assert!(failed.is_empty(), "{failed:?}");
}
