//! The configuration file: one TOML file a box. `mashinesd.example.toml` documents each key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use ipnetwork::Ipv6Network;
use mashines_fleet::id::HostId;
use mashines_fleet::record::{FleetConfig, NameServer};
use mashines_fleet::resolver::RESOLVER;
use netd::NetdConfig;
use serde::Deserialize;

/// What a process of `mashinesd` may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The only writer of records; the API.
    Control,
    /// This box's network. Every box with `host` or `entry` needs one.
    Netd,
    /// Runs machines.
    Host,
    /// The public doors: gateway and names.
    Entry,
}

impl Role {
    /// Its name, as it is written in the file and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Netd => "netd",
            Self::Host => "host",
            Self::Entry => "entry",
        }
    }
}

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This box's id in the fleet.
    pub id: HostId,
    /// Its region.
    pub region: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// Where everything of it is kept.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Its address on the network between the hosts.
    pub underlay: IpAddr,
    /// Control's addresses, `https://ADDRESS:PORT`. May be left out: where it joined, or its own control.
    #[serde(default)]
    pub control_urls: Vec<String>,
    /// What the fleet is: read by `mashinesd init` alone.
    pub fleet: Option<Fleet>,
    /// The role `control`.
    pub control: Option<mashines_control::Config>,
    /// The role `host`.
    pub host: Option<mashines_host::Config>,
    /// The role `netd`: the keys of [`NetdConfig`]; what follows from the rest of this file may be left out.
    #[serde(default)]
    netd: toml::Table,
    /// The role `entry`: its public addresses.
    #[serde(default)]
    pub entry: Entry,
    /// The role `entry`: the doors.
    pub gateway: Option<mashines_gateway::Config>,
    /// The role `entry`: the names.
    pub dns: Option<mashines_dns::Config>,
    /// The role `entry`: certificates. Without it none are ordered.
    pub acme: Option<mashines_acme::Config>,
}

/// A fleet to be founded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// The apex: `mashine.dev`.
    pub domain: String,
    /// The public prefix that machines' addresses are cut from.
    pub prefix: Ipv6Network,
    /// The zone's name servers with their addresses.
    #[serde(default)]
    pub name_servers: Vec<NameServer>,
    /// The first and the last shared IPv4 port for SSH.
    #[serde(default = "default_ssh_ports")]
    pub ssh_ports: (u16, u16),
    /// What becomes of a key that nobody knows: `closed` (the default), `invite`, `open`.
    #[serde(default)]
    pub sign_up: mashines_fleet::record::SignUp,
    /// Further zones, and records of the operator in the fleet's own: `[[fleet.zones]]`.
    #[serde(default)]
    pub zones: Vec<mashines_fleet::record::StaticZone>,
    /// Which issuers may give certificates below the apex: their domains as in CAA records.
    #[serde(default)]
    pub caa_issuers: Vec<String>,
}

/// The public side of an entry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// Its public IPv4 addresses, whose ports machines share.
    pub public_ipv4: Vec<Ipv4Addr>,
    /// Its public IPv6 addresses.
    pub public_ipv6: Vec<Ipv6Addr>,
}

/// The host mesh, when the file names none.
const MESH: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6173, 0x6800, 0, 0, 0, 0, 0);
const MESH_LENGTH: u8 = 48;

/// Where resolvers listen: their addresses in resolv.conf have no ports.
pub const DNS_PORT: u16 = 53;

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/mashines")
}

fn default_ssh_ports() -> (u16, u16) {
    (2200, 9999)
}

impl Config {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("read the configuration {}; mashinesd.example.toml shows one", path.display())
        })?;
        let config: Self =
            toml::from_str(&text).with_context(|| format!("configuration {}", path.display()))?;
        if config.roles.is_empty() {
            bail!("configuration {}: `roles` names none of control, netd, host, entry", path.display());
        }
        config.netd(None).with_context(|| format!("configuration {}", path.display()))?;
        config.check_resolver().with_context(|| format!("configuration {}", path.display()))?;
        if let Some(acme) = &config.acme {
            acme.check().with_context(|| format!("configuration {}", path.display()))?;
        }
        Ok(config)
    }

    /// The folder of this box's certificate.
    pub fn identity_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// The folder of control's certificate: a box may be both.
    pub fn control_identity_dir(&self) -> PathBuf {
        self.identity_dir().join("control")
    }

    /// netd's own configuration. `fleet_prefix`: for when the file names no `region_prefixes`.
    pub fn netd(&self, fleet_prefix: Option<Ipv6Network>) -> Result<NetdConfig> {
        let role = match (self.roles.contains(&Role::Host), self.roles.contains(&Role::Entry)) {
            (true, true) => "both",
            (false, true) => "entry",
            (true | false, false) => "host",
        };
        let path = |name: &str| self.state_dir.join(name).to_string_lossy().into_owned();
        let derived = [
            ("state_dir", path("netd")),
            ("socket", path("netd.sock")),
            ("host_id", self.id.to_string()),
            ("role", role.to_owned()),
            ("mesh_addr", derived_mesh_addr(&self.id).to_string()),
            ("mesh_prefix", format!("{MESH}/{MESH_LENGTH}")),
        ];
        let mut section = self.netd.clone();
        for (key, value) in derived {
            section.entry(key).or_insert(value.into());
        }
        if let Some(resolver) = self.resolver() {
            section.entry("resolver").or_insert(resolver.ip().to_string().into());
        }
        section
            .entry("web_ports")
            .or_insert(self.web_ports().into_iter().map(i64::from).collect::<Vec<_>>().into());
        if let Some(prefix) = fleet_prefix {
            section.entry("region_prefixes").or_insert(vec![prefix.to_string()].into());
        }
        toml::Value::Table(section).try_into().context("section [netd]")
    }

    /// Where this box answers its machines' questions for names; none when it runs no machines.
    pub fn resolver(&self) -> Option<SocketAddr> {
        self.roles.contains(&Role::Host).then_some(SocketAddr::new(RESOLVER.into(), DNS_PORT))
    }

    /// A name server that takes its port at every address leaves none for machines' resolver.
    fn check_resolver(&self) -> Result<()> {
        let Some(resolver) = self.resolver().filter(|_| self.roles.contains(&Role::Entry)) else {
            return Ok(());
        };
        let listening = self.dns.iter().flat_map(|dns| &dns.listen);
        let every = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), resolver.port());
        if listening.into_iter().any(|listen| *listen == every) {
            bail!(
                "[dns] listen has {every}, which takes the port of every address, and machines are answered at {resolver} on this box: \
                 name each public address in its place"
            );
        }
        Ok(())
    }

    /// The ports of machines' addresses that the web door answers: an entry's are those that it listens at on every address. A host sends
    /// what its machines say to the usual ones to an entry, which passes on what it does not answer itself.
    fn web_ports(&self) -> Vec<u16> {
        if !self.roles.contains(&Role::Entry) {
            return vec![80, 443];
        }
        let listeners =
            self.gateway.iter().flat_map(|gateway| gateway.tls_listen.iter().chain(&gateway.http_listen));
        let every = listeners.filter(|listen| listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        every.map(SocketAddr::port).collect()
    }

    /// Whether the file itself says which prefixes machines' addresses come from.
    pub fn names_region_prefixes(&self) -> bool {
        self.netd.contains_key("region_prefixes")
    }

    /// Control's addresses: the file's, else where this box joined, else its own.
    pub fn control_urls(&self) -> Result<Vec<String>> {
        if !self.control_urls.is_empty() {
            return Ok(self.control_urls.clone());
        }
        let joined = self.joined_file();
        match std::fs::read_to_string(&joined) {
            Ok(url) => return Ok(vec![url.trim().to_owned()]),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("read {}", joined.display())),
        }
        match &self.control {
            Some(control) if self.roles.contains(&Role::Control) => Ok(vec![own_url(control.listen)]),
            Some(_) | None => bail!(
                "nothing says where control is: set `control_urls`, or join a fleet with `mashinesd join --control URL --token TOKEN`"
            ),
        }
    }

    /// Where `mashinesd join` notes control's address.
    pub fn joined_file(&self) -> PathBuf {
        self.state_dir.join("control.url")
    }

    /// What `mashinesd init` founds.
    pub fn founding(&self) -> Result<FleetConfig> {
        let Some(fleet) = &self.fleet else {
            bail!(
                "`mashinesd init` founds the fleet that [fleet] describes, and there is none in the configuration"
            );
        };
        Ok(FleetConfig {
            domain: fleet.domain.clone(),
            prefix: fleet.prefix,
            name_servers: fleet.name_servers.clone(),
            ssh_ports: fleet.ssh_ports,
            ssh_ca: None,
            sign_up: fleet.sign_up,
            zones: fleet.zones.clone(),
            caa_issuers: fleet.caa_issuers.clone(),
        })
    }
}

/// The id's FNV-1a hash below the default mesh prefix: the same on every host, without anyone to ask.
fn derived_mesh_addr(id: &HostId) -> Ipv6Addr {
    let hash = id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ipv6Addr::from(u128::from(MESH) | u128::from(hash))
}

/// How a process of the same box reaches a listener.
pub fn own_url(listen: SocketAddr) -> String {
    let address = match listen.ip() {
        IpAddr::V6(any) if any.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(any) if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        named @ (IpAddr::V4(_) | IpAddr::V6(_)) => named,
    };
    format!("https://{}", SocketAddr::new(address, listen.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_whole_configuration() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("mashinesd.example.toml");
        let config = Config::load(&example).unwrap();
        assert_eq!(config.roles, [Role::Control, Role::Netd, Role::Host, Role::Entry]);
        assert_eq!(config.control_urls().unwrap().len(), 1);
        let netd = config.netd(None).unwrap();
        assert_eq!(netd.role, netd::config::Role::Both);
        assert!(netd.mesh_prefix.contains(netd.mesh_addr));
        assert!(
            config.founding().is_ok()
                && config.gateway.is_some()
                && config.dns.is_some()
                && config.acme.is_some()
        );
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(
            &path,
            "id = \"a\"\nregion = \"lab\"\nroles = [\"host\"]\nunderlay = \"::1\"\nimage_dir = \"x\"\n",
        )
        .unwrap();
        let error = format!("{:#}", Config::load(&path).unwrap_err());
        assert!(error.contains("image_dir"), "{error}");
    }

    #[test]
    fn derived_mesh_addresses_lie_in_the_mesh_and_differ() {
        let (a, b) = (derived_mesh_addr(&"a".parse().unwrap()), derived_mesh_addr(&"b".parse().unwrap()));
        assert_eq!(
            (a.segments()[..3].to_vec(), b.segments()[..3].to_vec()),
            (vec![0xfd6d, 0x6173, 0x6800], vec![0xfd6d, 0x6173, 0x6800])
        );
        assert_ne!(a, b);
    }

    #[test]
    fn machines_are_answered_where_they_run_at_an_address_that_is_nobody_elses() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("mashinesd.example.toml");
        let mut config = Config::load(&example).unwrap();
        let netd = config.netd(None).unwrap();
        assert_eq!(netd.resolver, Some(RESOLVER));
        assert!(!netd.mesh_prefix.contains(RESOLVER));
        config.dns.as_mut().unwrap().listen.push("[::]:53".parse().unwrap());
        let why = config.check_resolver().unwrap_err().to_string();
        assert!(why.contains("[::]:53") && why.contains("name each public address"), "{why}");
        config.roles.retain(|role| *role != Role::Host);
        assert!(config.check_resolver().is_ok(), "without machines nobody is in the way");
        assert_eq!(config.netd(None).unwrap().resolver, None);
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_the_loopback() {
        assert_eq!(own_url("[::]:8443".parse().unwrap()), "https://[::1]:8443");
        assert_eq!(own_url("10.0.0.1:8443".parse().unwrap()), "https://10.0.0.1:8443");
    }
}
