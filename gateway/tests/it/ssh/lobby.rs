//! The lobby, through OpenSSH's client. The commands themselves are the CLI's and tested there; here control is not there, and what is
//! looked at is that the lobby passes words, output, exit codes and keys.

use std::process::Stdio;
use std::time::Duration;

use crate::common::{Stage, finish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_with_its_own_exit_code() {
    let stage = Stage::new().await;
    let help = finish(stage.ssh("ann", "lobby", "help"), b"").await;
    assert_eq!(help.code, Some(0), "{help:?}");
    assert!(help.text().contains("launch") && !help.text().contains('\r'), "{help:?}");
    let wrong = finish(stage.ssh("ann", "anybody", "mashines lunch"), b"").await;
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.err.contains("launch"), "{wrong:?}");
    let ls = finish(stage.ssh("ann", "lobby", "ls"), b"").await;
    assert_eq!(ls.code, Some(6), "control is not there: {ls:?}");
    let open = finish(stage.ssh("ann", "lobby", "ls 'x"), b"").await;
    assert_eq!(open.code, Some(2), "{open:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_standard_input_are_commands() {
    let stage = Stage::new().await;
    let output = finish(stage.ssh_with("ann", "lobby", &["-T"], &[]), b"--version\n\nlunch").await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.text().starts_with("mashines "), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_files_in_the_lobby() {
    let stage = Stage::new().await;
    let mut sftp = Command::new("sftp");
    sftp.args(stage.options("ann")).args(["-P", &stage.gateway.port().to_string(), "lobby@127.0.0.1"]);
    let output = finish(sftp, b"ls\n").await;
    assert_ne!(output.code, Some(0));
    assert!(output.err.contains("log in as one of your machines"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_edits_runs_and_leaves() {
    let stage = Stage::new().await;
    let mut ssh = stage.ssh_with("ann", "lobby", &["-tt"], &[]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut seen = String::new();
    async fn until(screen: &mut tokio::process::ChildStdout, seen: &mut String, wanted: &str) {
        let mut buffer = [0u8; 4096];
        let reading = async {
            while !seen.contains(wanted) {
                let length = screen.read(&mut buffer).await.unwrap();
                assert_ne!(length, 0, "ended before {wanted:?}: {seen:?}");
                seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), reading).await.is_err() {
            panic!("no {wanted:?} in {seen:?}");
        }
        seen.clear();
    }
    until(&mut screen, &mut seen, "mashines> ").await;
    keys.write_all(b"--versiom\x7fn\r").await.unwrap();
    until(&mut screen, &mut seen, "mashines 0.").await;
    keys.write_all(b"lau\t").await.unwrap();
    until(&mut screen, &mut seen, "mashines> launch ").await;
    keys.write_all(b"\x03").await.unwrap();
    until(&mut screen, &mut seen, "^C\r\n").await;
    keys.write_all(b"exit\r").await.unwrap();
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status:?}");
}
