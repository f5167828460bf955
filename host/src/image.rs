//! The images that this host holds: one directory each below `images_dir`, described by its `manifest.json`.
//!
//! The directory is read anew at each question: images come and go by an operator's copy, without a restart. A directory
//! without a readable manifest is passed over with a warning; it is half copied.

use std::path::{Path, PathBuf};

use mashines_fleet::id::ImageName;
use mashines_fleet::record::Image;
use serde::Deserialize;

use crate::error::{HostError, Result};
use crate::{files, instance};

/// What the kernel is told when the manifest does not say.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=3 panic=1 reboot=k";

/// sshd's port.
const SSH: u16 = 22;

/// An image's description. Paths are relative to its directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The name people use; the directory's name.
    pub name: ImageName,
    /// `sha256:` and the hex digest of the root file system, or of kernel and initrd when there is none.
    pub digest: String,
    /// A bzImage or vmlinux.
    pub kernel: PathBuf,
    /// The initial RAM disk with `mashines-guest` as `/init`.
    pub initrd: PathBuf,
    /// A further archive for the initrd, with the SSH server for machines whose image is a single process.
    #[serde(default)]
    pub ssh: Option<PathBuf>,
    /// The root file system; none when it boots from its initrd alone.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// Its size in bytes, a multiple of 4096.
    #[serde(default)]
    pub rootfs_size_bytes: Option<u64>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// The TCP port that must accept inside the guest before it counts as ready; sshd's when there is a root file system and
    /// nothing is said.
    #[serde(default)]
    pub ready_port: Option<u16>,
    /// What runs in place of the image's init.
    #[serde(default)]
    pub init_exec: Option<String>,
}

/// An image with absolute paths, its files looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// As fleet knows it.
    pub image: Image,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// The archive with the SSH server.
    pub ssh: Option<PathBuf>,
    /// The root file system.
    pub rootfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The TCP port that tells readiness.
    pub ready_port: Option<u16>,
    /// What runs in place of the image's init.
    pub init_exec: Option<String>,
}

/// The images below one directory.
#[derive(Debug, Clone)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// The images below `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// All images that are complete.
    pub fn list(&self) -> Vec<LocalImage> {
        let names = instance::names_in(&self.dir).unwrap_or_default();
        let load = |name: String| match self.load(&name.parse().ok()?) {
            Ok(image) => Some(image),
            Err(e) => {
                tracing::warn!(image = name, "{e}");
                None
            }
        };
        names.into_iter().filter_map(load).collect()
    }

    /// The image of that name and digest.
    pub fn find(&self, name: &ImageName, digest: &str) -> Result<LocalImage> {
        let found = self.load(name)?;
        if found.image.digest == digest {
            return Ok(found);
        }
        Err(HostError::not_found(format!(
            "image {name} is here with digest {}, the machine needs {digest}: bring that version to {}",
            found.image.digest,
            self.dir.display()
        )))
    }

    fn load(&self, name: &ImageName) -> Result<LocalImage> {
        let dir = self.dir.join(name.as_str());
        let path = dir.join("manifest.json");
        let manifest: Manifest = files::load_json(&path)?.ok_or_else(|| {
            HostError::not_found(format!(
                "this host has no image {name}: {} is missing; `mashines hosts` lists what is where",
                path.display()
            ))
        })?;
        if manifest.name != *name {
            return Err(HostError::internal(format!(
                "{} names image {}: the directory was renamed",
                path.display(),
                manifest.name
            )));
        }
        manifest.resolve(&dir)
    }
}

impl Manifest {
    fn resolve(self, dir: &Path) -> Result<LocalImage> {
        let absolute = |relative: &Path| -> Result<PathBuf> {
            let path = dir.join(relative);
            match path.metadata() {
                Ok(found) if found.is_file() && found.len() > 0 => Ok(path),
                Ok(_) => Err(HostError::internal(format!("{} is no file with content", path.display()))),
                Err(e) => Err(HostError::internal(format!("image {}: {}: {e}", self.name, path.display()))),
            }
        };
        let rootfs = self.rootfs.as_deref().map(absolute).transpose()?;
        let size = rootfs.as_ref().and_then(|path| path.metadata().ok()).map_or(0, |found| found.len());
        if size % 4096 != 0 || self.rootfs_size_bytes.is_some_and(|said| said != size) {
            return Err(HostError::internal(format!(
                "image {}: the root file system has {size} bytes; a multiple of 4096 is needed, and what the manifest says ({:?})",
                self.name, self.rootfs_size_bytes
            )));
        }
        let ready_port = self.ready_port.or(rootfs.as_ref().map(|_| SSH));
        Ok(LocalImage {
            kernel: absolute(&self.kernel)?,
            initrd: absolute(&self.initrd)?,
            ssh: self.ssh.as_deref().map(absolute).transpose()?,
            image: Image { name: self.name, digest: self.digest, rootfs_bytes: size },
            rootfs,
            cmdline: self.cmdline.unwrap_or_else(|| CMDLINE.to_owned()),
            ready_port,
            init_exec: self.init_exec,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An image of three small files.
    pub(crate) fn write(dir: &Path, name: &str, digest: &str) {
        let image = dir.join(name);
        std::fs::create_dir_all(&image).unwrap();
        for file in ["kernel", "initrd"] {
            std::fs::write(image.join(file), b"x").unwrap();
        }
        std::fs::write(image.join("rootfs.ext4"), vec![0; 8192]).unwrap();
        let manifest = serde_json::json!({"name": name, "digest": digest, "kernel": "kernel",
            "initrd": "initrd", "rootfs": "rootfs.ext4", "rootfs_size_bytes": 8192});
        std::fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    }

    #[test]
    fn an_image_is_found_by_name_and_digest_alone() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "container-os", "sha256:1");
        let images = Images::new(dir.path());
        let name = "container-os".parse().unwrap();
        assert_eq!(images.find(&name, "sha256:1").unwrap().image.rootfs_bytes, 8192);
        assert!(images.find(&name, "sha256:2").unwrap_err().message.contains("sha256:2"));
        assert!(images.find(&"other".parse().unwrap(), "sha256:1").is_err());
    }

    #[test]
    fn a_half_copied_image_is_not_offered() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "whole", "sha256:1");
        write(dir.path(), "half", "sha256:2");
        std::fs::remove_file(dir.path().join("half/kernel")).unwrap();
        let names: Vec<_> =
            Images::new(dir.path()).list().into_iter().map(|i| i.image.name.to_string()).collect();
        assert_eq!(names, ["whole"]);
    }
}
