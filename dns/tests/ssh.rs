//! `ssh -o VerifyHostKeyDNS=yes`: a machine's host key is accepted by its SSHFP record without a question, through a validating resolver.
//!
//! It runs in a network and a mount namespace of its own (package `util-linux`), since OpenSSH asks the C library, which asks port 53 of
//! what `/etc/resolv.conf` names, and connects to the machine's own address. That takes root.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{config, entry, machine, view, zone_keys};
use mashines_dns::zone::Projector;
use mashines_dns::{Config, Server};
use mashines_fleet::sealed::EntrySecret;
use serde_json::json;
use tokio::sync::watch;

/// Set in the process that is inside the namespaces.
const INSIDE: &str = "MASHINES_TEST_INSIDE";

const NAME: &str = "a_host_key_is_accepted_by_its_record_without_a_question_and_another_is_not";

#[test]
fn a_host_key_is_accepted_by_its_record_without_a_question_and_another_is_not() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare is not installed: apt-get install util-linux");
    assert!(status.success(), "see above");
}

/// Ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn succeed(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn new_key(file: &Path) -> String {
    let status =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(file).status();
    assert!(status.expect("ssh-keygen: apt-get install openssh-client").success());
    std::fs::read_to_string(file.with_extension("pub")).unwrap().trim().to_owned()
}

fn inside() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    succeed("ip", "link set lo up");
    for address in ["2001:db8:160::1", "2001:db8:160::2"] {
        succeed("ip", &format!("-6 addr add {address}/128 dev lo nodad"));
    }
    std::fs::write(path("resolv.conf"), "nameserver 127.0.0.1\noptions edns0 trust-ad\n").unwrap();
    succeed("mount", &format!("--bind {} /etc/resolv.conf", path("resolv.conf").display()));
    let (host_key, other_key, own_key) =
        (new_key(&path("host")), new_key(&path("other")), new_key(&path("own")));
    std::fs::write(path("authorized"), own_key).unwrap();
    let secret = EntrySecret::random();
    // Both sshds show `host`; the record of `db` is of another key.
    let fleet = view(vec![
        config("2001:db8:160::/48"),
        entry(),
        machine(1, "web", "2001:db8:160::1", json!({"host_key_public": host_key})),
        machine(2, "db", "2001:db8:160::2", json!({"host_key_public": other_key})),
        zone_keys("mashine.dev", &["active"], &secret),
    ]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_views, view_receiver) = watch::channel(Arc::clone(&fleet));
    let (_secrets, secret_receiver) = watch::channel(Some(secret.clone()));
    let at = runtime.block_on(async {
        let config = Config { listen: vec!["127.0.0.2:0".parse().unwrap()], ..Config::default() };
        let server = Server::bind(&config).await.unwrap();
        let at = server.addresses().unwrap()[0];
        tokio::spawn(server.serve(view_receiver, secret_receiver, std::future::pending()));
        at
    });
    let mut projector = Projector::default();
    projector.apply(&fleet, Some(&secret));
    let zones = projector.zones();
    let ds = zones.zone(&"mashine.dev".parse().unwrap()).unwrap().keys().unwrap().ds_set();
    let data = &ds.data()[0];
    let digest: String = data[4..].iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = u16::from_be_bytes([data[0], data[1]]);
    let text = format!(
        "server:\n interface: 127.0.0.1\n username: \"\"\n chroot: \"\"\n directory: \"{folder}\"\n pidfile: \"\"\n \
         use-syslog: no\n do-daemonize: no\n do-not-query-localhost: no\n use-caps-for-id: yes\n \
         trust-anchor: \"mashine.dev. DS {tag} 13 2 {digest}\"\nremote-control:\n control-enable: no\n\
         stub-zone:\n name: mashine.dev\n stub-addr: 127.0.0.2@{port}\n stub-prime: no\n",
        folder = folder.path().display(),
        port = at.port(),
    );
    std::fs::write(path("unbound.conf"), text).unwrap();
    let unbound =
        Command::new("unbound").arg("-d").arg("-c").arg(path("unbound.conf")).stderr(Stdio::null()).spawn();
    let _unbound = Process(unbound.expect("unbound is not installed: apt-get install unbound"));
    std::fs::create_dir_all("/run/sshd").unwrap();
    let _sshd = Process(sshd(folder.path()));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = ssh(folder.path(), "web");
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n");
            break;
        }
        // The resolver and sshd take a moment to be there.
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = ssh(folder.path(), "db");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Host key verification failed"), "{said}");
}

fn sshd(folder: &Path) -> Child {
    let text = format!(
        "ListenAddress [2001:db8:160::1]:22\nListenAddress [2001:db8:160::2]:22\nHostKey {folder}/host\nPidFile none\n\
         AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n",
        folder = folder.display()
    );
    std::fs::write(folder.join("sshd_config"), text).unwrap();
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.arg("-D").arg("-e").arg("-f").arg(folder.join("sshd_config"));
    sshd.stderr(Stdio::null()).spawn().expect("sshd is not installed: apt-get install openssh-server")
}

/// No known hosts, no questions.
fn ssh(folder: &Path, name: &str) -> Output {
    Command::new("ssh")
        .args([
            "-F",
            "none",
            "-v",
            "-o",
            "VerifyHostKeyDNS=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
        ])
        .args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "GlobalKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
        ])
        .args(["-o", "ConnectTimeout=5", "-i"])
        .arg(folder.join("own"))
        .arg(format!("root@{name}.mashine.dev"))
        .arg("echo in")
        .stdin(Stdio::null())
        .output()
        .expect("ssh is not installed: apt-get install openssh-client")
}
