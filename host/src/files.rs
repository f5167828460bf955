//! Files that must be whole after a power cut, sparse files, and removal that goes on over errors.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, HostError, Result};

/// Records are small; a longer one is not ours.
const MAX_RECORD: u64 = 4 << 20;

/// Replaces `path` with `value` as JSON: after a crash at any point the file holds the old or the new value, whole.
pub fn store_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).doing(|| format!("encode {}", path.display()))?;
    store(path, &bytes)
}

/// Replaces `path` with `bytes`, durably. Only this daemon's user may read it: machines' keys are in some of them.
pub fn store(path: &Path, bytes: &[u8]) -> Result<()> {
    let replace = || -> io::Result<()> {
        let next = path.with_extension("next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        sync_parent(path)
    };
    replace().doing(|| format!("write {}", path.display()))
}

/// Reads a record; none when there is no such file.
pub fn load_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = load(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| HostError::internal(format!("read the record {}: {e}", path.display())))
}

/// Reads a small file; none when there is no such file.
pub fn load(path: &Path) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_RECORD).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(HostError::internal(format!("read {}: {e}", path.display()))),
    }
}

/// Makes a sparse file of `size` bytes. One that exists already must have that size.
///
/// Answers whether it was made.
pub fn create_sparse(path: &Path, size: u64) -> Result<bool> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => {
            let made = file.set_len(size).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
            if made.is_err() {
                let _ = fs::remove_file(path);
            }
            made.doing(|| format!("make the sparse file {} of {size} bytes", path.display()))?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let there = fs::metadata(path).doing(|| format!("look at {}", path.display()))?.len();
            if there == size {
                return Ok(false);
            }
            Err(HostError::conflict(format!(
                "{} has {there} bytes, {size} are asked for: a disk's size is fixed once it exists",
                path.display()
            )))
        }
        Err(e) => Err(HostError::internal(format!("make {}: {e}", path.display()))),
    }
}

/// Bytes that may still be written below `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let fs = rustix::fs::statvfs(path).doing(|| format!("ask for the free space of {}", path.display()))?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// Removes a file or a directory with all in it, and says what stayed.
pub fn remove(path: &Path, left: &mut Vec<String>) {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => left.push(format!("{}: {e}", path.display())),
    }
}

/// The last `limit` bytes of a file as text, empty when there is none.
pub fn tail(path: &Path, limit: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_takes_no_space_and_keeps_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        assert!(create_sparse(&path, 1 << 40).unwrap());
        assert!(!create_sparse(&path, 1 << 40).unwrap());
        assert!(create_sparse(&path, 1 << 30).is_err());
    }

    #[test]
    fn a_record_reads_back_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        assert_eq!(load_json::<u32>(&path).unwrap(), None);
        store_json(&path, &7_u32).unwrap();
        assert_eq!(load_json::<u32>(&path).unwrap(), Some(7));
        store(&path, b"{").unwrap();
        assert!(load_json::<u32>(&path).is_err());
    }

    #[test]
    fn removal_goes_on_and_tells_what_stayed() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = Vec::new();
        remove(&dir.path().join("nothing"), &mut left);
        assert!(left.is_empty());
    }
}
