//! What `mashines login` keeps: where the API is, the token, the CA to trust.
//!
//! The file is `$MASHINES_CONFIG`, else `mashines/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`; mode 0600, for it holds the
//! token. `MASHINES_API`, `MASHINES_TOKEN` and `MASHINES_CA` (a PEM file or `sha256:…`) win over it, one by one. `MASHINES_ACCOUNT`
//! is what `--account` says.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{CliError, Exit};

/// The settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `https://host:port`.
    pub api: String,
    /// The bearer token.
    pub token: String,
    /// The only CA that is trusted: the fleet's, in PEM, or `sha256:` and its fingerprint in hex.
    pub ca: String,
}

/// How the API is told from an impostor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// By the fleet's CA, PEM.
    Ca(String),
    /// By the SHA-256 of that CA's certificate, 64 hex digits, lower case.
    Fingerprint(String),
}

impl Settings {
    /// What `ca` says.
    pub fn trust(&self) -> Result<Trust, CliError> {
        let Some(hex) = self.ca.trim().strip_prefix(FINGERPRINT) else {
            return Ok(Trust::Ca(self.ca.clone()));
        };
        // openssl prints fingerprints with colons.
        let hex = hex.replace(':', "").to_ascii_lowercase();
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Trust::Fingerprint(hex));
        }
        Err(CliError::usage(format!("{:?} is no fingerprint of a CA: sha256: and 64 hex digits", self.ca)))
    }
}

const FINGERPRINT: &str = "sha256:";

/// Reads an environment variable; a parameter, so that tests need not change the process's own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where the settings are.
pub fn path(environment: Environment<'_>) -> Result<PathBuf, CliError> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    if let Some(file) = set("MASHINES_CONFIG") {
        return Ok(PathBuf::from(file));
    }
    let directory = set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".config")))
        .ok_or_else(|| {
            CliError::usage(
                "cannot tell where the settings are: none of MASHINES_CONFIG, XDG_CONFIG_HOME, HOME is set",
            )
            .next("export MASHINES_CONFIG=FILE")
        })?;
    Ok(directory.join("mashines").join("config.toml"))
}

/// The settings in force: the file's, with the environment's over them.
pub fn load(environment: Environment<'_>) -> Result<Settings, CliError> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let file = path(environment)?;
    let mut settings = read(&file)?.unwrap_or_default();
    if let Some(api) = set("MASHINES_API") {
        settings.api = api;
    }
    if let Some(token) = set("MASHINES_TOKEN") {
        settings.token = token;
    }
    if let Some(ca) = set("MASHINES_CA") {
        settings.ca = read_ca(&ca)?;
    }
    let missing = [
        ("the API's URL (MASHINES_API)", settings.api.is_empty()),
        ("a token (MASHINES_TOKEN)", settings.token.is_empty()),
        ("the fleet's CA (MASHINES_CA)", settings.ca.is_empty()),
    ];
    match missing.iter().find(|(_, missing)| *missing) {
        None => Ok(settings),
        Some((what, _)) => Err(CliError::new(
            Exit::Denied,
            format!("not logged in: {} does not give {what}", file.display()),
        )
        .next("mashines login --api URL --token TOKEN --ca FILE")),
    }
}

/// A CA as people give it: a PEM file, or a fingerprint.
pub fn read_ca(given: &str) -> Result<String, CliError> {
    if given.starts_with(FINGERPRINT) {
        return Ok(given.to_owned());
    }
    fs::read_to_string(given).map_err(|e| {
        CliError::new(Exit::Denied, format!("cannot read the fleet's CA from the file {given}: {e}"))
    })
}

/// The file's settings; none when there is no file.
fn read(file: &Path) -> Result<Option<Settings>, CliError> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(CliError::new(
                Exit::Denied,
                format!("cannot read the settings in {}: {error}", file.display()),
            ));
        }
    };
    let parsed = toml::from_str(&text).map_err(|error| {
        // The parser quotes the line it stumbled over, and that line may hold the token.
        let why = error.message().to_owned();
        CliError::new(Exit::Denied, format!("cannot understand the settings in {}: {why}", file.display()))
            .next("mashines login, which writes them anew")
    })?;
    Ok(Some(parsed))
}

/// The account that the environment says to act for.
pub fn account(environment: Environment<'_>) -> Option<String> {
    environment("MASHINES_ACCOUNT").filter(|value| !value.is_empty())
}

/// Writes the settings, readable by their owner only. All or nothing: a new file takes the old one's place.
pub fn save(file: &Path, settings: &Settings) -> Result<(), CliError> {
    let fail =
        |e: io::Error| CliError::failed(format!("cannot write the settings to {}: {e}", file.display()));
    let text = toml::to_string(settings)
        .map_err(|e| CliError::failed(format!("cannot encode the settings: {e}")))?;
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(fail)?;
    }
    let mut new = file.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let mut open = fs::OpenOptions::new();
    let written = open.write(true).create(true).truncate(true).mode(0o600).open(&new).and_then(|mut f| {
        f.set_permissions(fs::Permissions::from_mode(0o600))?;
        f.write_all(text.as_bytes())?;
        f.sync_all()
    });
    written.and_then(|()| fs::rename(&new, file)).map_err(|error| {
        // The half-written file holds the token.
        let _ = fs::remove_file(&new);
        fail(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { api: "https://h:1".into(), token: "secret".into(), ca: "-----BEGIN\nx\n".into() }
    }

    #[test]
    fn settings_come_back_and_only_their_owner_may_read_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/config.toml");
        save(&file, &settings()).unwrap();
        save(&file, &settings()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        let at = file.display().to_string();
        let environment = |name: &str| (name == "MASHINES_CONFIG").then(|| at.clone());
        assert_eq!(load(&environment).unwrap(), settings());
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, "other").unwrap();
        save(&file, &settings()).unwrap();
        let environment = |name: &str| match name {
            "MASHINES_CONFIG" => Some(file.display().to_string()),
            "MASHINES_TOKEN" => Some("mine".to_owned()),
            "MASHINES_CA" => Some(ca.display().to_string()),
            _ => None,
        };
        let loaded = load(&environment).unwrap();
        assert_eq!(
            (loaded.api.as_str(), loaded.token.as_str(), loaded.ca.as_str()),
            ("https://h:1", "mine", "other")
        );
    }

    #[test]
    fn a_fingerprint_is_taken_in_any_usual_writing() {
        let trust = |ca: &str| Settings { ca: ca.to_owned(), ..settings() }.trust();
        let colons = ["AB"; 32].join(":");
        assert_eq!(trust(&format!("sha256:{colons}")).unwrap(), Trust::Fingerprint("ab".repeat(32)));
        assert!(trust("sha256:abcd").is_err());
        assert_eq!(trust("-----BEGIN").unwrap(), Trust::Ca("-----BEGIN".to_owned()));
    }

    #[test]
    fn without_settings_the_error_names_what_is_missing_and_never_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let at = file.display().to_string();
        let environment = |name: &str| (name == "MASHINES_CONFIG").then(|| at.clone());
        let error = load(&environment).unwrap_err();
        assert_eq!(error.exit, Exit::Denied);
        assert!(error.message.contains("MASHINES_API"), "{error}");
        fs::write(&file, "token = \"secret\n").unwrap();
        let error = load(&environment).unwrap_err();
        assert!(!error.human().contains("secret"), "{error}");
        assert!(path(&|_| None).is_err());
    }
}
