//! What goes on through the gateway while a machine moves.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::person::{Door, Person};
use crate::run::run;

/// `ssh -N -L`, ended with this value.
pub struct Forward(Child);

impl Forward {
    /// From a port of the person to one of the machine.
    pub fn open(person: &Person, slug: &str, from: u16, to: u16) -> Result<Self> {
        let mut ssh = person.ssh(slug, Door::Gateway);
        ssh.args(["-N", "-o", "ExitOnForwardFailure=yes", "-L", &format!("{from}:localhost:{to}")]);
        Ok(Self(ssh.stdin(Stdio::null()).spawn().context("cannot start ssh")?))
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `sftp` uploads, one right after the other for as long as is wanted, and compared afterwards.
pub struct Upload {
    child: Child,
    enough: Arc<AtomicBool>,
    /// Ends with how many there were.
    feeder: JoinHandle<Result<usize>>,
    sum: String,
}

/// With a number behind it.
const UPLOADED: &str = "/var/tmp/uploaded.";
/// At 2 Mbit/s each takes 8 s, about as long as a move, so that most of them live through one.
const SIZE: &str = "2M";
const RATE: &str = "2000";

impl Upload {
    /// Begins the first.
    pub fn begin(person: &Person, slug: &str) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("mashines-upload-{slug}"));
        let mut noise = person.command("dd");
        noise.arg("if=/dev/urandom").arg(format!("of={}", file.display()));
        run(noise.args([&format!("bs={SIZE}"), "count=1", "iflag=fullblock", "status=none"]))?;
        let sum = run(person.command("sha256sum").arg(&file))?;
        let sum = sum.split_whitespace().next().context("no checksum")?.to_owned();
        person.sh(slug, Door::Gateway, "mkdir -p /var/tmp")?;
        let mut sftp = person.sftp();
        sftp.args(["-l", RATE, "-b", "-"]).arg(format!("{slug}@{}", person.domain()));
        let sftp = sftp.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = sftp.spawn().context("cannot start sftp")?;
        let input = child.stdin.take().context("sftp has no standard input")?;
        let echoes = BufReader::new(child.stdout.take().context("sftp has no standard output")?);
        let enough = Arc::new(AtomicBool::new(false));
        let feeder = {
            let enough = Arc::clone(&enough);
            thread::spawn(move || feed(input, echoes, &file, &enough))
        };
        Ok(Self { child, enough, feeder, sum })
    }

    /// Whether they go on.
    pub fn goes_on(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the end of the one that is under way; what arrived is what was sent, each time.
    pub fn end(mut self, person: &Person, slug: &str) -> Result<usize> {
        self.enough.store(true, Ordering::Relaxed);
        let status = self.child.wait()?;
        let count = self.feeder.join().map_err(|_| anyhow!("the feeder of sftp panicked"))?;
        ensure!(status.success(), "the uploads ended with {status}: {count:?}");
        let count = count?;
        let there = person.sh(slug, Door::Ipv6, &format!("sha256sum {UPLOADED}*"))?;
        let same = there.lines().filter(|line| line.starts_with(&self.sum)).count();
        ensure!(
            same == count && there.lines().count() == count,
            "{count} times {} arrived as {there}",
            self.sum
        );
        Ok(count)
    }
}

/// Orders an upload whenever one begins, so that the next is always known; sftp says each order when it begins it.
fn feed(
    input: ChildStdin,
    echoes: BufReader<ChildStdout>,
    file: &Path,
    enough: &AtomicBool,
) -> Result<usize> {
    let (mut count, mut input) = (0, Some(input));
    let begins = |echo: &std::io::Result<String>| !matches!(echo, Ok(line) if !line.starts_with("sftp> put"));
    for echo in std::iter::once(Ok("sftp> put".to_owned())).chain(echoes.lines()).filter(begins) {
        echo?;
        if enough.load(Ordering::Relaxed) {
            // The end of its input is the end of sftp, after what was ordered.
            input = None;
        }
        if let Some(input) = &mut input {
            count += 1;
            writeln!(input, "put {} {UPLOADED}{count}", file.display())?;
        }
    }
    Ok(count)
}
