//! The kernel's modules, from the initrd.

use std::fs::{self, File};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::log;

/// File names below [`DIRECTORY`], one a line, each after those it needs; the image recipe writes it.
const LIST: &str = "/modules.list";
const DIRECTORY: &str = "/modules";

/// Loads every module of the list. One that does not load is noted and passed over: which of them matter depends on
/// the devices, and a device that is missing is reported by the step that needs it.
pub fn load_all() -> Result<()> {
    let list =
        fs::read_to_string(LIST).with_context(|| format!("reading the initrd's module list {LIST}"))?;
    for name in list.lines().filter(|name| !name.is_empty()) {
        let path = format!("{DIRECTORY}/{name}");
        let file = File::open(&path).with_context(|| format!("opening the kernel module {path}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // A module for a CPU or a device that is not here.
            Err(Errno::ENODEV) => {}
            Err(errno) => log::console(format_args!("the kernel refused the module {path}: {errno}")),
        }
    }
    Ok(())
}
