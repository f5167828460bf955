//! The ACPI tables a machine boots with: how it learns of its CPUs, its virtio-mmio devices, COM1, the power button and
//! how to switch itself off. (Debian's kernels have no `virtio_mmio.device=` parameter; the DSDT is the only way.)
//!
//! ```text
//! RSDP → XSDT → FADT → DSDT (\_S5, CPUs, COM1, LNRO0005 devices), FACS
//!             → MADT (LAPICs, IOAPIC, IRQ 0 → 2, SCI level high)
//! ```

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::GuestRam;
use crate::num::{low32, round_up};

const OEM: [u8; 6] = *b"MASHIN";
const OEM_TABLE: [u8; 8] = *b"MASHINES";
/// `IAPC_BOOT_ARCH`: legacy devices exist (COM1); no VGA, no CMOS clock. The 8042 bit stays clear.
const BOOT_ARCH: u16 = 1 | (1 << 2) | (1 << 5);
/// MADT flag: the two legacy PICs exist.
const PCAT_COMPAT: u32 = 1;
/// MADT override flags: active high, level triggered.
const HIGH_LEVEL: u16 = 0b1101;
/// MADT override flags: as the bus says.
const CONFORMS: u16 = 0;

/// A virtio-mmio device as the DSDT announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest physical address of the window, [`layout::VIRTIO_WINDOW`] long.
    pub address: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// Writes all tables to guest memory from [`layout::ACPI`] on.
///
/// # Errors
/// When the tables do not fit below 1 MiB.
pub fn write(ram: &GuestRam, vcpus: u8, devices: &[MmioDevice]) -> Result<()> {
    for (address, bytes) in build(vcpus, devices)? {
        ram.write_slice(&bytes, GuestAddress(address))
            .with_context(|| format!("write an ACPI table at {address:#x}"))?;
    }
    Ok(())
}

/// The tables and where they go, the RSDP first.
fn build(vcpus: u8, devices: &[MmioDevice]) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut next = layout::ACPI + 64;
    let mut tables = Vec::new();
    let mut place = |bytes: Vec<u8>| {
        let address = next;
        // The FACS wants 64 bytes; the others do not mind.
        next = round_up(address + bytes.len() as u64, 64);
        tables.push((address, bytes));
        address
    };
    let facs = place(facs());
    let dsdt = place(dsdt(vcpus, devices)?);
    let fadt = place(to_bytes(&fadt(facs, dsdt)));
    let madt = place(madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(to_bytes(&xsdt));
    ensure!(next <= layout::HIGH_MEMORY, "ACPI tables end at {next:#x}, above 1 MiB");
    tables.insert(0, (layout::ACPI, to_bytes(&Rsdp::new(OEM, xsdt))));
    Ok(tables)
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn facs() -> Vec<u8> {
    let mut facs = vec![0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2; // version
    facs
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .firmware_ctrl_32(low32(facs))
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = u16::try_from(layout::SCI_GSI).unwrap_or_default().into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = io_port(layout::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.x_pm1a_evt_blk = io_port(layout::PM1_EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_port(layout::PM1_CONTROL, 16, AccessSize::WordAccess);
    fadt.finalize()
}

fn io_port(port: u16, bits: u8, access_size: AccessSize) -> GAS {
    GAS {
        address_space_id: AddressSpace::SystemIo,
        register_bit_width: bits,
        register_bit_offset: 0,
        access_size,
        address: u64::from(port).into(),
    }
}

fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, 1);
    madt.write_u32(36, layout::LAPIC);
    madt.write_u32(40, PCAT_COMPAT);
    for id in 0..vcpus {
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut ioapic = vec![1, 12, vcpus, 0];
    ioapic.extend(layout::IOAPIC.to_le_bytes());
    ioapic.extend(0u32.to_le_bytes());
    madt.append_slice(&ioapic);
    // KVM wires the PIT to pin 2, as every PC does.
    madt.append_slice(&interrupt_override(0, 2, CONFORMS));
    madt.append_slice(&interrupt_override(9, layout::SCI_GSI, HIGH_LEVEL));
    madt.as_slice().to_vec()
}

fn interrupt_override(source: u8, gsi: u32, flags: u16) -> Vec<u8> {
    let mut bytes = vec![2, 10, 0, source];
    bytes.extend(gsi.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn dsdt(vcpus: u8, devices: &[MmioDevice]) -> Result<Vec<u8>> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&sleep_state_s5());
    dsdt.append_slice(&processors(vcpus));
    dsdt.append_slice(&com1());
    for (index, device) in devices.iter().enumerate() {
        dsdt.append_slice(&virtio(index, *device)?);
    }
    Ok(dsdt.as_slice().to_vec())
}

/// `\_S5`: the value 5 in both sleep types switches the machine off (see `power.rs`).
fn sleep_state_s5() -> Vec<u8> {
    let package = aml::Package::new(vec![&5u8, &5u8, &0u8, &0u8]);
    to_bytes(&aml::Name::new("_S5_".into(), &package))
}

fn processors(vcpus: u8) -> Vec<u8> {
    let mut body = Vec::new();
    for id in 0..vcpus {
        let path = format!("C{id:03}");
        let hid = aml::Name::new("_HID".into(), &"ACPI0007");
        let uid = aml::Name::new("_UID".into(), &id);
        aml::Device::new(path.as_str().into(), vec![&hid, &uid]).to_aml_bytes(&mut body);
    }
    aml::Scope::raw("_SB_".into(), body)
}

fn com1() -> Vec<u8> {
    let (ports, interrupt) = (aml::IO::new(layout::COM1, layout::COM1, 0, 8), edge(layout::COM1_GSI));
    let hid = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501"));
    let uid = aml::Name::new("_UID".into(), &aml::ZERO);
    let crs = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&ports, &interrupt]));
    to_bytes(&aml::Device::new("_SB_.COM1".into(), vec![&hid, &uid, &crs]))
}

fn virtio(index: usize, device: MmioDevice) -> Result<Vec<u8>> {
    let path = format!("_SB_.V{index:03}");
    let memory = aml::Memory32Fixed::new(true, u32::try_from(device.address)?, low32(layout::VIRTIO_WINDOW));
    let interrupt = edge(device.gsi);
    let hid = aml::Name::new("_HID".into(), &"LNRO0005");
    let uid = aml::Name::new("_UID".into(), &index);
    // DMA that is not coherent would make Linux flush caches for nothing.
    let cca = aml::Name::new("_CCA".into(), &aml::ONE);
    let crs = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&memory, &interrupt]));
    Ok(to_bytes(&aml::Device::new(path.as_str().into(), vec![&hid, &uid, &cca, &crs])))
}

fn edge(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_sums_to_zero_and_says_its_length() {
        let devices = [MmioDevice { address: 0xd000_0000, gsi: 16 }];
        let tables = build(8, &devices).unwrap();
        assert_eq!(tables.len(), 6);
        assert_eq!(&tables[0].1[..8], b"RSD PTR ");
        assert_eq!(sum(&tables[0].1[..20]), 0);
        for (address, bytes) in &tables[1..] {
            let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            assert_eq!(len as usize, bytes.len(), "table at {address:#x}");
            if &bytes[..4] != b"FACS" {
                assert_eq!(sum(bytes), 0, "table at {address:#x}");
            }
        }
    }

    #[test]
    fn tables_do_not_overlap_even_with_all_devices() {
        let devices: Vec<_> = layout::VIRTIO_GSIS
            .iter()
            .map(|gsi| MmioDevice { address: layout::VIRTIO_BASE, gsi: *gsi })
            .collect();
        let tables = build(8, &devices).unwrap();
        for pair in tables[1..].windows(2) {
            assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
        }
    }

    #[test]
    fn a_device_lists_its_window_and_line() {
        let bytes = virtio(3, MmioDevice { address: 0xd000_3000, gsi: 19 }).unwrap();
        assert!(bytes.windows(4).any(|w| w == 0xd000_3000u32.to_le_bytes()));
        assert!(bytes.windows(4).any(|w| w == 19u32.to_le_bytes()));
        assert!(bytes.windows(8).any(|w| w == b"LNRO0005"));
    }
}
