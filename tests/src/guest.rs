//! Facts about a running guest that tell one instance of it from another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::person::{Door, Person};

/// What a guest says of itself at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Drawn at boot: another one means another boot.
    pub boot_id: String,
    /// Since boot.
    pub uptime: Duration,
    /// The guest's wall clock minus ours, in milliseconds, at the middle of the exchange.
    pub clock_off_ms: i64,
    /// PID and start time of sshd's listener and of every process named in the question.
    pub processes: Vec<String>,
}

/// Asks a guest through a door. `pids` are processes whose start time is reported, so that a PID reused is seen.
pub fn facts(person: &Person, slug: &str, door: Door, pids: &[u32]) -> Result<Facts> {
    let stats: Vec<String> = pids.iter().map(|pid| format!("/proc/{pid}/stat")).collect();
    // The clock goes first and last: the shell's own start-up is before it, the connection's end after it.
    let script = format!(
        "read ignored; date +%s%N; cat /proc/sys/kernel/random/boot_id /proc/uptime; awk '{{print $1, $2, $22}}' /proc/1/stat {}",
        stats.join(" ")
    );
    let (before, text, after) = timed(person, slug, door, &script)?;
    let mut lines = text.lines();
    let mut next = || lines.next().context("the guest's answer is short");
    let guest_ns: i128 = next()?.trim().parse().context("the guest's clock")?;
    let boot_id = next()?.trim().to_owned();
    let uptime: f64 = next()?.split(' ').next().unwrap_or("").parse().context("the guest's uptime")?;
    let processes = lines.map(str::to_owned).collect();
    let middle = i128::midpoint(since_epoch_ns(before)?, since_epoch_ns(after)?);
    let clock_off_ms = i64::try_from((guest_ns - middle) / 1_000_000)?;
    Ok(Facts { boot_id, uptime: Duration::from_secs_f64(uptime), clock_off_ms, processes })
}

/// The first line of the answer is made after a line of ours reached the guest: the exchange is timed, not the login.
fn timed(person: &Person, slug: &str, door: Door, script: &str) -> Result<(SystemTime, String, SystemTime)> {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::Stdio;
    let mut child = person
        .ssh(slug, door)
        .arg("--")
        .arg(format!("echo ready; {script}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("ssh has no standard input")?;
    let mut output = BufReader::new(child.stdout.take().context("ssh has no standard output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    let before = SystemTime::now();
    let typed = writeln!(input, "go");
    let mut text = String::new();
    output.read_line(&mut text)?;
    let after = SystemTime::now();
    output.read_to_string(&mut text)?;
    drop(input);
    let done = child.wait_with_output()?;
    if !done.status.success() || typed.is_err() {
        anyhow::bail!("the guest did not answer: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok((before, text, after))
}

fn since_epoch_ns(time: SystemTime) -> Result<i128> {
    Ok(i128::try_from(time.duration_since(UNIX_EPOCH)?.as_nanos())?)
}
