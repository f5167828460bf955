//! Process 1 from the initrd until the image's own init takes over.
//!
//! ```text
//! mounts ▶ config ▶ modules ▶ clock ▶ network ▶ root ▶ switch root ▶ volumes ▶ identity, keys, files ▶ agent ▶ exec /sbin/init
//!                                             │            init_exec: agent (▶ SSH server) ▶ that process, process 1 reaps and waits
//!                                             └─ root.device "none": agent ▶ built-in userland, process 1 only reaps
//! ```
//!
//! Invariants: nothing of ours has to be in the image; a step that fails ends in one clear line on the console and in power
//! off, never in a half-made machine; no step shells out but those that are programs of the image by nature (mke2fs,
//! e2fsck, resize2fs, ssh-keygen).

mod clock;
mod ext4;
mod identity;
mod keys;
mod modules;
mod mounts;
mod netlink;
mod network;
mod process;
mod root;
mod text;
mod volumes;

use std::convert::Infallible;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use mashines_guest::Config;
use mashines_guest::config::{BUILTIN_BENCH, CONFIG_PATH, NO_ROOT, SSH_PATH};

use crate::log;

/// Runs init; returns only by ending the machine.
pub fn main() {
    let Err(error) = run();
    log::console(format_args!("FAILED: {error:#}; powering off"));
    process::power_off();
}

fn run() -> Result<Infallible> {
    mounts::kernel_file_systems()?;
    let config = read_config()?;
    modules::load_all()?;
    clock::set();
    network::configure(&config.interfaces)?;
    if config.root.device == NO_ROOT { stay_in_initramfs(&config) } else { become_image(&config) }
}

fn read_config() -> Result<Config> {
    let text = fs::read(CONFIG_PATH).with_context(|| {
        format!("no configuration in the initramfs at {CONFIG_PATH}: the host appends it to the initrd")
    })?;
    serde_json::from_slice(&text).with_context(|| format!("the configuration {CONFIG_PATH} cannot be read"))
}

/// Mounts the image, makes it this machine, and becomes its init.
fn become_image(config: &Config) -> Result<Infallible> {
    root::mount(&config.root)?;
    mounts::kernel_file_systems_into(root::MOUNTPOINT)?;
    process::leave_agent(root::MOUNTPOINT, config)?;
    process::leave_ssh(Path::new(SSH_PATH), root::MOUNTPOINT, config)?;
    root::switch()?;
    root::grow(&config.root)?;
    volumes::mount_all(&config.volumes)?;
    identity::apply(config)?;
    keys::apply(config)?;
    if config.is_single_process() {
        mounts::what_an_init_would_mount();
    }
    process::start_agent()?;
    match &config.init_exec {
        Some(command) => process::supervise(command, &config.env),
        None => process::become_init(),
    }
}

/// No root disk: the agent and the built-in userland, all in this one binary.
fn stay_in_initramfs(config: &Config) -> Result<Infallible> {
    if let Some(other) = config.init_exec.as_deref().filter(|&command| command != BUILTIN_BENCH) {
        bail!("without a root disk there is nothing that could run '{other}'; only {BUILTIN_BENCH} can");
    }
    mounts::run_directory()?;
    identity::set_hostname(&config.hostname)?;
    process::leave_agent("/", config)?;
    process::start_agent()?;
    if config.init_exec.is_some() {
        crate::bench::start()?;
    }
    process::reap_for_ever()
}
