//! Who gets in, by OpenSSH's client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Stage, finish};

#[test]
fn the_accounts_key_opens_the_machine_and_its_host_certificate_is_believed() {
    let stage = Stage::new();
    assert_eq!(stage.ssh(&["echo in"]).good(), "in\n");
}

#[test]
fn another_key_opens_nothing_and_the_person_is_told() {
    let stage = Stage::new();
    let output = stage.ssh_as("stranger", "root", &["true"]);
    assert_eq!(output.code, Some(255));
    assert!(output.err.contains("none of your keys opens this machine"), "{}", output.err);
    assert!(output.err.contains("Permission denied"), "{}", output.err);
}

#[test]
fn a_user_other_than_root_is_refused_with_the_reason() {
    let stage = Stage::new();
    let output = stage.ssh_as("ann", "ann", &["true"]);
    assert_eq!(output.code, Some(255));
    assert!(output.err.contains("has no user ann: log in as root"), "{}", output.err);
}

#[test]
fn a_certificate_of_the_platforms_ca_for_root_opens_the_machine() {
    let stage = Stage::new();
    let key = stage.certify("ca", "root", "-1m:+5m", &[]);
    assert_eq!(stage.ssh_as(&key, "root", &["echo in"]).good(), "in\n");
}

#[test]
fn every_other_certificate_opens_nothing() {
    let stage = Stage::new();
    for (ca, principals, validity) in [
        ("other_ca", "root", "-1m:+5m"),
        ("ca", "ann", "-1m:+5m"),
        ("ca", "root", "20200101:20200102"),
        ("ca", "root", "20990101:20990102"),
    ] {
        let key = stage.certify(ca, principals, validity, &[]);
        assert_eq!(stage.ssh_as(&key, "root", &["true"]).code, Some(255), "{ca} {principals} {validity}");
    }
}

#[test]
fn a_certificates_command_runs_in_place_of_the_clients_and_what_it_does_not_permit_is_refused() {
    let stage = Stage::new();
    let key = stage.certify(
        "ca",
        "root",
        "-1m:+5m",
        &["-O", "clear", "-O", "force-command=echo $SSH_ORIGINAL_COMMAND"],
    );
    assert_eq!(stage.ssh_as(&key, "root", &["id", "-T"]).good(), "id\n");
    let output = stage.ssh_as(&key, "root", &["-tt", "x"]);
    assert!(output.err.contains("PTY allocation request failed"), "{}", output.err);
    let output = stage.ssh_as(&key, "root", &["-W127.0.0.1:9"]);
    assert_ne!(output.code, Some(0));
    assert!(output.err.contains("prohibited"), "{}", output.err);
}

#[test]
fn there_is_no_password() {
    let stage = Stage::new();
    let mut command = stage.client("ssh", "stranger");
    command.args(["-o", "PubkeyAuthentication=no", "root@127.0.0.1", "true"]);
    let output = finish(command, b"");
    assert!(output.err.contains("Permission denied (publickey"), "{}", output.err);
    assert!(!output.err.contains("password)"), "{}", output.err);
}

#[test]
fn rsa_and_ecdsa_keys_open_the_machine_too() {
    for kind in ["rsa", "ecdsa"] {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-f"])
            .arg(&key)
            .status()
            .unwrap();
        assert!(made.success());
        let line = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let stage = Stage::with(|config| config.ssh_authorized_keys.push(line));
        std::fs::copy(&key, stage.path("more")).unwrap();
        assert_eq!(stage.ssh_as("more", "root", &["echo in"]).good(), "in\n", "{kind}");
    }
}

#[test]
fn a_port_that_somebody_has_is_taken_once_it_is_free_and_nothing_is_said() {
    let mut stage = Stage::new();
    let mut second = stage.second();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.ssh(&["echo in"]).good(), "in\n");
    assert!(second.try_wait().unwrap().is_none());
    stage.stop();
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", stage.port)).is_err() {
        assert!(Instant::now() < deadline, "the free port is not taken");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(stage.ssh(&["echo in"]).good(), "in\n");
    second.kill().unwrap();
    second.wait().unwrap();
    let mut words = String::new();
    second.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(words, "");
}

#[test]
fn strangers_are_limited_told_so_and_cut_off() {
    let stage = Stage::new();
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", stage.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(45))).unwrap();
        stream
    };
    let begun = Instant::now();
    let mut all: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
    // One of them has at least said what it speaks.
    all[0].write_all(b"SSH-2.0-test\r\n").unwrap();
    // On a busy machine the server sees some of them later than the client does.
    let mut told = String::new();
    while told.is_empty() {
        std::thread::sleep(Duration::from_millis(500));
        let mut more = connect();
        let mut start = [0; 4];
        more.read_exact(&mut start).unwrap();
        if &start == b"SSH-" {
            all.push(more);
            assert!(all.len() < 120, "there is no limit");
        } else {
            more.read_to_string(&mut told).unwrap();
        }
    }
    assert!(told.contains("as many SSH connections as it takes"), "{told}");
    for mut stream in all {
        // The end of the stream, or a reset.
        let _heard = stream.read_to_end(&mut Vec::new());
    }
    let lasted = begun.elapsed();
    assert!(lasted > Duration::from_secs(25) && lasted < Duration::from_secs(45), "{lasted:?}");
    assert_eq!(stage.ssh(&["echo in"]).good(), "in\n");
}
