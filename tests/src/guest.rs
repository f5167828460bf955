//! Facts about a running guest that tell one instance of it from another.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
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
    /// The guest's wall clock minus ours, in milliseconds: the least that explains every exchange.
    pub clock_off_ms: i64,
    /// PID and start time of sshd's listener and of every process named in the question.
    pub processes: Vec<String>,
}

/// How often the clock is asked. The guest read it between question and answer, so that each exchange bounds the difference; those
/// that had to wait for a CPU do so badly.
const EXCHANGES: usize = 8;

/// Asks a guest through a door. `pids` are processes whose start time is reported, so that a PID reused is seen.
pub fn facts(person: &Person, slug: &str, door: Door, pids: &[u32]) -> Result<Facts> {
    let stats: Vec<String> = pids.iter().map(|pid| format!("/proc/{pid}/stat")).collect();
    let script = format!(
        "for i in $(seq {EXCHANGES}); do read ignored; date +%s%N; done; \
         cat /proc/sys/kernel/random/boot_id /proc/uptime; awk '{{print $1, $2, $22}}' /proc/1/stat {}",
        stats.join(" ")
    );
    let mut child = person
        .ssh(slug, door)
        .arg("--")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("ssh has no standard input")?;
    let mut output = BufReader::new(child.stdout.take().context("ssh has no standard output")?);
    let answer = converse(&mut input, &mut output);
    drop(input);
    let done = child.wait_with_output()?;
    answer.with_context(|| {
        format!("the guest did not answer: {}", String::from_utf8_lossy(&done.stderr).trim())
    })
}

fn converse(input: &mut impl Write, output: &mut impl BufRead) -> Result<Facts> {
    let (mut least, mut most) = (i128::MIN, i128::MAX);
    for _ in 0..EXCHANGES {
        let before = since_epoch_ns(SystemTime::now())?;
        writeln!(input, "now")?;
        let guest: i128 = line(output)?.parse().context("the guest's clock")?;
        let after = since_epoch_ns(SystemTime::now())?;
        (least, most) = (least.max(guest - after), most.min(guest - before));
    }
    let off = if least > 0 { least } else { most.min(0) };
    let clock_off_ms = i64::try_from(off / 1_000_000)?;
    let boot_id = line(output)?;
    let uptime = line(output)?;
    let uptime: f64 = uptime.split(' ').next().unwrap_or("").parse().context("the guest's uptime")?;
    let processes = output.lines().collect::<Result<_, _>>()?;
    Ok(Facts { boot_id, uptime: Duration::from_secs_f64(uptime), clock_off_ms, processes })
}

fn line(output: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn since_epoch_ns(time: SystemTime) -> Result<i128> {
    Ok(i128::try_from(time.duration_since(UNIX_EPOCH)?.as_nanos())?)
}
