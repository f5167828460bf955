//! What the gateway costs: OpenSSH's client straight to a machine's sshd against the same through the gateway, in turns, since
//! back-to-back blocks mislead on a busy machine. Prints medians and their ratio.
//!
//! `cargo bench -p mashines-gateway`

// A failed unwrap is a failed run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::Stdio;
use std::time::Instant;

use common::Stage;
use tokio::process::Command;

const ROUNDS: usize = 7;

/// Megabytes that a round moves.
const MEGABYTES: u32 = 256;

async fn seconds(mut command: Command) -> f64 {
    let since = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().await.unwrap();
    assert!(status.success());
    since.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn direct(stage: &Stage, options: &[&str], command: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(stage.options("ann")).args(options);
    ssh.args(["-p", &stage.machine_port.to_string(), "root@::1", command]);
    ssh
}

async fn compare(what: &str, stage: &Stage, options: &[&str], command: &str) {
    let (mut straight, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        straight.push(seconds(direct(stage, options, command)).await);
        through.push(seconds(stage.ssh_with("ann", "web", options, &[command])).await);
    }
    let (straight, through) = (median(straight), median(through));
    println!(
        "{what}: direct {:.0} ms, through the gateway {:.0} ms, ratio {:.2}",
        straight * 1e3,
        through * 1e3,
        straight / through
    );
}

#[tokio::main]
async fn main() {
    let stage = Stage::with(|config| config.ssh_limits.per_source_per_second = 1000).await;
    let zeros = format!("head -c {MEGABYTES}M /dev/zero");
    for cipher in ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"] {
        let option = format!("Ciphers={cipher}");
        compare(&format!("{MEGABYTES} MB down, {cipher}"), &stage, &["-o", &option], &zeros).await;
    }
    compare("ssh host true", &stage, &[], "true").await;
}
