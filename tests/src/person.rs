//! A person on the internet with stock OpenSSH and the `mashines` command.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::netns::{ENTRY_IPV4, Place, Topology};
use crate::run::run;

const KNOWN_HOSTS: &str = "known_hosts";

/// A counter for [`Person::session`]: a line five times a second. It waits with bash's own `read`: starting a process for each tick would be the
/// heaviest thing that an emulated machine does.
pub const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo tick $i; read -t 0.2; done";

/// The ways to a machine's shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// `ssh root@<slug>.mashine.dev`: IPv6, straight to the machine's own sshd.
    Ipv6,
    /// `ssh -p <port> root@entry160.mashine.dev`: the shared IPv4 port.
    Port(u16),
    /// `ssh <slug>@mashine.dev`: the gateway.
    Gateway,
    /// `ssh -J mashine.dev root@<slug>`: through the gateway.
    Jump,
    /// `ssh root@<slug>.mashine.dev` without IPv6: the gateway again, which knows the machine by the key and the address.
    Ipv4,
    /// `ssh -p 443 <slug>@mashine.dev`: where a network lets nothing else out.
    Https,
}

/// A person: a key, and a place on the internet.
#[derive(Clone, Debug)]
pub struct Person {
    topology: Topology,
    key: PathBuf,
    config: PathBuf,
    domain: String,
}

impl Person {
    /// Makes a key and an `ssh_config` that no file of the user who runs the tests leaks into.
    pub fn new(topology: &Topology, dir: &Path, domain: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let key = dir.join("id_ed25519");
        if !key.exists() {
            let mut keygen = Command::new("ssh-keygen");
            run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "person", "-f"]).arg(&key))?;
        }
        let config = dir.join("ssh_config");
        std::fs::write(
            &config,
            format!(
                "Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n  UserKnownHostsFile {}\n  \
                 GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n  ConnectTimeout 20\n  BatchMode yes\n  \
                 ServerAliveInterval 15\n",
                key.display(),
                dir.join(KNOWN_HOSTS).display()
            ),
        )?;
        Ok(Self { topology: topology.clone(), key, config, domain: domain.to_owned() })
    }

    /// From now on this person trusts the fleet's SSH CA, by the line of `mashines known-hosts`, and nothing else.
    pub fn trust(&self, known_hosts: &str) -> Result<()> {
        Ok(std::fs::write(self.key.with_file_name(KNOWN_HOSTS), known_hosts)?)
    }

    /// The public key, one line.
    pub fn public_key(&self) -> Result<String> {
        let path = self.key.with_extension("pub");
        let line =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(line.trim().to_owned())
    }

    /// The `ssh` line that a person would type.
    pub fn line(&self, slug: &str, door: Door) -> String {
        format!("ssh {}", self.destination(slug, door).join(" "))
    }

    fn destination(&self, slug: &str, door: Door) -> Vec<String> {
        let Self { domain, .. } = self;
        let words = match door {
            Door::Ipv6 => vec![format!("root@{slug}.{domain}")],
            Door::Port(port) => vec!["-p".into(), port.to_string(), format!("root@entry160.{domain}")],
            Door::Gateway => vec![format!("{slug}@{domain}")],
            Door::Ipv4 => vec![format!("root@{slug}.{domain}")],
            Door::Https => vec!["-p".into(), "443".into(), format!("{slug}@{domain}")],
            // A name without the domain is trusted by an alias, as `mashines ssh-config` writes it.
            Door::Jump => vec![
                "-o".into(),
                format!("HostKeyAlias={slug}.{domain}"),
                "-J".into(),
                format!("lobby@{domain}"),
                format!("root@{slug}"),
            ],
        };
        // The name of a machine has an A record for its entry, so the family decides which door a name means.
        let family = if matches!(door, Door::Ipv6) { "-6" } else { "-4" };
        [vec![family.to_owned()], words].concat()
    }

    /// `ssh` through a door, without a command yet.
    pub fn ssh(&self, slug: &str, door: Door) -> Command {
        let mut command = self.topology.command(Place::Client, "ssh");
        command.arg("-F").arg(&self.config).args(self.destination(slug, door));
        command
    }

    /// Runs a command line in the machine and returns its output.
    pub fn sh(&self, slug: &str, door: Door, script: &str) -> Result<String> {
        run(self.ssh(slug, door).arg("--").arg(script))
    }

    /// `scp` between this person and a machine's own sshd.
    pub fn scp(&self, from: &str, to: &str) -> Result<()> {
        let mut command = self.topology.command(Place::Client, "scp");
        run(command.arg("-6").arg("-q").arg("-F").arg(&self.config).args([from, to])).map(drop)
    }

    /// The fleet's domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// How other programs run ssh as this person.
    pub fn ssh_command(&self) -> String {
        format!("ssh -4 -F {}", self.config.display())
    }

    /// A program where the person is.
    pub fn command(&self, program: &str) -> Command {
        self.topology.command(Place::Client, program)
    }

    /// `sftp` without a destination yet.
    pub fn sftp(&self) -> Command {
        let mut command = self.command("sftp");
        command.arg("-4").arg("-F").arg(&self.config);
        command
    }

    /// First contact: comes to the lobby with a key that nobody knows, and gives that name when it is asked for one.
    pub fn sign_up(&self, name: &str) -> Result<String> {
        let askpass = self.key.with_file_name("askpass");
        std::fs::write(&askpass, format!("#!/bin/sh\necho {name}\n"))?;
        std::fs::set_permissions(&askpass, std::fs::Permissions::from_mode(0o700))?;
        let mut command = self.topology.command(Place::Client, "ssh");
        command.args(["-4", "-o", "BatchMode=no", "-F"]).arg(&self.config).arg(&self.domain).arg("whoami");
        command.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", "none");
        run(&mut command)
    }

    /// A command of the lobby: `ssh mashine.dev ls`.
    pub fn lobby(&self, words: &str) -> Result<String> {
        let mut command = self.topology.command(Place::Client, "ssh");
        run(command.arg("-4").arg("-F").arg(&self.config).arg(format!("lobby@{}", self.domain)).arg(words))
    }

    /// What a name resolves to, asked of the fleet's own name server.
    pub fn dig(&self, name: &str, kind: &str) -> Result<Vec<String>> {
        let mut command = self.topology.command(Place::Client, "dig");
        command.args(["+short", "+time=2", "+tries=3", &format!("@{ENTRY_IPV4}"), name, kind]);
        Ok(run(&mut command)?.lines().map(str::to_owned).collect())
    }

    /// An interactive session with a pty, whose lines come as they arrive.
    pub fn session(&self, slug: &str, door: Door, script: &str) -> Result<Session> {
        let mut child = self
            .ssh(slug, door)
            .arg("-tt")
            .arg("--")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start ssh")?;
        let input = child.stdin.take().context("ssh has no standard input")?;
        let output = child.stdout.take().context("ssh has no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if sender.send((Instant::now(), line.trim_end().to_owned())).is_err() {
                    return;
                }
            }
        });
        Ok(Session { child, input, lines })
    }
}

/// An open session.
pub struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<(Instant, String)>,
}

impl Session {
    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("the session does not take input")
    }

    /// The next line, within a time.
    pub fn line(&mut self, timeout: Duration) -> Result<String> {
        match self.lines.recv_timeout(timeout) {
            Ok((_, line)) => Ok(line),
            Err(e) => bail!("no line of the session within {} s: {e}", timeout.as_secs()),
        }
    }

    /// All lines that have arrived, with the time of each.
    pub fn arrived(&mut self) -> Vec<(Instant, String)> {
        self.lines.try_iter().collect()
    }

    /// Whether ssh still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
