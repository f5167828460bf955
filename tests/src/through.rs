//! What goes on through the gateway while a machine moves.

use std::io::Write as _;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};

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

/// An `sftp` upload that goes on for as long as the moves take, and is compared afterwards.
pub struct Upload {
    child: Child,
    sum: String,
}

const UPLOADED: &str = "/var/tmp/uploaded";

impl Upload {
    /// Begins one that lasts through so many moves.
    pub fn begin(person: &Person, slug: &str, moves: usize) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("mashines-upload-{slug}"));
        let mut noise = person.command("dd");
        noise.arg("if=/dev/urandom").arg(format!("of={}", file.display()));
        run(noise.args(["bs=1M", &format!("count={}", moves * 6), "status=none"]))?;
        let sum = run(person.command("sha256sum").arg(&file))?;
        let sum = sum.split_whitespace().next().context("no checksum")?.to_owned();
        person.sh(slug, Door::Gateway, "mkdir -p /var/tmp")?;
        // 2 Mbit/s: 25 s for each move.
        let mut sftp = person.sftp();
        sftp.args(["-l", "2000", "-b", "-"]).arg(format!("{slug}@{}", person.domain()));
        let mut child =
            sftp.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot start sftp")?;
        let mut input = child.stdin.take().context("sftp has no standard input")?;
        input.write_all(format!("put {} {UPLOADED}\n", file.display()).as_bytes())?;
        Ok(Self { child, sum })
    }

    /// Whether it is still under way.
    pub fn goes_on(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end; what arrived is what was sent.
    pub fn end(mut self, person: &Person, slug: &str) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the upload ended with {status}");
        let there = person.sh(slug, Door::Ipv6, &format!("sha256sum {UPLOADED}"))?;
        ensure!(there.starts_with(&self.sum), "the upload arrived as {there:?}, not as {}", self.sum);
        Ok(())
    }
}
