//! Where everything of a machine's deployments is.
//!
//! ```text
//! /var/lib/mashines/deploy/
//!   repo.git            what is pushed
//!   releases/v7/        release.json, env.json (0600), app/ (the tree, built)
//!   state.json          which release serves, and on which port: changed by one rename, read by the front
//!   config.json         the variables of the next release (0600)
//!   turn, claim         kernel locks (see turn)
//!   operations/ID/      what `deploy begin` started
//! ```
//!
//! It is on the machine's disk, so it moves with the machine and outlives its boots.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

const BASE: &str = "/var/lib/mashines/deploy";

/// The variables by which tests live beside each other, each in a directory of its own and without systemd.
const TEST_BASE: &str = "MASHINES_DEPLOY_DIRECTORY";
const TEST_LISTEN: &str = "MASHINES_DEPLOY_LISTEN";
const TEST_PORTS: &str = "MASHINES_DEPLOY_PORTS";

/// The first port for releases: below the range of which the kernel takes ports for outgoing connections.
const FIRST_PORT: u16 = 20_000;

/// The directories and files.
#[derive(Clone, Debug)]
pub struct Place {
    base: PathBuf,
    /// A test's: processes are plain children, and the front listens on this port of the loopback.
    pub test_listen: Option<u16>,
    /// Where the ports of releases begin.
    pub first_port: u16,
}

impl Place {
    /// The machine's; or a test's, when the environment names one.
    pub fn of_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        match std::env::var_os(TEST_BASE) {
            Some(base) => Self {
                base: base.into(),
                test_listen: Some(number(TEST_LISTEN).unwrap_or(0)),
                first_port: number(TEST_PORTS).unwrap_or(FIRST_PORT),
            },
            None => Self { base: BASE.into(), test_listen: None, first_port: FIRST_PORT },
        }
    }

    /// A directory of a unit test.
    #[cfg(test)]
    pub fn for_test(base: &Path) -> Self {
        Self { base: base.to_owned(), test_listen: Some(0), first_port: FIRST_PORT }
    }

    /// All of it.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The bare repository.
    pub fn repository(&self) -> PathBuf {
        self.base.join("repo.git")
    }

    /// All releases.
    pub fn releases(&self) -> PathBuf {
        self.base.join("releases")
    }

    /// One release.
    pub fn release(&self, version: u64) -> PathBuf {
        self.releases().join(format!("v{version}"))
    }

    /// A release's tree.
    pub fn app(&self, version: u64) -> PathBuf {
        self.release(version).join("app")
    }

    /// Makes the base directory; nobody but root looks into it.
    pub fn make(&self) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.base)
            .with_context(|| format!("making {}", self.base.display()))
    }
}

/// Writes a file by a rename, so that a reader or a crash finds the old one or the new one, and syncs it.
pub fn write_json(path: &Path, value: &impl Serialize, mode: u32) -> Result<()> {
    let what = || format!("writing {}", path.display());
    let mut text = serde_json::to_vec_pretty(value).with_context(what)?;
    text.push(b'\n');
    let new = path.with_extension("new");
    // A file left by a crash may have other permissions.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(what),
        Ok(()) | Err(_) => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).with_context(what)?;
    file.write_all(&text).and_then(|()| file.sync_all()).with_context(what)?;
    fs::rename(&new, path).with_context(what)
}

/// Reads such a file; `None` when there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("understanding {}", path.display()))
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The machine's name, as its commands call it.
pub fn machine_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "MACHINE".to_owned(), |name| name.to_string_lossy().into_owned())
}
