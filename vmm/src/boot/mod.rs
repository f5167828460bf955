//! Loads a kernel and leaves the first vCPU at its 64-bit entry point (Linux boot protocol, `Documentation/arch/x86/boot.rst`).
//!
//! A bzImage enters at its load address + 0x200, an ELF `vmlinux` at its entry address; both want long mode, the first
//! GiB mapped one to one, and `rsi` at `boot_params`.

mod long_mode;
mod params;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};

use crate::layout;
use crate::memory::{GuestRam, PAGE};
use crate::num::{index, round_up};

pub use long_mode::enter_kernel;

/// Offset of the 64-bit entry point from a bzImage's load address.
const BZIMAGE_ENTRY_64: u64 = 0x200;

/// Puts the kernel, the initial RAM disks, the command line and `boot_params` into RAM and says where to begin.
///
/// # Errors
/// When a file cannot be read, is not a kernel, or does not fit.
pub fn load(ram: &GuestRam, kernel: &Path, initrds: &[PathBuf], cmdline: &str) -> Result<GuestAddress> {
    let (result, entry) = load_kernel(ram, kernel)?;
    let initrd = load_initrds(ram, initrds, &result)?;
    write_cmdline(ram, cmdline)?;
    params::write(ram, result.setup_header, cmdline.len(), initrd)?;
    long_mode::write_tables(ram)?;
    Ok(entry)
}

fn load_kernel(ram: &GuestRam, path: &Path) -> Result<(KernelLoaderResult, GuestAddress)> {
    let mut file = File::open(path).with_context(|| format!("open the kernel {}", path.display()))?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).with_context(|| format!("read the kernel {}", path.display()))?;
    file.seek(SeekFrom::Start(0))?;
    let start = Some(GuestAddress(layout::HIGH_MEMORY));
    if magic == *b"\x7fELF" {
        let result = Elf::load(ram, None, &mut file, start)
            .with_context(|| format!("load the ELF kernel {}", path.display()))?;
        let entry = result.kernel_load;
        return Ok((result, entry));
    }
    let result = BzImage::load(ram, start, &mut file, start)
        .with_context(|| format!("load {}: neither an ELF kernel nor a bzImage that fits", path.display()))?;
    let flags = result.setup_header.map_or(0, |header| header.xloadflags);
    ensure!(flags & 1 == 1, "the kernel {} has no 64-bit entry point (XLF_KERNEL_64)", path.display());
    let entry = result.kernel_load.unchecked_add(BZIMAGE_ENTRY_64);
    Ok((result, entry))
}

/// Where the initial RAM disk lies: address and length, both 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Initrd {
    address: u32,
    len: u32,
}

/// Reads the archives one after the other, each padded to 4 bytes (a cpio archive begins aligned), to the top of low RAM.
fn load_initrds(ram: &GuestRam, paths: &[PathBuf], kernel: &KernelLoaderResult) -> Result<Initrd> {
    if paths.is_empty() {
        return Ok(Initrd::default());
    }
    let mut files = Vec::new();
    let mut total = 0;
    for path in paths {
        let file = File::open(path).with_context(|| format!("open the initrd {}", path.display()))?;
        let len = file.metadata()?.len();
        files.push((file, len, total));
        total += round_up(len, 4);
    }
    let top = highest_initrd_end(ram, kernel.setup_header)?;
    let Some(address) = top.checked_sub(total).map(|a| a & !(PAGE - 1)) else {
        bail!("initial RAM disks of {total} bytes do not fit below {top:#x}: give the machine more memory");
    };
    ensure!(
        address >= kernel_needs_until(kernel),
        "initial RAM disks of {total} bytes at {address:#x} would overlap the kernel, which needs RAM up to {:#x}: \
         give the machine more memory",
        kernel_needs_until(kernel)
    );
    for ((mut file, len, offset), path) in files.into_iter().zip(paths) {
        read_into(ram, address + offset, &mut file, len)
            .with_context(|| format!("read the initrd {}", path.display()))?;
    }
    Ok(Initrd { address: u32::try_from(address)?, len: u32::try_from(total)? })
}

fn highest_initrd_end(ram: &GuestRam, header: Option<setup_header>) -> Result<u64> {
    let low = ram.iter().next().context("a machine without RAM")?.len();
    let limit = header.map_or(0x7fff_ffff, |h| u64::from(h.initrd_addr_max));
    Ok(low.min(limit + 1))
}

/// The end of the RAM that the kernel takes before it knows of the initrd: a bzImage unpacks itself at its preferred
/// address and needs `init_size` there.
fn kernel_needs_until(kernel: &KernelLoaderResult) -> u64 {
    match kernel.setup_header {
        Some(header) => (header.pref_address + u64::from(header.init_size)).max(kernel.kernel_end),
        None => kernel.kernel_end,
    }
}

fn read_into(ram: &GuestRam, address: u64, file: &mut impl ReadVolatile, len: u64) -> Result<()> {
    ram.read_exact_volatile_from(GuestAddress(address), file, index(len))?;
    Ok(())
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<()> {
    ensure!(
        cmdline.len() < layout::CMDLINE_MAX && !cmdline.contains('\0'),
        "the kernel command line has {} bytes (limit {}) or contains a zero byte",
        cmdline.len(),
        layout::CMDLINE_MAX - 1
    );
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.write_slice(&[0], GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn several_initrds_are_padded_to_four_bytes_and_end_below_the_top_of_low_ram() {
        let ram = crate::memory::map(64).unwrap();
        let mut paths = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a", &b"abcde"[..]), ("b", b"xyz")] {
            let path = dir.path().join(name);
            File::create(&path).unwrap().write_all(bytes).unwrap();
            paths.push(path);
        }
        let initrd = load_initrds(&ram, &paths, &KernelLoaderResult::default()).unwrap();
        assert_eq!(initrd.len, 12);
        let mut seen = [0; 12];
        ram.read_slice(&mut seen, GuestAddress(u64::from(initrd.address))).unwrap();
        assert_eq!(&seen, b"abcde\0\0\0xyz\0");
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused_by_name() {
        let ram = crate::memory::map(64).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let error = load_kernel(&ram, file.path()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("neither an ELF kernel nor a bzImage"), "{error}");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let ram = crate::memory::map(64).unwrap();
        assert!(write_cmdline(&ram, &"x".repeat(layout::CMDLINE_MAX)).is_err());
        write_cmdline(&ram, "quiet").unwrap();
    }
}
