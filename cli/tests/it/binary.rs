//! The binary as a person has it: settings in a file, a token, ssh and scp in the PATH.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::{Fleet, TOKEN, machine};
use mashines_fleet::pki;
use mashines_fleet::record::MachineState;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

/// Runs `mashines` with settings and programs of its own.
async fn mashines(fleet: &Fleet, words: &[&str], stdin: &str) -> Output {
    let programs = fleet.directory.path().join("bin");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mashines"));
    command.args(words).env_clear().env("MASHINES_CONFIG", fleet.config()).env("PATH", programs);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    child.wait_with_output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Puts a program into the PATH that prints its arguments, a line each, and ends with `code`.
fn program(fleet: &Fleet, name: &str, code: u8) {
    let file = fleet.directory.path().join("bin").join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, format!("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit {code}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

async fn logged_in() -> Fleet {
    let fleet = Fleet::start().await;
    let ca = fleet.ca_file().display().to_string();
    let login = mashines(&fleet, &["login", "--api", &fleet.url, "--token", "-", "--ca", &ca], TOKEN).await;
    assert_eq!(login.status.code(), Some(0), "{}", text(&login.stderr));
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    fleet
}

#[tokio::test]
async fn login_keeps_what_works_readable_by_its_owner_only() {
    let fleet = logged_in().await;
    let mode = std::fs::metadata(fleet.config()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listed = mashines(&fleet, &["ls", "--json"], "").await;
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["name"], "web");
}

#[tokio::test]
async fn a_login_that_does_not_work_is_not_kept() {
    let fleet = Fleet::start().await;
    let ca = fleet.ca_file().display().to_string();
    let login = ["login", "--api", &fleet.url, "--ca", &ca];
    let wrong_token = mashines(&fleet, &login, "another\n").await;
    assert_eq!(wrong_token.status.code(), Some(4), "{}", text(&wrong_token.stderr));
    assert!(!text(&wrong_token.stderr).contains("another"));
    let other_fleet = Fleet::start().await;
    let login = ["login", "--api", &other_fleet.url, "--ca", &ca];
    let wrong_ca = mashines(&fleet, &login, TOKEN).await;
    assert_eq!(wrong_ca.status.code(), Some(6));
    assert!(text(&wrong_ca.stderr).contains("certificate"), "{}", text(&wrong_ca.stderr));
    assert!(!fleet.config().exists());
    let plain = mashines(&fleet, &["login", "--api", "http://127.0.0.1:1", "--ca", &ca], TOKEN).await;
    assert_eq!(plain.status.code(), Some(2));
}

#[tokio::test]
async fn a_fingerprint_is_enough_to_know_the_fleet() {
    let fleet = Fleet::start().await;
    let pin = format!("sha256:{}", pki::fingerprint(fleet.ca.certificate_pem()).unwrap());
    let login = ["login", "--api", &fleet.url, "--ca-fingerprint", &pin];
    let good = mashines(&fleet, &login, TOKEN).await;
    assert_eq!(
        text(&good.stdout).split(';').next(),
        Some("logged in to mashine.test as alice, an administrator")
    );
    assert_eq!(mashines(&fleet, &["ls"], "").await.status.code(), Some(0));
    let other = format!("sha256:{}", "0".repeat(64));
    let login = ["login", "--api", &fleet.url, "--ca-fingerprint", &other];
    assert_eq!(mashines(&fleet, &login, TOKEN).await.status.code(), Some(6));
}

#[tokio::test]
async fn enter_hands_ssh_the_door_the_key_alias_and_the_fleets_ca() {
    let fleet = logged_in().await;
    program(&fleet, "ssh", 42);
    let entered = mashines(&fleet, &["enter", "web", "--via", "port", "--", "echo", "a  b"], "").await;
    assert_eq!(entered.status.code(), Some(42), "{}", text(&entered.stderr));
    let known = fleet.directory.path().join("known_hosts");
    let expected = [
        "-o",
        "HostKeyAlias=web.mashine.test",
        "-o",
        &format!("UserKnownHostsFile=~/.ssh/known_hosts \"{}\"", known.display()),
        "-p",
        "2201",
        "root@192.0.2.1",
        "--",
        "echo 'a  b'",
    ];
    assert_eq!(text(&entered.stdout).lines().collect::<Vec<_>>(), expected);
    let line = std::fs::read_to_string(known).unwrap();
    assert_eq!(
        line,
        "@cert-authority *.mashine.test,mashine.test,[*.mashine.test]:* ssh-ed25519 AAAAC3Nza test\n"
    );
    let gateway = mashines(&fleet, &["enter", "web", "--via", "gateway"], "").await;
    assert!(text(&gateway.stdout).ends_with("-p\n22\nweb@mashine.test\n"), "{}", text(&gateway.stdout));
}

#[tokio::test]
async fn enter_takes_the_first_door_that_answers() {
    let fleet = logged_in().await;
    program(&fleet, "ssh", 0);
    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = door.local_addr().unwrap().port();
    {
        let mut inner = fleet.fake.lock();
        // Nothing listens on port 22 of this one; a connection is refused at once or has no route.
        inner.machines[0].ipv6 = "100::1".parse().unwrap();
        let ssh = inner.machines[0].ssh.as_mut().unwrap();
        (ssh.ipv4, ssh.port) = (vec!["127.0.0.1".parse().unwrap()], port);
    }
    let entered = mashines(&fleet, &["enter", "web"], "").await;
    let said = text(&entered.stdout);
    assert!(said.ends_with(&format!("-p\n{port}\nroot@127.0.0.1\n")), "{said} {}", text(&entered.stderr));
}

#[tokio::test]
async fn without_ssh_or_without_the_machine_the_code_is_255() {
    let fleet = logged_in().await;
    let none = mashines(&fleet, &["enter", "web", "--via", "port"], "").await;
    assert_eq!(none.status.code(), Some(255));
    assert!(text(&none.stderr).contains("apt install openssh-client"), "{}", text(&none.stderr));
    assert_eq!(mashines(&fleet, &["enter", "wbe"], "").await.status.code(), Some(255));
    assert_eq!(mashines(&fleet, &["exec", "web", "--", "refused"], "").await.status.code(), Some(255));
}

#[tokio::test]
async fn cp_hands_scp_paths_that_it_cannot_misread() {
    let fleet = logged_in().await;
    program(&fleet, "scp", 0);
    let words = ["cp", "-r", "--via", "ipv6", "-x", "./a:b", "web:/srv"];
    let refused = mashines(&fleet, &words, "").await;
    assert_eq!(refused.status.code(), Some(2), "an option that scp has and cp has not");
    let words = ["cp", "-r", "--via", "ipv6", "./a:b", "notes", "web:/srv"];
    let copied = mashines(&fleet, &words, "").await;
    let said = text(&copied.stdout);
    let ends = "-P\n22\n-r\n--\n./a:b\nnotes\nroot@[2001:db8::13e]:/srv\n";
    assert!(said.ends_with(ends), "{said} {}", text(&copied.stderr));
}

#[tokio::test]
async fn exec_passes_standard_input_on() {
    let fleet = logged_in().await;
    let ran = mashines(&fleet, &["exec", "web", "-i", "--", "echo", "x"], "line\n").await;
    assert_eq!((text(&ran.stdout).as_str(), text(&ran.stderr).as_str()), ("x\n", "to err\n"));
    let asked = fleet.fake.lock().asked.last().unwrap().1.clone();
    assert_eq!(asked["stdin"], "line\n");
}

#[tokio::test]
async fn an_api_that_is_gone_is_told_with_its_address() {
    let fleet = logged_in().await;
    let config = std::fs::read_to_string(fleet.config()).unwrap();
    std::fs::write(fleet.config(), config.replace(&fleet.url, "https://127.0.0.1:1")).unwrap();
    let listed = mashines(&fleet, &["ls"], "").await;
    assert_eq!(listed.status.code(), Some(6));
    let said = text(&listed.stderr);
    assert!(
        said.contains("https://127.0.0.1:1/v1/machines") && said.contains("next: mashines doctor"),
        "{said}"
    );
    assert!(!said.contains(TOKEN));
    let doctor = mashines(&fleet, &["doctor", "--json"], "").await;
    let doctor: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let api = doctor["checks"].as_array().unwrap().iter().find(|c| c["name"] == "api").unwrap().clone();
    assert_eq!(api["ok"], false);
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error_to_talk_about() {
    let fleet = Fleet::start().await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mashines"));
    command.args(["completions", "bash"]).env("MASHINES_CONFIG", fleet.config());
    let output =
        command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""));
}

#[tokio::test]
async fn completions_are_scripts_of_their_shells() {
    let fleet = Fleet::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let script = mashines(&fleet, &["completions", shell], "").await;
        assert!(text(&script.stdout).contains("migrate"), "{shell}");
    }
    if Path::new("/bin/bash").exists() {
        let script = mashines(&fleet, &["completions", "bash"], "").await.stdout;
        let file = fleet.directory.path().join("completion");
        std::fs::write(&file, script).unwrap();
        let checked = std::process::Command::new("/bin/bash").arg("-n").arg(file).status().unwrap();
        assert!(checked.success());
    }
}
