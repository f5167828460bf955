//! `struct boot_params`: what firmware would have told the kernel.

use anyhow::Result;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Initrd;
use crate::layout;
use crate::memory::GuestRam;
use crate::num::low32;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the zero page. `header` is the bzImage's own; an ELF kernel gets a minimal one.
pub fn write(ram: &GuestRam, header: Option<setup_header>, cmdline_len: usize, initrd: Initrd) -> Result<()> {
    let mut params = boot_params { hdr: header.unwrap_or_else(minimal_header), ..boot_params::default() };
    // "Undefined" boot loader: no registered id is ours.
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = low32(layout::CMDLINE);
    params.hdr.cmdline_size = u32::try_from(cmdline_len + 1)?;
    params.hdr.ramdisk_image = initrd.address;
    params.hdr.ramdisk_size = initrd.len;
    params.acpi_rsdp_addr = layout::ACPI;
    for (index, entry) in e820(ram).into_iter().enumerate() {
        params.e820_table[index] = entry;
        params.e820_entries = u8::try_from(index + 1)?;
    }
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

fn minimal_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: 0x5372_6448, // "HdrS"
        kernel_alignment: 0x0100_0000,
        ..setup_header::default()
    }
}

fn e820(ram: &GuestRam) -> Vec<boot_e820_entry> {
    let entry = |addr, end, kind| boot_e820_entry { addr, size: end - addr, r#type: kind };
    let mut map =
        vec![entry(0, layout::EBDA, E820_RAM), entry(layout::ACPI, layout::HIGH_MEMORY, E820_RESERVED)];
    for region in ram.iter() {
        let start = region.start_addr().raw_value();
        map.push(entry(start.max(layout::HIGH_MEMORY), start + region.len(), E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_covers_ram_and_keeps_the_acpi_tables_out_of_it() {
        let map = e820(&crate::memory::map(4096).unwrap());
        let seen: Vec<_> = map.iter().map(|e| ({ e.addr }, { e.addr } + { e.size }, { e.r#type })).collect();
        assert_eq!(
            seen,
            [
                (0, 0x9_fc00, E820_RAM),
                (0xe_0000, 0x10_0000, E820_RESERVED),
                (0x10_0000, 0xc000_0000, E820_RAM),
                (0x1_0000_0000, 0x1_4000_0000, E820_RAM),
            ]
        );
    }
}
