//! The guest's RAM: one or two anonymous mappings, each a KVM memory slot, with a bitmap of what the monitor itself
//! wrote.
//!
//! Invariants: region `i` is KVM slot `i`; regions are in ascending order and page aligned; every write of a device goes
//! through `vm-memory`, so that its bitmap sees it (KVM's log sees only what vCPUs write).

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::layout;
use crate::num::index;

/// The page size dirty logs count in, in bytes.
pub const PAGE: u64 = 4096;

/// The size of a huge page, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// The guest's memory.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// The address ranges of `memory_mib` MiB of RAM: below the hole, and what is left above it.
#[must_use]
pub fn ranges(memory_mib: u64) -> Vec<(u64, u64)> {
    let total = memory_mib << 20;
    if total <= layout::LOW_RAM_END {
        vec![(0, total)]
    } else {
        vec![(0, layout::LOW_RAM_END), (layout::HIGH_RAM_START, total - layout::LOW_RAM_END)]
    }
}

/// Maps the guest's RAM. Nothing is resident until it is touched.
///
/// # Errors
/// When the size is outside 32 MiB to 1 TiB, or the kernel refuses the mapping.
pub fn map(memory_mib: u64) -> Result<GuestRam> {
    ensure!(
        (32..=1 << 20).contains(&memory_mib),
        "memory of {memory_mib} MiB: give a machine between 32 MiB and 1 TiB"
    );
    let ranges: Vec<_> =
        ranges(memory_mib).into_iter().map(|(start, len)| (GuestAddress(start), index(len))).collect();
    let total = ranges.iter().map(|(_, length)| length).sum();
    align_next_mapping(total);
    let ram = GuestRam::from_ranges(&ranges).with_context(|| format!("map {memory_mib} MiB of guest RAM"))?;
    // A machine that arrives takes one nested fault for each page that it touches first: 512 times fewer with huge ones. Without
    // them all works the same, so nobody is told.
    for region in ram.iter() {
        // SAFETY: the region is mapped; the advice changes no content.
        unsafe { libc::madvise(region.as_ptr().cast(), index(region.len()), libc::MADV_HUGEPAGE) };
    }
    Ok(ram)
}

/// Makes it likely that the next anonymous mapping of `length` bytes begins at a huge page's boundary, as guest addresses do: KVM maps
/// huge pages only where both agree. Linux before 6.7 puts mappings right below each other, so a pad of the right size does it.
fn align_next_mapping(length: usize) {
    let probe = |length| {
        let (access, flags) =
            (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) }
    };
    let at = probe(length);
    if at == libc::MAP_FAILED {
        return;
    }
    // SAFETY: the mapping was just made and nobody knows of it.
    unsafe { libc::munmap(at, length) };
    let pad = at.addr() % HUGE_PAGE;
    if pad > 0 {
        // It stays: address space, and no memory.
        probe(pad);
    }
}

/// Gives the regions to KVM as slots 0, 1, …, with or without the dirty log.
///
/// # Errors
/// When KVM refuses a slot.
pub fn register(vm: &VmFd, ram: &GuestRam, log_dirty: bool) -> Result<()> {
    for (slot, region) in ram.iter().enumerate() {
        set_slot(vm, slot, region, log_dirty)?;
    }
    Ok(())
}

fn set_slot(vm: &VmFd, slot: usize, region: &GuestRegionMmap<AtomicBitmap>, log_dirty: bool) -> Result<()> {
    let argument = kvm_userspace_memory_region {
        slot: u32::try_from(slot)?,
        flags: if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the mapping lives as long as the `GuestRam`, which the `Vm` keeps longer than its `VmFd`; slots do not
    // overlap because the regions do not.
    unsafe { vm.set_user_memory_region(argument) }
        .with_context(|| format!("KVM_SET_USER_MEMORY_REGION slot {slot} at {:#x}", argument.guest_phys_addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_splits_around_the_32_bit_hole() {
        assert_eq!(ranges(512), [(0, 512 << 20)]);
        assert_eq!(ranges(3072), [(0, 3 << 30)]);
        assert_eq!(ranges(4096), [(0, 3 << 30), (4 << 30, 1 << 30)]);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(map(0).is_err());
        assert!(map(u64::MAX >> 20).is_err());
    }
}
