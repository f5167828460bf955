//! The initramfs archive that carries a machine's configuration.
//!
//! The kernel unpacks concatenated archives one after the other (`Documentation/driver-api/early-userspace/
//! buffer-format.rst`), so the host appends this one to the image's initrd and needs no configuration disk. The format is
//! "newc": per entry a header of 110 ASCII bytes, the name with its NUL, padding to 4, the data, padding to 4.
//!
//! Invariant: the archive's length is a multiple of 4, and so must be what stands before it.

use crate::config::{CONFIG_PATH, Config};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// The archive with `config` as [`CONFIG_PATH`], readable by root alone.
///
/// # Errors
/// When the configuration does not fit an archive entry (4 GiB) or cannot be written as JSON.
pub fn config_archive(config: &Config) -> Result<Vec<u8>, ArchiveError> {
    let json = serde_json::to_vec(config)?;
    let path = CONFIG_PATH.trim_start_matches('/');
    let mut archive = Archive::default();
    if let Some((directory, _)) = path.rsplit_once('/') {
        archive.entry(directory, S_IFDIR | 0o700, &[])?;
    }
    archive.entry(path, S_IFREG | 0o600, &json)?;
    archive.finish()
}

/// Why a configuration could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A length does not fit the 32 bits of the format.
    #[error("a guest configuration of {0} bytes does not fit an initramfs archive entry (at most 4 GiB)")]
    TooLong(usize),
    /// JSON.
    #[error("the guest configuration cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<(), ArchiveError> {
        let length = |n: usize| u32::try_from(n).map_err(|_| ArchiveError::TooLong(n));
        self.entries += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        let fields =
            [self.entries, mode, 0, 0, links, 0, length(data.len())?, 0, 0, 0, 0, length(name.len() + 1)?, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>, ArchiveError> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_archive_is_padded_so_that_it_can_be_appended_to() {
        for hostname in ["a", "ab", "abc", "abcd"] {
            let archive = config_archive(&Config::new("m", hostname)).unwrap();
            assert_eq!(archive.len() % 4, 0);
        }
    }

    #[test]
    fn headers_are_those_of_newc() {
        let archive = config_archive(&Config::new("m", "h")).unwrap();
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[6 + 8..6 + 16], b"000041c0"); // a directory, 0700
        assert_eq!(&archive[110..119], b"mashines\0");
        let trailer = archive.windows(11).position(|w| w == b"TRAILER!!!\0").unwrap();
        assert_eq!(&archive[trailer - 110..trailer - 104], b"070701");
    }

    #[test]
    fn cpio_itself_reads_the_config_back() {
        let config = Config::new("m-1", "quiet-otter");
        let archive = config_archive(&config).unwrap();
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--extract", "--to-stdout", "--quiet", "mashines/config.json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return; // A machine without cpio: the tests above still hold.
        };
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let out = cpio.wait_with_output().unwrap();
        let read: Config = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(read, config);
    }
}
