//! The first vCPU's registers: long mode, flat segments, the first GiB mapped one to one.

use anyhow::{Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::layout;
use crate::memory::{GuestRam, PAGE};

/// Null, unused, code (64-bit, exec/read), data (read/write), TSS: as the boot protocol numbers them (`__BOOT_CS` is 0x10).
const GDT: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Writes the GDT and the page tables (PML4 → one PDPT → one directory of 512 pages of 2 MiB).
pub fn write_tables(ram: &GuestRam) -> Result<()> {
    for (offset, descriptor) in (0u64..).step_by(8).zip(GDT) {
        ram.write_obj(descriptor, GuestAddress(layout::GDT + offset))?;
    }
    let (pml4, pdpt, directory) =
        (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE, layout::PAGE_TABLES + 2 * PAGE);
    ram.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    ram.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for page in 0..512u64 {
        ram.write_obj((page << 21) | PRESENT_WRITABLE | LARGE_PAGE, GuestAddress(directory + page * 8))?;
    }
    Ok(())
}

/// Sets the boot vCPU to the kernel's 64-bit entry point.
///
/// # Errors
/// When KVM refuses the registers.
pub fn enter_kernel(vcpu: &VcpuFd, entry: GuestAddress) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS of vCPU 0")?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT) - 1)?;
    sregs.cs = segment(2);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = segment(3);
    }
    sregs.tr = segment(4);
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS of vCPU 0 for 64-bit boot")?;
    let regs = kvm_regs { rflags: 2, rip: entry.raw_value(), rsi: layout::ZERO_PAGE, ..kvm_regs::default() };
    vcpu.set_regs(&regs).context("KVM_SET_REGS of vCPU 0 for 64-bit boot")
}

/// KVM's unpacked form of a descriptor of [`GDT`].
fn segment(index: u16) -> kvm_segment {
    let descriptor = GDT[usize::from(index)];
    let bits = |shift: u32, mask: u64| u8::try_from((descriptor >> shift) & mask).unwrap_or(0);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: bits(40, 0xf),
        s: bits(44, 1),
        dpl: bits(45, 3),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_segment_is_64_bit_and_the_data_segment_is_not() {
        let (code, data) = (segment(2), segment(3));
        assert_eq!((code.l, code.db, code.s, code.type_, code.selector), (1, 0, 1, 0xb, 0x10));
        assert_eq!((data.l, data.db, data.s, data.type_, data.selector), (0, 1, 1, 0x3, 0x18));
        assert_eq!((code.present, data.present, code.g), (1, 1, 1));
    }
}
