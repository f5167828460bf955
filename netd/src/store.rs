//! What must survive a kill -9 of netd: one small file a machine.
//!
//! Written before the kernel is told, so that a netd killed in between finishes at its next start. Nothing is synced to the disk:
//! after a power loss no tap and no monitor is left either, and entries of another boot count only as epochs below which
//! nothing is obeyed.
//!
//! A redirect is written within a blackout, so a file that is there is overwritten in place, by one `write` of one page: the
//! kernel looks for a fatal signal between pages, not within one. (A rename over an old file makes ext4 write the new
//! one's data out first: 3 to 80 ms were seen in the lab.)

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;
use crate::ledger::{Entry, Floor, is_id};

/// The size of an entry's file. An entry has about 700 bytes.
const PAGE: usize = 4096;

/// The state directory, held by this process alone.
#[derive(Debug)]
pub struct Store {
    machines: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the directory, making it if needed, and reads what was kept.
    pub fn open(dir: &Path) -> Result<(Self, BTreeMap<String, Entry>), Error> {
        let machines = dir.join("machines");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&machines)
            .map_err(wrap("create", &machines))?;
        let lock = lock(&dir.join("lock"))?;
        let store = Self { machines, _lock: lock };
        let mut entries = store.read_all()?;
        if !same_boot(&dir.join("boot-id"))? {
            for (machine, entry) in &mut entries {
                *entry = after_reboot(entry);
                store.save(machine, entry)?;
            }
        }
        Ok((store, entries))
    }

    /// Keeps a machine's entry; an empty one is forgotten.
    pub fn save(&self, machine: &str, entry: &Entry) -> Result<(), Error> {
        let path = self.machines.join(format!("{machine}.json"));
        if *entry == Entry::default() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrap("remove", &path)(error)),
                _ => Ok(()),
            };
        }
        let mut bytes = serde_json::to_vec(entry).map_err(|e| wrap("encode", &path)(e.into()))?;
        // Blanks after a JSON text mean nothing; they cover what a longer entry left.
        bytes.resize(bytes.len().max(PAGE), b' ');
        if bytes.len() == PAGE && overwrite(&path, &bytes).map_err(wrap("write", &path))? {
            return Ok(());
        }
        replace(&path, &bytes, 0o600)
    }

    fn read_all(&self) -> Result<BTreeMap<String, Entry>, Error> {
        let mut entries = BTreeMap::new();
        for file in fs::read_dir(&self.machines).map_err(wrap("list", &self.machines))? {
            let path = file.map_err(wrap("list", &self.machines))?.path();
            let Some(machine) =
                path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json"))
            else {
                continue;
            };
            let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Entry>(&bytes)?));
            match read {
                Ok(entry) if is_id(machine) => {
                    entries.insert(machine.to_owned(), entry);
                }
                Ok(_) => {}
                Err(error) => set_aside(&path, &error),
            }
        }
        Ok(entries)
    }
}

/// Overwrites a file of one page; answers false when it is not such a file yet.
fn overwrite(path: &Path, page: &[u8]) -> io::Result<bool> {
    let file = match fs::OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if usize::try_from(file.metadata()?.len()) != Ok(PAGE) {
        return Ok(false);
    }
    match file.write_at(page, 0)? {
        PAGE => Ok(true),
        _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}

/// A file that cannot be read must not keep netd from serving all other machines.
fn set_aside(path: &Path, error: &io::Error) {
    tracing::error!(path = %path.display(), %error, "cannot read what was kept of a machine; set aside as .bad: prepare it again");
    if let Err(error) = fs::rename(path, path.with_extension("bad")) {
        tracing::error!(path = %path.display(), %error, "cannot set the file aside");
    }
}

/// After a reboot no monitor and no tap is left.
fn after_reboot(entry: &Entry) -> Entry {
    let epochs = [
        entry.port.as_ref().map(|local| local.port.epoch),
        entry.redirect.as_ref().map(|redirect| redirect.epoch),
        entry.floor.map(|floor| floor.epoch),
    ];
    let floor = epochs.into_iter().flatten().max().map(|epoch| Floor { epoch, revision: 0 });
    Entry { port: None, redirect: None, floor }
}

fn same_boot(path: &Path) -> Result<bool, Error> {
    let source = Path::new("/proc/sys/kernel/random/boot_id");
    let now = fs::read(source).map_err(wrap("read", source))?;
    if fs::read(path).is_ok_and(|kept| kept == now) {
        return Ok(true);
    }
    replace(path, &now, 0o600)?;
    Ok(false)
}

fn lock(path: &Path) -> Result<Flock<File>, Error> {
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(wrap("open", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            let other = io::Error::other("another netd of this host runs: end it first");
            wrap("lock", path)(other)
        }
        errno => wrap("lock", path)(errno.into()),
    })
}

/// Replaces a file as a whole: readers, and a start after a kill, see the old or the new bytes.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || {
        let mut file =
            fs::OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(&new, path)
    };
    write().map_err(wrap("write", path))
}

fn wrap(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Mac, Phase, Port, tap_name};
    use crate::ledger::LocalPort;

    fn entry(epoch: u64, ipv4: Option<&str>) -> Entry {
        let port = Port {
            machine_id: "m".into(),
            epoch,
            tap: tap_name("m"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1360,
            ipv6: "2001:db8::1".parse().unwrap(),
            private6: None,
            ipv4: ipv4.map(|a| a.parse().unwrap()),
            account: "fd12:3456:789a::/48".parse().unwrap(),
            vni: 7,
        };
        Entry { port: Some(LocalPort { port, phase: Phase::Active }), ..Entry::default() }
    }

    #[test]
    fn what_was_kept_last_is_read_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (store, entries) = Store::open(dir.path()).unwrap();
        assert!(entries.is_empty());
        // The longer one first: nothing of it may show below the shorter one.
        for kept in [entry(1, Some("10.177.200.100")), entry(2, None)] {
            store.save("m", &kept).unwrap();
        }
        store.save("gone", &entry(1, None)).unwrap();
        store.save("gone", &Entry::default()).unwrap();
        drop(store);
        let (_store, entries) = Store::open(dir.path()).unwrap();
        assert_eq!(entries, BTreeMap::from([("m".to_owned(), entry(2, None))]));
    }

    #[test]
    fn entries_of_another_boot_count_only_as_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        store.save("m", &entry(5, None)).unwrap();
        drop(store);
        fs::write(dir.path().join("boot-id"), "another").unwrap();
        let (_store, entries) = Store::open(dir.path()).unwrap();
        let floor = Entry { floor: Some(Floor { epoch: 5, revision: 0 }), ..Entry::default() };
        assert_eq!(entries, BTreeMap::from([("m".to_owned(), floor)]));
    }

    #[test]
    fn a_damaged_file_costs_one_machine_and_a_second_netd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        store.save("m", &entry(1, None)).unwrap();
        fs::write(dir.path().join("machines/torn.json"), "{\"port\":").unwrap();
        let refused = Store::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another netd"), "{refused}");
        drop(store);
        let (_store, entries) = Store::open(dir.path()).unwrap();
        assert_eq!(entries.into_keys().collect::<Vec<_>>(), ["m"]);
        assert!(dir.path().join("machines/torn.bad").exists());
    }
}
