//! Shells and commands, by OpenSSH's client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::{Duration, Instant};

use common::{Stage, ends, finish, memory_kib, noise};

#[test]
fn exit_code_output_and_errors_are_the_commands_own() {
    let stage = Stage::new();
    let output = stage.ssh(&["echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.text().as_str(), output.err.as_str()), (Some(7), "out\n", "err\n"));
    assert_eq!(stage.ssh(&["kill -9 $$"]).code, Some(255));
    assert_eq!(stage.ssh(&["no-such-program"]).code, Some(127));
}

#[test]
fn the_environment_is_the_accounts_the_machines_and_the_clients_language() {
    let stage = Stage::new();
    let mut command = stage.client("ssh", "ann");
    command.args(["-o", "SendEnv=LC_TEST LD_TEST", "root@127.0.0.1"]);
    command.arg("echo $USER $HOME $FLY_MACHINE_ID $LC_TEST $LD_TEST; echo ${SSH_CONNECTION%% *}; pwd");
    command.env("LC_TEST", "lc").env("LD_TEST", "ld");
    assert_eq!(finish(command, b"").good(), "root /root m lc\n127.0.0.1\n/root\n");
}

#[test]
fn a_shell_reads_commands_and_ends_with_its_input() {
    let stage = Stage::new();
    let mut command = stage.client("ssh", "ann");
    command.args(["-T", "root@127.0.0.1"]);
    assert_eq!(finish(command, b"echo one\nexit 3\n").code, Some(3));
}

#[test]
fn a_terminal_has_a_size_and_a_name_and_ends_its_shell_by_its_keys() {
    let stage = Stage::new();
    // script(1) gives the client a terminal of its own.
    let mut command = std::process::Command::new("timeout");
    let line = format!("stty rows 41 cols 97; {} -tt root@127.0.0.1", stage.line());
    command.args(["60", "script", "-qec", &line, "/dev/null"]).env("TERM", "xterm");
    let output = finish(command, b"stty size; tty; echo $TERM; exit 5\n");
    let text = output.text();
    assert!(text.contains("41 97") && text.contains("/dev/pts/") && text.contains("xterm"), "{text}");
    assert_eq!(output.code, Some(5), "{text}");
}

#[test]
fn a_window_that_changes_tells_the_program() {
    let stage = Stage::new();
    let mut command = std::process::Command::new("timeout");
    let inside = "trap \"stty size; exit 0\" WINCH; echo begun; while :; do sleep 0.1; done";
    // Again and again, since nobody out there sees when the program is ready for it; the first that fails is after the end.
    let changes =
        "while sleep 1 && stty rows 33 cols 66 </dev/tty; do sleep 1; stty rows 34 cols 66 </dev/tty; done";
    let line = format!("stty rows 20 cols 50; ({changes}) & {} -tt root@127.0.0.1 '{inside}'", stage.line());
    command.args(["60", "script", "-qec", &line, "/dev/null"]).env("TERM", "xterm");
    let text = finish(command, b"").text();
    assert!(text.contains("33 66") || text.contains("34 66"), "{text}");
}

#[test]
fn interrupt_at_a_terminal_reaches_the_program_alone() {
    let stage = Stage::new();
    let mut command = stage.client("ssh", "ann");
    command.args([
        "-tt",
        "root@127.0.0.1",
        "sh -c 'trap \"echo caught; exit 9\" INT; echo begun; while :; do sleep 0.1; done'",
    ]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("begun") {
        assert_ne!(output.read_line(&mut text).unwrap(), 0, "{text}");
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    output.read_to_string(&mut text).unwrap();
    assert!(text.contains("caught"), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn megabytes_go_both_ways_unchanged() {
    let stage = Stage::new();
    let data = noise(10_000_000);
    let mut command = stage.client("ssh", "ann");
    command.args(["root@127.0.0.1", "cat"]);
    let output = finish(command, &data);
    assert_eq!(output.code, Some(0), "{}", output.err);
    assert!(output.out == data, "{} bytes came back", output.out.len());
}

#[test]
fn a_client_that_reads_nothing_costs_no_memory_and_stops_its_program() {
    let stage = Stage::new();
    stage.ssh(&["true"]).good();
    let before = memory_kib(stage.server_pid(), "VmRSS");
    let (mut client, pid) = stage.stay(&[], "echo $$; exec cat /dev/zero");
    std::thread::sleep(Duration::from_secs(3));
    let after = memory_kib(stage.server_pid(), "VmRSS");
    // A window is 2 MiB; so much may be on its way.
    assert!(after < before + 16 * 1024, "{before} KiB grew to {after}");
    client.kill().unwrap();
    client.wait().unwrap();
    ends(&pid);
}

#[test]
fn a_program_that_reads_nothing_stops_its_client_and_no_other_channel() {
    let stage = Stage::new();
    let control = stage.path("control");
    let master = ["-M", "-S", control.as_str()];
    let (mut stalled, pid) = stage.stay(&master, "echo $$; exec sleep 60");
    let mut input = stalled.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        // Ends when the client is killed.
        let chunk = noise(1 << 20);
        while input.write_all(&chunk).is_ok() {}
    });
    std::thread::sleep(Duration::from_secs(2));
    let mut command = stage.client("ssh", "ann");
    command.args(["-S", &control, "root@127.0.0.1", "echo alive"]);
    assert_eq!(finish(command, b"").good(), "alive\n");
    assert!(memory_kib(stage.server_pid(), "VmRSS") < 64 * 1024);
    stalled.kill().unwrap();
    stalled.wait().unwrap();
    writer.join().unwrap();
    ends(&pid);
}

#[test]
fn a_killed_client_takes_its_process_group_along() {
    let stage = Stage::new();
    for options in [&[][..], &["-tt"][..]] {
        let (mut client, pids) =
            stage.stay(options, "sh -c 'trap \"\" HUP TERM; sleep 300 & echo $! $$; wait; sleep 300'");
        client.kill().unwrap();
        client.wait().unwrap();
        let pids: Vec<&str> = pids.split_whitespace().collect();
        assert_eq!(pids.len(), 2);
        pids.into_iter().for_each(ends);
    }
}

#[test]
fn what_is_left_in_the_background_lives_on_when_its_session_ended_well() {
    let stage = Stage::new();
    let pid = stage.ssh(&["sleep 100 >/dev/null 2>&1 </dev/null & echo $!"]).good();
    let pid = pid.trim();
    std::thread::sleep(Duration::from_secs(3));
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    std::process::Command::new("kill").arg(pid).status().unwrap();
}

#[test]
fn many_sessions_share_one_connection() {
    let stage = Stage::new();
    let control = stage.path("control");
    let (mut master, _) = stage.stay(&["-M", "-S", &control], "echo up; exec sleep 60");
    let begun = Instant::now();
    let clients: Vec<_> = (0..40)
        .map(|n| {
            let mut command = stage.client("ssh", "ann");
            command.args(["-S", &control, "root@127.0.0.1", &format!("sleep 1; echo {n}")]);
            std::thread::spawn(move || finish(command, b"").good())
        })
        .collect();
    for (n, client) in clients.into_iter().enumerate() {
        assert_eq!(client.join().unwrap(), format!("{n}\n"));
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "one after the other: {:?}", begun.elapsed());
    // And they leave no terminal, pipe or process behind.
    for _ in 0..50 {
        let mut command = stage.client("ssh", "ann");
        command.args(["-tt", "-S", &control, "root@127.0.0.1", "true"]);
        finish(command, b"").good();
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", stage.server_pid())).unwrap().count();
    assert!(open < 30, "{open} descriptors are open");
    master.kill().unwrap();
    master.wait().unwrap();
}
