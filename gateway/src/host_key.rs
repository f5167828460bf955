//! What the gateway proves its name with: a key of its own, and the certificate that the fleet's SSH CA gives it.
//!
//! With the certificate, people who trust the CA (`mashines known-hosts`) are asked no question. It is kept on disk, and
//! asked for anew at each start and once a day, so that it never comes near its end while control can be reached at all.
//!
//! Where an address is shared among accounts' machines, whoever connects expects a machine's name: there is a certificate for each such
//! address, with the names of the machines there.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mashines_fleet::id::HostId;
use mashines_fleet::view::View;
use russh::keys::{Certificate, PrivateKey};
use russh::{Preferred, server};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::control::Control;
use crate::directory;
use crate::keys::{certificate_of, load_or_create, write_private};
use crate::ssh::server_config;

/// Between two certificates.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// First and longest pause after a refusal.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Between a change of the names at an address and the certificate for it: several come at once.
const SETTLE: Duration = Duration::from_millis(100);

/// The key, and where its certificate is kept.
pub struct HostKey {
    key: PrivateKey,
    file: PathBuf,
    preferred: Preferred,
    settings: watch::Sender<Arc<Settings>>,
}

/// russh's settings, by the address that a client connected to: the key is the same, the names in its certificate are not.
#[derive(Debug, Clone)]
pub struct Settings {
    usual: Arc<server::Config>,
    at: HashMap<Ipv4Addr, Arc<server::Config>>,
}

impl Settings {
    /// Those for a client at `address`.
    pub fn at(&self, address: IpAddr) -> &Arc<server::Config> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.at.get(&address).unwrap_or(&self.usual),
            IpAddr::V6(_) => &self.usual,
        }
    }
}

impl HostKey {
    /// The key at `path`, made where there is none, for the algorithms in `preferred`. A certificate that is unreadable or of another key is as
    /// none.
    ///
    /// # Errors
    /// The key's file cannot be read or written.
    pub fn load(path: &Path, preferred: Preferred) -> anyhow::Result<Self> {
        let key = load_or_create(path)?;
        let read = |file: &Path| {
            let text = std::fs::read_to_string(file).ok()?;
            Some(server_config(key.clone(), Some(host_certificate_of(&text, &key).ok()?), &preferred))
        };
        let usual = read(&certificate_file(path, None))
            .unwrap_or_else(|| server_config(key.clone(), None, &preferred));
        let kept = addresses_kept(path).into_iter();
        let at = kept.filter_map(|ip| Some((ip, read(&certificate_file(path, Some(ip)))?))).collect();
        let settings = watch::Sender::new(Arc::new(Settings { usual, at }));
        Ok(Self { key, file: path.to_owned(), preferred, settings })
    }

    /// russh's settings, as they are now and as they come.
    pub fn settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    /// Has the key certified, for ever: for the entry once a day, and for each of its shared addresses as often as its machines change.
    pub async fn keep_certified(
        self,
        control: Control,
        entry: Option<HostId>,
        mut views: watch::Receiver<Arc<View>>,
    ) {
        let mut certified: HashMap<Option<Ipv4Addr>, (Vec<String>, Instant)> = HashMap::new();
        let mut pause = RETRY.0;
        let mut shown = Arc::clone(&views.borrow_and_update());
        loop {
            let shared = entry.iter().flat_map(|entry| names_at(&shown, entry));
            let mut failed = None;
            for (address, names) in [(None, Vec::new())].into_iter().chain(shared) {
                let known =
                    certified.get(&address).is_some_and(|(known, at)| *known == names && at.elapsed() < DAY);
                if known {
                    continue;
                }
                match self.certify(&control, address).await {
                    Ok(()) => {
                        certified.insert(address, (names, Instant::now()));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                None => {
                    pause = RETRY.0;
                    shown = next(&mut views, shown).await;
                }
                Some(error) => {
                    warn!("no certificate for the gateway's host key, trying again in {pause:?}: {error:#}");
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    shown = Arc::clone(&views.borrow_and_update());
                }
            }
        }
    }

    async fn certify(&self, control: &Control, address: Option<Ipv4Addr>) -> anyhow::Result<()> {
        let public = self.key.public_key().to_openssh().context("encoding the gateway's host key")?;
        let text = control.certify_host(&public, address).await?;
        let certificate =
            host_certificate_of(&text, &self.key).context("the host certificate that control sent")?;
        let file = certificate_file(&self.file, address);
        if let Err(error) = write_private(&file, text.as_bytes()) {
            warn!(%error, file = %file.display(), "the host certificate is used, but could not be kept on disk");
        }
        info!(?address, names = ?certificate.valid_principals(), "new certificate for the gateway's host key");
        let config = server_config(self.key.clone(), Some(certificate), &self.preferred);
        self.settings.send_modify(|settings| {
            let settings = Arc::make_mut(settings);
            match address {
                None => settings.usual = config,
                Some(address) => {
                    settings.at.insert(address, config);
                }
            }
        });
        Ok(())
    }
}

/// The view when names may have changed since `shown`, or some hours have passed. Hosts report every few seconds; that is no reason.
async fn next(views: &mut watch::Receiver<Arc<View>>, shown: Arc<View>) -> Arc<View> {
    let look = sleep(DAY / 8);
    tokio::pin!(look);
    loop {
        tokio::select! {
            changed = views.changed() => if changed.is_err() {
                // The daemon is about to end.
                std::future::pending::<()>().await;
            },
            () = &mut look => return Arc::clone(&views.borrow_and_update()),
        }
        let view = Arc::clone(&views.borrow_and_update());
        if !directory::is_same(&shown, &view) || shared_by_entry(&shown) != shared_by_entry(&view) {
            // Several come at once.
            sleep(SETTLE).await;
            return Arc::clone(&views.borrow_and_update());
        }
    }
}

fn shared_by_entry(view: &View) -> Vec<(&HostId, &[Ipv4Addr])> {
    view.hosts.values().map(|host| (&host.id, host.shared_ipv4())).collect()
}

/// The names of the machines at each shared address of an entry, in the order of their ids.
fn names_at(view: &View, entry: &HostId) -> BTreeMap<Option<Ipv4Addr>, Vec<String>> {
    let shared = view.hosts.get(entry).map(|host| host.shared_ipv4()).unwrap_or_default();
    let mut names: BTreeMap<Option<Ipv4Addr>, Vec<String>> = BTreeMap::new();
    for machine in view.machines.values().filter(|machine| directory::is_alive(machine)) {
        if let Some(address) = machine.net.entry_ipv4.filter(|address| shared.contains(address)) {
            names.entry(Some(address)).or_default().push(machine.slug.to_string());
        }
    }
    names
}

/// The addresses that a certificate of the key at `path` is kept for.
fn addresses_kept(path: &Path) -> Vec<Ipv4Addr> {
    let (Some(directory), Some(key)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Vec::new();
    };
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    let addresses = names.filter_map(|name| {
        name.strip_prefix(key)?.strip_prefix('-')?.strip_suffix("-cert.pub")?.parse().ok()
    });
    addresses.collect()
}

fn certificate_file(key: &Path, address: Option<Ipv4Addr>) -> PathBuf {
    let mut file = key.as_os_str().to_owned();
    if let Some(address) = address {
        file.push(format!("-{address}"));
    }
    file.push("-cert.pub");
    PathBuf::from(file)
}

fn host_certificate_of(text: &str, key: &PrivateKey) -> anyhow::Result<Certificate> {
    let certificate = certificate_of(key, text)?;
    anyhow::ensure!(certificate.cert_type().is_host(), "it is no host's");
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{machine, view};

    #[test]
    fn only_the_machines_at_this_entrys_addresses_are_named() {
        let at = |slug: &str, address: &str| {
            let mut machine = machine(slug, "ann");
            machine.net.entry_ipv4 = Some(address.parse().unwrap());
            machine
        };
        let mut view = view(&[at("web", "192.0.2.2"), at("far", "198.51.100.2"), machine("port", "ann")]);
        let host = serde_json::json!({
            "id": "entry1", "roles": ["entry"], "region": "r", "api": "[::1]:1", "underlay": "::1", "wireguard_port": 1,
            "wireguard_key": null, "mesh": "fd00::1", "images": [], "seen_at": 0,
            "capacity": {"vcpus": 0, "memory_mib": 0, "disk_mib": 0}, "public_ipv4": ["192.0.2.1", "192.0.2.2"],
        });
        view.hosts.insert("entry1".parse().unwrap(), Arc::new(serde_json::from_value(host).unwrap()));
        let address = "192.0.2.2".parse().unwrap();
        let named = names_at(&view, &"entry1".parse().unwrap());
        assert_eq!(named, BTreeMap::from([(Some(address), vec!["web".to_owned()])]));
        assert!(names_at(&view, &"entry2".parse().unwrap()).is_empty());
    }

    #[test]
    fn certificates_of_addresses_are_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("host_key");
        let address: Ipv4Addr = "192.0.2.2".parse().unwrap();
        let others = [certificate_file(&key, None), key.with_extension("new")];
        for file in others.into_iter().chain([certificate_file(&key, Some(address))]) {
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(addresses_kept(&key), [address]);
    }
}
