//! A fleet of real daemons in a topology: one process a role, so that each can be killed alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mashines_fleet::api;
use serde_json::Value;

use crate::netns::{Place, Topology};
use crate::person::{Door, Person};
use crate::run::{run, run_with_input, wait_for};

/// The fleet's domain.
pub const DOMAIN: &str = "mashine.dev";

/// The port of the echo in machines, UDP and TCP.
pub const ECHO: u16 = 7007;

/// What a process of `mashinesd` does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The only writer of records.
    Control,
    /// Gateway and names.
    Entry,
    /// Machines of a host.
    Host,
    /// Network of a host or an entry.
    Netd,
}

impl Role {
    /// As `mashinesd run --role` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Control => "control",
            Role::Entry => "entry",
            Role::Host => "host",
            Role::Netd => "netd",
        }
    }
}

/// Which roles run where.
pub const ROLES: [(Place, Role); 7] = [
    (Place::Control, Role::Control),
    (Place::Entry, Role::Netd),
    (Place::Entry, Role::Entry),
    (Place::A, Role::Netd),
    (Place::A, Role::Host),
    (Place::B, Role::Netd),
    (Place::B, Role::Host),
];

/// A fleet. It ends with this value, unless it was left ([`Fleet::leave`]) or `MASHINES_KEEP` is set, to look at a failure.
pub struct Fleet {
    /// Its namespaces.
    pub topology: Topology,
    /// The person who owns its machines.
    pub person: Person,
    dir: PathBuf,
    bin: PathBuf,
    daemons: BTreeMap<(Place, Role), Child>,
    keep: bool,
}

impl Fleet {
    /// Brings a fleet up: namespaces, certificates, daemons, a person with an account. `say` hears of each step.
    pub fn up(name: &str, say: &mut dyn FnMut(&str)) -> Result<Self> {
        Self::up_with(name, say, &mut |_, _| Ok(String::new()))
    }

    /// The same; `prepare` runs when the namespaces are there, with a directory of its own, and answers with what the entry's configuration
    /// has besides.
    pub fn up_with(
        name: &str,
        say: &mut dyn FnMut(&str),
        prepare: &mut dyn FnMut(&Topology, &Path) -> Result<String>,
    ) -> Result<Self> {
        let mut fleet = Self::empty(name)?;
        say("namespaces as hosts");
        fleet.topology.up()?;
        let more = prepare(&fleet.topology, &fleet.dir.join("prepared"))?;
        say("certificates and records");
        let token = fleet.found(&more)?;
        say("daemons");
        fleet.start(Place::Control, Role::Control)?;
        fleet.join_all()?;
        for (place, role) in ROLES {
            if role != Role::Control {
                fleet.start(place, role)?;
            }
        }
        fleet.login(&token)?;
        fleet.wait_for_hosts()?;
        fleet.trust()?;
        Ok(fleet)
    }

    /// The person trusts the fleet's SSH CA. The gateway has its certificate soon after it can reach control.
    fn trust(&self) -> Result<()> {
        let printed: Value = self.ask(&["known-hosts"])?;
        let line = printed.get("known_hosts").and_then(Value::as_str).context("no line for known_hosts")?;
        self.person.trust(line)?;
        wait_for("the gateway to prove its name", Duration::from_secs(60), Duration::from_millis(500), || {
            self.person.lobby("ls").map(drop)
        })
    }

    /// A fleet that was left up by [`Fleet::leave`], to look at: it can run commands, not start or kill daemons.
    pub fn attach(name: &str) -> Result<Self> {
        let dir = state_dir(name);
        let topology = Topology::named(name);
        let person = Person::new(&topology, &dir.join("person"), DOMAIN)?;
        Ok(Self { topology, person, dir, bin: bin_dir()?, daemons: BTreeMap::new(), keep: true })
    }

    fn empty(name: &str) -> Result<Self> {
        end(name)?;
        let dir = state_dir(name);
        std::fs::create_dir_all(&dir)?;
        let topology = Topology::named(name);
        let person = Person::new(&topology, &dir.join("person"), DOMAIN)?;
        Ok(Self { topology, person, dir, bin: bin_dir()?, daemons: BTreeMap::new(), keep: false })
    }

    /// Where a place keeps its state.
    pub fn state(&self, place: Place) -> PathBuf {
        self.dir.join(place.name())
    }

    fn config(&self, place: Place) -> PathBuf {
        self.dir.join(format!("{}.toml", place.name()))
    }

    /// A program of ours in a place.
    pub fn program(&self, place: Place, name: &str) -> std::process::Command {
        self.topology.command(place, &self.bin.join(name).to_string_lossy())
    }

    fn found(&self, entry: &str) -> Result<String> {
        for place in [Place::Control, Place::Entry, Place::A, Place::B] {
            std::fs::create_dir_all(self.state(place))?;
            let more = if place == Place::Entry { entry } else { "" };
            std::fs::write(
                self.config(place),
                crate::config::toml(place, &self.state(place), &self.bin) + more,
            )?;
        }
        let mut init = self.program(Place::Control, "mashinesd");
        init.arg("init").arg("--config").arg(self.config(Place::Control)).arg("--json");
        init.args(["--account", "demo", "--ssh-key", &self.person.public_key()?]);
        let answer: Value = serde_json::from_str(&run(&mut init)?).context("the answer of mashinesd init")?;
        Ok(answer.get("token").and_then(Value::as_str).context("mashinesd init gave no token")?.to_owned())
    }

    fn join_all(&self) -> Result<()> {
        for place in [Place::Entry, Place::A, Place::B] {
            let token = wait_for(
                "control to give a join token",
                Duration::from_secs(20),
                Duration::from_millis(200),
                || {
                    let mut token = self.program(Place::Control, "mashinesd");
                    run(token.args(["token", "join", "--config"]).arg(self.config(Place::Control)))
                },
            )?;
            let mut join = self.program(place, "mashinesd");
            join.arg("join").arg("--config").arg(self.config(place)).args(["--control", &api_url()]);
            run_with_input(join.args(["--token", "-"]), token.as_bytes())?;
        }
        Ok(())
    }

    fn login(&self, token: &str) -> Result<()> {
        let ca = self.state(Place::Control).join("pki/control/ca.pem");
        // Everything starts at once on an emulated CPU: the first attempts may find nobody at home.
        wait_for("the login", Duration::from_secs(60), Duration::from_millis(300), || {
            let mut login = self.cli_command();
            login.args(["login", "--api", &api_url(), "--token", "-", "--ca"]).arg(&ca);
            run_with_input(&mut login, token.as_bytes()).map(drop)
        })
    }

    fn wait_for_hosts(&self) -> Result<()> {
        wait_for(
            "both hosts and the entry to report",
            Duration::from_secs(30),
            Duration::from_millis(100),
            || {
                let hosts: Vec<api::Host> = self.ask(&["hosts"])?;
                let alive = hosts.iter().filter(|h| h.alive).count();
                if alive < 3 {
                    bail!("{alive} of 3 report");
                }
                Ok(())
            },
        )
    }

    /// Starts a role in a place. It logs to `PLACE-ROLE.log` in the fleet's directory, at the level of `RUST_LOG`, else `info`.
    pub fn start(&mut self, place: Place, role: Role) -> Result<()> {
        let log_path = self.log(place, role);
        let log = File::options().create(true).append(true).open(&log_path)?;
        let mut command = self.program(place, "mashinesd");
        command.arg("run").arg("--config").arg(self.config(place)).args(["--role", role.name()]);
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
        command.env("RUST_LOG", level).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Its own session: a daemon that the demo leaves up must not hear the terminal's Ctrl-C.
        let child = command.process_group(0).spawn().context("cannot start mashinesd")?;
        std::fs::write(
            self.dir.join(format!("{}-{}.pid", place.name(), role.name())),
            child.id().to_string(),
        )?;
        self.daemons.insert((place, role), child);
        Ok(())
    }

    /// A role's log file.
    pub fn log(&self, place: Place, role: Role) -> PathBuf {
        self.dir.join(format!("{}-{}.log", place.name(), role.name()))
    }

    /// Kills a role with SIGKILL and waits until it is gone.
    pub fn kill(&mut self, place: Place, role: Role) -> Result<()> {
        let mut child = self.daemons.remove(&(place, role)).context("that role does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Kills the monitors of a place with SIGKILL; how many there were.
    pub fn kill_monitors(&self, place: Place) -> Result<usize> {
        let pids = self.monitors(place)?;
        for pid in &pids {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
        Ok(pids.len())
    }

    /// The processes of monitors that belong to a place.
    pub fn monitors(&self, place: Place) -> Result<Vec<i32>> {
        processes_with(&self.state(place).to_string_lossy(), "mashines-vmm")
    }

    /// `mashines … --json`, as the person's command on the internet; the document it prints.
    pub fn ask<T: serde::de::DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let text = run(self.cli_command().arg("--json").args(words))?;
        serde_json::from_str(&text)
            .with_context(|| format!("mashines {words:?} printed something else: {text:?}"))
    }

    /// Copies our echo into a machine, as `/usr/local/bin/echo-server`, and back: files go both ways unharmed. Then runs it, on
    /// [`ECHO`].
    ///
    /// Debian's `fq_codel` drops what the guest itself sent 5 ms ago when its other CPU holds the queue and gets no time: counted as
    /// a drop by the guest, none of the fleet's. So the guest gets the queue that does not.
    pub fn serve_echo_in(&self, slug: &str) -> Result<()> {
        let echo = std::env::var("MASHINES_BIN").context("MASHINES_BIN")? + "/mashines-echo";
        let remote = format!("root@{slug}.mashine.dev:/usr/local/bin/echo-server");
        self.person.scp(&echo, &remote)?;
        let back = self.state(Place::Client).with_extension("back");
        self.person.scp(&remote, &back.to_string_lossy())?;
        ensure!(std::fs::read(&echo)? == std::fs::read(&back)?, "the file came back different");
        let script = format!(
            "tc qdisc replace dev eth0 root pfifo_fast && systemd-run --quiet --unit=echo /usr/local/bin/echo-server {ECHO}"
        );
        self.person.sh(slug, Door::Ipv6, &script).map(drop)
    }

    /// A machine as the API shows it.
    pub fn machine(&self, slug: &str) -> Result<api::Machine> {
        self.ask(&["show", slug])
    }

    /// The place that a machine is at.
    pub fn place_of(&self, slug: &str) -> Result<Place> {
        let host = self.machine(slug)?.host.context("the machine is on no host")?;
        Place::of_host(host.as_str()).with_context(|| format!("{host} is not of this topology"))
    }

    /// Moves a machine to the other host and waits for the end, good or bad: a move that failed is an answer too.
    pub fn migrate(&self, slug: &str) -> Result<api::Migration> {
        self.migrate_with(slug, &[])
    }

    /// As [`Fleet::migrate`], with more words for `mashines migrate`.
    pub fn migrate_with(&self, slug: &str, words: &[&str]) -> Result<api::Migration> {
        let to = self.place_of(slug)?.peer();
        let mut command = self.cli_command();
        command.args(["--json", "migrate", slug, "--to", to.name(), "--wait"]).args(words);
        let output = command.output()?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("mashines migrate {slug}: {}", String::from_utf8_lossy(&output.stderr).trim())
        })
    }

    /// The `mashines` command of the person.
    pub fn cli_command(&self) -> std::process::Command {
        let mut command = self.program(Place::Client, "mashines");
        command.env("MASHINES_CONFIG", self.dir.join("person/config.toml"));
        command
    }

    /// The fleet stays up when this value goes.
    pub fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.keep || std::env::var_os("MASHINES_KEEP").is_some() {
            return;
        }
        for child in self.daemons.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the fleet's logs are in {}", self.dir.display());
        }
        let _ = kill_all(&self.dir);
        self.topology.down();
    }
}

/// The address of the API.
pub fn api_url() -> String {
    format!("https://[{}]:{}", Place::Control.underlay(), crate::config::API_PORT)
}

/// Ends a fleet of this name, whoever brought it up, and forgets its state.
pub fn end(name: &str) -> Result<()> {
    let dir = state_dir(name);
    if dir.exists() {
        kill_all(&dir)?;
        Topology::named(name).down();
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// Whether a fleet of this name was left up.
pub fn is_up(name: &str) -> bool {
    processes_with(&state_dir(name).to_string_lossy(), "mashinesd").is_ok_and(|p| !p.is_empty())
}

fn state_dir(name: &str) -> PathBuf {
    Path::new("/var/lib/mashines-lab").join(name)
}

fn bin_dir() -> Result<PathBuf> {
    let dir = std::env::var_os("MASHINES_BIN").context(
        "MASHINES_BIN must name the directory with mashinesd, mashines and mashines-vmm; scripts/test sets it",
    )?;
    Ok(PathBuf::from(dir))
}

/// Kills every daemon and monitor whose command line names this directory.
fn kill_all(dir: &Path) -> Result<()> {
    let dir = format!("{}/", dir.display());
    wait_for("the fleet's processes to end", Duration::from_secs(10), Duration::from_millis(50), || {
        let mut pids = processes_with(&dir, "mashinesd")?;
        pids.extend(processes_with(&dir, "mashines-vmm")?);
        for pid in &pids {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
        if pids.is_empty() { Ok(()) } else { bail!("{pids:?} still run") }
    })
}

/// Live processes of a program whose command line contains a text.
fn processes_with(text: &str, program: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let cmdline = String::from_utf8_lossy(&cmdline);
        let is_program = cmdline.split('\0').next().is_some_and(|p| p.ends_with(program));
        if is_program && cmdline.contains(text) {
            found.push(pid);
        }
    }
    Ok(found)
}
