//! Who the machine is: hostname, hosts, resolvers, environment, and the files it was given.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mashines_guest::Config;
use mashines_guest::config::File;

use super::text::with_block;

/// Writes all of it.
pub fn apply(config: &Config) -> Result<()> {
    set_hostname(&config.hostname)?;
    write("/etc/hostname", format!("{}\n", config.hostname), 0o644)?;
    edit_block("/etc/hosts", &hosts(config), 0o644)?;
    if !config.dns.is_empty() {
        write("/etc/resolv.conf", resolvers(&config.dns), 0o644)?;
    }
    write("/run/mashines/env", shell_environment(config), 0o600)?;
    edit_block("/etc/environment", &pam_environment(config), 0o644)?;
    config.files.iter().try_for_each(write_file)
}

/// Tells the kernel.
pub fn set_hostname(hostname: &str) -> Result<()> {
    nix::unistd::sethostname(hostname).with_context(|| format!("setting the hostname '{hostname}'"))
}

/// Replaces our block in a file of the image, which need not exist yet.
pub fn edit_block(path: &str, lines: &[String], mode: u32) -> Result<()> {
    let existing = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {path}")),
    };
    let text = with_block(&existing, lines);
    if text == existing { Ok(()) } else { write(path, &text, mode) }
}

/// Writes a file with these permissions, by a rename: a boot cut short leaves the old file or the new one. A symbolic link
/// is replaced and not followed (images link `resolv.conf` into a /run that is not there yet).
pub fn write(path: &str, text: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    if let Some(directory) = Path::new(path).parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let new = format!("{path}.mashines-new");
    let written = fs::write(&new, "")
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::write(&new, text))
        .and_then(|()| fs::rename(&new, path));
    written.with_context(|| format!("writing {path}"))
}

fn write_file(file: &File) -> Result<()> {
    let path = &file.path;
    if !path.starts_with('/') {
        bail!("the file '{path}' of the configuration is no absolute path");
    }
    let content = STANDARD
        .decode(&file.content_base64)
        .with_context(|| format!("the content of the file '{path}' of the configuration"))?;
    write(path, content, file.mode & 0o7777)
}

fn hosts(config: &Config) -> Vec<String> {
    let mut lines =
        vec!["127.0.0.1 localhost".to_owned(), "::1 localhost ip6-localhost ip6-loopback".to_owned()];
    let own = config.interfaces.iter().flat_map(|interface| interface.ipv6.iter().chain(&interface.ipv4));
    let mut own: Vec<IpAddr> = own.map(|prefix| prefix.address()).collect();
    if own.is_empty() {
        own.push(IpAddr::from([127, 0, 1, 1]));
    }
    lines.extend(own.into_iter().map(|address| format!("{address} {}", config.hostname)));
    lines
}

fn resolvers(dns: &[IpAddr]) -> String {
    dns.iter().map(|address| format!("nameserver {address}\n")).collect()
}

/// For `. /run/mashines/env` in a shell: every value in single quotes.
fn shell_environment(config: &Config) -> String {
    config.env.iter().map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', r"'\''"))).collect()
}

/// For pam_env, which knows no escapes: a value with a newline or a quote cannot be told to it, and is left to
/// /run/mashines/env.
fn pam_environment(config: &Config) -> Vec<String> {
    let plain = |value: &str| !value.contains(['\n', '"', '\'', '\\']);
    config
        .env
        .iter()
        .filter(|(_, value)| plain(value))
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mashines_guest::config::Interface;

    fn config() -> Config {
        let mut config = Config::new("m", "quiet-otter");
        config.env.insert("PLAIN".into(), "a b=c".into());
        config.env.insert("QUOTE".into(), "it's\ntwo".into());
        config
    }

    #[test]
    fn the_hostname_resolves_to_the_machines_own_addresses() {
        let mut config = config();
        let interface = r#"{"mac":"02::","ipv6":"2001:db8::7/128","ipv4":"10.0.0.7/32"}"#;
        config.interfaces.push(serde_json::from_str::<Interface>(interface).unwrap());
        assert_eq!(hosts(&config)[2..], ["2001:db8::7 quiet-otter", "10.0.0.7 quiet-otter"]);
    }

    #[test]
    fn the_shell_environment_survives_quotes_and_newlines() {
        assert_eq!(shell_environment(&config()), "PLAIN='a b=c'\nQUOTE='it'\\''s\ntwo'\n");
    }

    #[test]
    fn pam_is_told_only_what_it_can_read() {
        assert_eq!(pam_environment(&config()), ["PLAIN=\"a b=c\""]);
    }
}
