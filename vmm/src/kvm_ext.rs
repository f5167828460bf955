//! The KVM calls that `kvm-ioctls` lacks. The only raw ioctls of the monitor on KVM's descriptors.
//!
//! Numbers and layouts: the kernel's `include/uapi/linux/kvm.h` and `Documentation/virt/kvm/api.rst`.

use std::io;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

/// `struct kvm_clear_dirty_log`.
#[repr(C)]
struct ClearDirtyLog {
    slot: u32,
    num_pages: u32,
    first_page: u64,
    bitmap: *const u64,
}

/// The size `KVM_GET_XSAVE` and the ioctl numbers of its family are defined with.
type XsaveArea = [u8; 4096];

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, ClearDirtyLog);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, XsaveArea);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, XsaveArea);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, XsaveArea);

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Clears the dirty bits that are set in `bitmap` (and write-protects those pages again). `bitmap` covers the slot's
/// `pages` pages from its first on. Needs `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
///
/// # Errors
/// When the bitmap is too short for `pages`, or the kernel refuses.
pub fn clear_dirty_log(vm: &VmFd, slot: u32, pages: u32, bitmap: &[u64]) -> io::Result<()> {
    if bitmap.len() * 64 < crate::num::index(u64::from(pages)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut argument = ClearDirtyLog { slot, num_pages: pages, first_page: 0, bitmap: bitmap.as_ptr() };
    // SAFETY: the kernel reads `pages` bits of `bitmap`, whose length was checked, and writes nothing of ours.
    check(unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut argument) })
}

/// What is added to the host's TSC to make this vCPU's. `None` where the kernel (before 5.16) cannot say.
#[must_use]
pub fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = tsc_attribute(&raw mut offset as u64);
    // SAFETY: the kernel writes one u64 to `addr`, which outlives the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) }).ok().map(|()| offset)
}

/// Sets what [`tsc_offset`] reads.
///
/// # Errors
/// When the kernel refuses.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let attribute = tsc_attribute(&raw const offset as u64);
    // SAFETY: the kernel reads one u64 from `addr`, which outlives the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) })
}

fn tsc_attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr, flags: 0 }
}

/// The vCPU's extended state. `size` is what `KVM_CAP_XSAVE2` says, or 4096 where it says nothing.
///
/// # Errors
/// When the kernel refuses.
pub fn xsave(vcpu: &VcpuFd, size: usize) -> io::Result<Vec<u8>> {
    let mut area = vec![0u8; size.max(size_of::<XsaveArea>())];
    let request = if size > size_of::<XsaveArea>() { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: KVM_GET_XSAVE writes 4096 bytes, KVM_GET_XSAVE2 what KVM_CAP_XSAVE2 says; the area has that.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })?;
    Ok(area)
}

/// Sets what [`xsave`] reads. `size` is this host's, from `KVM_CAP_XSAVE2`.
///
/// # Errors
/// When the area is longer than this host knows, or the kernel refuses.
pub fn set_xsave(vcpu: &VcpuFd, area: &[u8], size: usize) -> io::Result<()> {
    let size = size.max(size_of::<XsaveArea>());
    if area.len() > size {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut whole = vec![0u8; size];
    whole[..area.len()].copy_from_slice(area);
    // SAFETY: the kernel reads at most KVM_CAP_XSAVE2 bytes (4096 without it); `whole` has that.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), whole.as_ptr()) })
}
