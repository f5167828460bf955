//! Runs commands, with errors that carry everything the command said, and waits for conditions.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Runs a command to its end. An exit status other than 0 is an error with both outputs in it.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    checked(&shown, output)
}

/// Runs a command with this on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let written = writer.join();
    if output.status.success() && !matches!(written, Ok(Ok(()))) {
        bail!("{shown} ended well but did not read its input");
    }
    checked(&shown, output)
}

fn checked(shown: &str, output: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("{shown}: {}\n{}\n{}", output.status, stdout.trim(), stderr.trim())
}

/// Asks again and again, every `every`, until the answer is there; the last error explains a time-out.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    every: Duration,
    mut ask: impl FnMut() -> Result<T>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(e) if begun.elapsed() > timeout => {
                return Err(e.context(format!("waited {} s for {what}", timeout.as_secs())));
            }
            Err(_) => std::thread::sleep(every),
        }
    }
}
