//! Ports and sockets through a machine, by OpenSSH's client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use common::{Stage, finish, free_port, noise};

/// Reads to the end of the sending and says all of it back.
fn echo(mut stream: impl Read + Write) {
    let mut heard = Vec::new();
    if stream.read_to_end(&mut heard).is_ok() {
        let _gone = stream.write_all(&heard);
    }
}

fn echo_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|s| drop(std::thread::spawn(|| echo(s))))
    });
    port
}

fn reach(port: u16) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "port {port}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn talk(mut stream: TcpStream, data: &[u8]) -> Vec<u8> {
    stream.write_all(data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    heard
}

#[test]
fn a_local_forward_reaches_a_port_behind_the_machine() {
    let stage = Stage::new();
    let (near, far) = (free_port(), echo_port());
    let (mut client, _) = stage.stay(&[&format!("-L{near}:localhost:{far}")], "echo up; sleep 60");
    let data = noise(2_000_000);
    assert!(talk(reach(near), &data) == data);
    let talks: Vec<_> = (0..16)
        .map(|n| {
            std::thread::spawn(move || {
                assert_eq!(talk(reach(near), format!("{n}").as_bytes()), format!("{n}").as_bytes())
            })
        })
        .collect();
    talks.into_iter().for_each(|talk| talk.join().unwrap());
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn standard_input_goes_to_a_port_and_a_closed_one_is_told() {
    let stage = Stage::new();
    let mut command = stage.client("ssh", "ann");
    command.args(["-W", &format!("127.0.0.1:{}", echo_port()), "root@127.0.0.1"]);
    assert_eq!(finish(command, b"there and back").good(), "there and back");
    let mut command = stage.client("ssh", "ann");
    command.args(["-W", &format!("127.0.0.1:{}", free_port()), "root@127.0.0.1"]);
    let output = finish(command, b"");
    assert!(output.err.contains("refused"), "{}", output.err);
}

#[test]
fn a_machine_is_jumped_through() {
    let (stage, behind) = (Stage::new(), Stage::new());
    let mut command = behind.client("ssh", "ann");
    command.args(["-o", &format!("ProxyCommand={} -W %h:%p root@127.0.0.1", stage.line())]);
    command.args(["root@127.0.0.1", "echo behind"]);
    assert_eq!(finish(command, b"").good(), "behind\n");
}

#[test]
fn a_unix_socket_is_reached_both_ways() {
    let stage = Stage::new();
    let far = stage.path("far");
    let listener = UnixListener::bind(&far).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(echo));
    let (near, back) = (stage.path("near"), stage.path("back"));
    let options = [format!("-L{near}:{far}"), format!("-R{back}:{far}")];
    let (mut client, _) = stage.stay(&[&options[0], &options[1]], "echo up; sleep 60");
    for path in [near, back.clone()] {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"word").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "word");
    }
    client.kill().unwrap();
    client.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::exists(&back).unwrap() {
        assert!(Instant::now() < deadline, "the socket stays");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_remote_forward_leads_back_to_the_client_until_it_leaves() {
    let stage = Stage::new();
    let (there, home) = (free_port(), echo_port());
    let (mut client, _) = stage.stay(&[&format!("-R{there}:127.0.0.1:{home}")], "echo up; sleep 60");
    let data = noise(1_000_000);
    assert!(talk(reach(there), &data) == data);
    client.kill().unwrap();
    client.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", there)).is_ok() {
        assert!(Instant::now() < deadline, "the port stays open");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_remote_port_may_be_the_machines_choice() {
    let stage = Stage::new();
    let mut command = stage.client("ssh", "ann");
    command.args(["-R", "0:127.0.0.1:9", "root@127.0.0.1", "true"]);
    let output = finish(command, b"");
    assert!(output.err.contains("Allocated port"), "{}", output.err);
}

#[test]
fn the_clients_agent_is_reached_from_inside() {
    let stage = Stage::new();
    let socket = stage.path("agent");
    let mut agent = std::process::Command::new("ssh-agent")
        .args(["-D", "-a", &socket])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The file is there before anybody listens at it.
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut add = std::process::Command::new("ssh-add");
    add.args(["-q", &stage.path("stranger")]).env("SSH_AUTH_SOCK", &socket);
    assert!(add.status().unwrap().success());
    let mut command = stage.client("ssh", "ann");
    command.args(["-A", "root@127.0.0.1", "ssh-add -L; echo $SSH_AUTH_SOCK"]).env("SSH_AUTH_SOCK", &socket);
    let text = finish(command, b"").good();
    let public = std::fs::read_to_string(stage.path("stranger.pub")).unwrap();
    let key = public.split(' ').nth(1).unwrap();
    assert!(text.contains(key), "{text}");
    let left = text.lines().last().unwrap().to_owned();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::exists(&left).unwrap() {
        assert!(Instant::now() < deadline, "{left} stays");
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
}
