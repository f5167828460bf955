//! Network namespaces as hosts, and the wires between them.
//!
//! Topologies carry a prefix, so several stand side by side in one kernel. `ip` is used here: tests build their world with
//! what an operator has, so that a fault of our own netlink code cannot hide itself.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::run;

/// The places of a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The bridge between the hosts.
    Switch,
    /// Where control runs.
    Control,
    /// The entry.
    Entry,
    /// The first host.
    A,
    /// The second host.
    B,
    /// A person on the internet.
    Client,
}

impl Place {
    /// All of them.
    pub const ALL: [Place; 6] =
        [Place::Switch, Place::Control, Place::Entry, Place::A, Place::B, Place::Client];

    /// Its short name: also the host id of `a` and `b`.
    pub fn name(self) -> &'static str {
        match self {
            Place::Switch => "sw",
            Place::Control => "ctl",
            Place::Entry => "entry160",
            Place::A => "a",
            Place::B => "b",
            Place::Client => "client",
        }
    }

    /// Its address on the network between the hosts.
    pub fn underlay(self) -> &'static str {
        match self {
            Place::Switch => "fd00:10::5",
            Place::Control => "fd00:10::1",
            Place::Entry => "fd00:10::e",
            Place::A => "fd00:10::a",
            Place::B => "fd00:10::b",
            Place::Client => "2001:db8:1::2",
        }
    }

    /// The other of the two hosts; any other place is its own peer.
    pub fn peer(self) -> Place {
        match self {
            Place::A => Place::B,
            Place::B => Place::A,
            other => other,
        }
    }

    /// The host of this id.
    pub fn of_host(id: &str) -> Option<Place> {
        [Place::A, Place::B].into_iter().find(|p| p.name() == id)
    }
}

/// The region's prefix that machines' public addresses come from.
pub const REGION: &str = "2001:db8:100::/48";
/// The entry's public IPv4 address.
pub const ENTRY_IPV4: &str = "198.51.100.1";
/// The addresses of the entry that accounts share: a person's key and one of these name a machine.
pub const SHARED_IPV4: [&str; 2] = ["198.51.100.11", "198.51.100.12"];
/// The entry's public IPv6 address.
pub const ENTRY_IPV6: &str = "2001:db8:1::1";

/// One set of namespaces.
#[derive(Clone, Debug)]
pub struct Topology {
    prefix: String,
}

impl Topology {
    /// Names it; nothing is made yet.
    pub fn named(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// A namespace's name.
    pub fn ns(&self, place: Place) -> String {
        format!("{}-{}", self.prefix, place.name())
    }

    /// Builds it anew.
    pub fn up(&self) -> Result<()> {
        self.down();
        // As netd sets it on a box; in a namespace there is no such switch.
        let _ = std::fs::write("/proc/sys/net/core/netdev_max_backlog", "16384");
        for place in Place::ALL {
            let ns = self.ns(place);
            ip(&["netns", "add", &ns])?;
            self.ip(place, &["link", "set", "lo", "up"])?;
        }
        self.ip(Place::Switch, &["link", "add", "name", "bridge0", "type", "bridge"])?;
        self.ip(Place::Switch, &["link", "set", "dev", "bridge0", "up"])?;
        for place in [Place::Control, Place::Entry, Place::A, Place::B] {
            self.wire_to_switch(place)?;
        }
        self.wire_client()?;
        let ns_etc = format!("/etc/netns/{}", self.ns(Place::Client));
        std::fs::create_dir_all(&ns_etc)?;
        std::fs::write(format!("{ns_etc}/resolv.conf"), format!("nameserver {ENTRY_IPV4}\n"))?;
        Ok(())
    }

    fn wire_to_switch(&self, place: Place) -> Result<()> {
        let port = format!("p-{}", place.name());
        let (switch, ns) = (self.ns(Place::Switch), self.ns(place));
        ip(&["link", "add", &port, "netns", &switch, "type", "veth", "peer", "name", "under", "netns", &ns])?;
        self.ip(Place::Switch, &["link", "set", &port, "master", "bridge0", "up"])?;
        let address = format!("{}/64", place.underlay());
        self.ip(place, &["addr", "add", &address, "dev", "under", "nodad"])?;
        self.ip(place, &["link", "set", "under", "up", "txqueuelen", "4000"])?;
        if place != Place::Entry {
            // The provider's router: people reach the API by it. Machines' packets take the overlay instead.
            self.ip(
                place,
                &["-6", "route", "add", "default", "via", Place::Entry.underlay(), "dev", "under"],
            )?;
        }
        Ok(())
    }

    fn wire_client(&self) -> Result<()> {
        let (entry, client) = (self.ns(Place::Entry), self.ns(Place::Client));
        ip(&[
            "link", "add", "pub", "netns", &entry, "type", "veth", "peer", "name", "net", "netns", &client,
        ])?;
        for (place, dev, v4, v6) in [
            (Place::Entry, "pub", format!("{ENTRY_IPV4}/24"), format!("{ENTRY_IPV6}/64")),
            (Place::Client, "net", "198.51.100.2/24".to_owned(), format!("{}/64", Place::Client.underlay())),
        ] {
            self.ip(place, &["addr", "add", &v4, "dev", dev])?;
            self.ip(place, &["addr", "add", &v6, "dev", dev, "nodad"])?;
            self.ip(place, &["link", "set", dev, "up", "txqueuelen", "4000"])?;
        }
        for address in SHARED_IPV4 {
            self.ip(Place::Entry, &["addr", "add", &format!("{address}/24"), "dev", "pub"])?;
        }
        self.ip(Place::Client, &["-6", "route", "add", "default", "via", ENTRY_IPV6, "dev", "net"])
    }

    /// Cuts or mends the way between the two hosts; each still reaches control and the entry.
    pub fn cut_between_hosts(&self, cut: bool) -> Result<()> {
        let isolated = if cut { "on" } else { "off" };
        for port in ["p-a", "p-b"] {
            run(self
                .command(Place::Switch, "bridge")
                .args(["link", "set", "dev", port, "isolated", isolated]))?;
        }
        Ok(())
    }

    /// Cuts or mends a place's only wire to the others.
    pub fn cut_off(&self, place: Place, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        self.ip(Place::Switch, &["link", "set", &format!("p-{}", place.name()), state])
    }

    /// A command in a namespace.
    pub fn command(&self, place: Place, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ns(place), program]);
        command
    }

    /// `ip` in a namespace.
    pub fn ip(&self, place: Place, args: &[&str]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.ns(place)]).args(args);
        run(&mut command).map(drop)
    }

    /// Puts the calling thread into a namespace: sockets it opens from here on belong there.
    pub fn enter(&self, place: Place) -> Result<()> {
        let path = format!("/run/netns/{}", self.ns(place));
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {path}"))
    }

    /// Removes it. What is not there is not missed.
    pub fn down(&self) {
        for place in Place::ALL {
            let ns = self.ns(place);
            if std::path::Path::new("/run/netns").join(&ns).exists() {
                let _ = ip(&["netns", "del", &ns]);
            }
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{ns}"));
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args)).map(drop)
}
