//! What a machine is told about itself at boot.
//!
//! The host writes one [`Config`] a boot and hands it over as the file [`CONFIG_PATH`] of the initramfs (see
//! [`crate::config_archive`]). Unknown fields are ignored, so that a host may be newer than an image's initrd; everything
//! but the id and the hostname may be left out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where init reads the configuration: a path in the initramfs.
pub const CONFIG_PATH: &str = "/mashines/config.json";

/// Where init finds the SSH server for a machine of a single process: a path in the initramfs. The host appends an archive with it
/// exactly for machines that are of a [single process](Config::is_single_process).
pub const SSH_PATH: &str = "/mashines/ssh";

/// The value of [`Root::device`] that means: no root disk, stay in the initramfs.
pub const NO_ROOT: &str = "none";

/// The value of [`Config::init_exec`] that runs the built-in userland of the benches and fault tests.
pub const BUILTIN_BENCH: &str = "builtin:bench";

/// One machine, as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The machine's id.
    pub machine_id: String,
    /// The hostname: the machine's slug.
    pub hostname: String,
    /// Network interfaces, found by their MAC address.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Lines for root's `authorized_keys`. Keys that people added themselves stay.
    #[serde(default)]
    pub ssh_authorized_keys: Vec<String>,
    /// Resolvers; none leaves the image's `resolv.conf` alone.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// SSH host keys. With none, the image's `ssh-keygen` makes one at first boot.
    #[serde(default)]
    pub ssh_host_keys: Vec<HostKey>,
    /// The public key (one line) of the authority whose user certificates sshd accepts.
    #[serde(default)]
    pub ssh_user_ca: Option<String>,
    /// Volumes to mount.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Environment of sessions, of `exec` and of [`Config::init_exec`].
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Files to write before anything of the image runs.
    #[serde(default)]
    pub files: Vec<File>,
    /// The root file system.
    #[serde(default)]
    pub root: Root,
    /// When the machine counts as ready.
    #[serde(default)]
    pub ready: Ready,
    /// For images of a single process: a shell command line that runs in place of `/sbin/init`; the machine powers off
    /// when it ends. With [`NO_ROOT`] only [`BUILTIN_BENCH`] is possible.
    #[serde(default)]
    pub init_exec: Option<String>,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its MAC address, `02:00:5e:…`.
    pub mac: String,
    /// Its public IPv6 address, usually a /128.
    #[serde(default)]
    pub ipv6: Option<Prefix>,
    /// The next hop of the IPv6 default route, usually `fe80::1`.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// Its IPv4 address, usually a private /32 for egress.
    #[serde(default)]
    pub ipv4: Option<Prefix>,
    /// The next hop of the IPv4 default route, usually `169.254.1.1`; it need not be inside any prefix.
    #[serde(default)]
    pub gateway4: Option<Ipv4Addr>,
    /// Further addresses of either family, e.g. the private one of the account's mesh.
    #[serde(default)]
    pub more_addresses: Vec<Prefix>,
    /// The MTU; without it the device's own.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// An address and its prefix length, written `2001:db8::7/128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// What is wrong with the text of a [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address with a prefix length, such as 2001:db8::7/128 or 10.0.0.7/32")]
pub struct BadPrefix(String);

impl Prefix {
    /// The prefix that holds this address alone: /128 or /32.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self { address, length: Self::longest(address) }
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    fn longest(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let bad = || BadPrefix(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let length: u8 = length.parse().map_err(|_| bad())?;
        if length > Self::longest(address) {
            return Err(bad());
        }
        Ok(Self { address, length })
    }
}

impl TryFrom<String> for Prefix {
    type Error = BadPrefix;

    fn try_from(text: String) -> Result<Self, BadPrefix> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// One SSH host key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// `ed25519`, `ecdsa` or `rsa`: part of the file's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The private key in OpenSSH's PEM form.
    pub private_pem: String,
    /// The public key, one line.
    pub public: String,
    /// A host certificate for it, one line.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// A private key belongs in no log.
impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKey")
            .field("kind", &self.kind)
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The block device, `/dev/vdb`.
    pub device: String,
    /// The volume's name: the file system's label when it is made here.
    pub name: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The UUID its file system has, or gets when it is made here.
    #[serde(default)]
    pub fs_uuid: Option<String>,
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// An absolute path in the machine; missing directories are made.
    pub path: String,
    /// Permission bits, e.g. 0o644; decimal in JSON.
    #[serde(default = "default_file_mode")]
    pub mode: u32,
    /// The content in base64.
    pub content_base64: String,
}

fn default_file_mode() -> u32 {
    0o644
}

/// The root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// The block device, or [`NO_ROOT`].
    pub device: String,
    /// The file system's type.
    pub fstype: String,
}

impl Default for Root {
    fn default() -> Self {
        Self { device: "/dev/vda".to_owned(), fstype: "ext4".to_owned() }
    }
}

/// When the machine counts as ready. Without any condition: as soon as the agent answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// A TCP port that must accept on the machine's loopback.
    #[serde(default)]
    pub tcp_port: Option<u16>,
}

/// Whether the owner of a machine of a single process leaves port 22 to it: `MASHINES_SSH=off` in the machine's environment.
pub fn ssh_is_off(env: &BTreeMap<String, String>) -> bool {
    env.get("MASHINES_SSH").is_some_and(|value| value == "off")
}

impl Config {
    /// A machine of which only the id and the hostname are known.
    pub fn new(machine_id: impl Into<String>, hostname: impl Into<String>) -> Self {
        Self {
            machine_id: machine_id.into(),
            hostname: hostname.into(),
            interfaces: Vec::new(),
            ssh_authorized_keys: Vec::new(),
            dns: Vec::new(),
            ssh_host_keys: Vec::new(),
            ssh_user_ca: None,
            volumes: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
            root: Root::default(),
            ready: Ready::default(),
            init_exec: None,
        }
    }

    /// Whether one process of the image runs in place of its init, so that there is nobody who would start an sshd.
    pub fn is_single_process(&self) -> bool {
        self.root.device != NO_ROOT && self.init_exec.is_some()
    }

    /// What may stay in the running machine for the agent: everything but the secrets that init has put in place.
    pub fn without_secrets(mut self) -> Self {
        self.ssh_host_keys.clear();
        self.files.clear();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_config_is_an_id_and_a_hostname() {
        let config: Config = serde_json::from_str(r#"{"machine_id":"m","hostname":"h"}"#).unwrap();
        assert_eq!(config, Config::new("m", "h"));
        assert_eq!(config.root.device, "/dev/vda");
    }

    #[test]
    fn a_machine_without_a_root_disk_names_no_file_system() {
        let config: Config =
            serde_json::from_str(r#"{"machine_id":"m","hostname":"h","root":{"device":"none"}}"#).unwrap();
        assert_eq!(config.root.device, NO_ROOT);
    }

    #[test]
    fn a_machine_is_of_a_single_process_when_one_of_the_images_replaces_its_init() {
        let mut config = Config::new("m", "h");
        assert!(!config.is_single_process());
        config.init_exec = Some("/app".into());
        assert!(config.is_single_process());
        config.root.device = NO_ROOT.into();
        config.init_exec = Some(BUILTIN_BENCH.into());
        assert!(!config.is_single_process());
    }

    #[test]
    fn unknown_fields_are_ignored_so_that_a_newer_host_can_boot_an_older_initrd() {
        let config: Config = serde_json::from_str(
            r#"{"machine_id":"m","hostname":"h","ready":{"tcp_port":22,"new":1},"later":[]}"#,
        )
        .unwrap();
        assert_eq!(config.ready.tcp_port, Some(22));
    }

    #[test]
    fn an_interface_reads_as_the_host_writes_it() {
        let text = r#"{"mac":"02:00:5e:00:00:07","ipv6":"2001:db8::7/128","gateway6":"fe80::1","ipv4":"10.99.0.7/32",
            "gateway4":"169.254.1.1","mtu":1420}"#;
        let interface: Interface = serde_json::from_str(text).unwrap();
        assert_eq!(interface.ipv6.unwrap().to_string(), "2001:db8::7/128");
        let again: Interface = serde_json::from_str(&serde_json::to_string(&interface).unwrap()).unwrap();
        assert_eq!(again, interface);
    }

    #[test]
    fn a_prefix_longer_than_its_family_or_without_length_is_refused() {
        for bad in ["2001:db8::7", "10.0.0.1/33", "::1/129", "x/1", "10.0.0.1/-1", ""] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_key_never_prints_its_private_half() {
        let key = HostKey {
            kind: "ed25519".into(),
            private_pem: "SECRET".into(),
            public: "ssh-ed25519 AAAA".into(),
            certificate: None,
        };
        assert!(!format!("{key:?}").contains("SECRET"));
    }
}
