//! The guest's physical address map, I/O ports and interrupt lines: the numbers that a machine keeps for life.
//!
//! ```text
//! 0x0000_0500  GDT                     0x0002_0000  command line
//! 0x0000_7000  boot_params             0x000e_0000  ACPI tables (reserved in e820)
//! 0x0000_9000  page tables             0x0010_0000  kernel, then free RAM up to 3 GiB, initrd at its top
//! 0xc000_0000  hole: nothing           0xd000_0000  virtio-mmio, one page a device
//! 0xfec0_0000  IOAPIC   0xfee0_0000  LAPIC   0xfffb_c000  KVM's own pages (Intel)
//! 0x1_0000_0000  RAM above 3 GiB goes on here
//! ```
//!
//! A live migration carries addresses inside device state, so **no number here may change** without a new version of
//! every state that carries it.

/// RAM below this, the rest from [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM goes on above the 32-bit hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// The boot GDT.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, the "zero page".
pub const ZERO_PAGE: u64 = 0x7000;
/// The page tables that map the first GiB one to one.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line, with its terminating zero.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// ACPI tables begin here, the RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// Where a kernel may be loaded.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Virtio-mmio windows begin here.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// One window.
pub const VIRTIO_WINDOW: u64 = 0x1000;
/// The IOAPIC, where KVM puts it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// KVM's identity map page; the three TSS pages follow.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's TSS pages.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// COM1, eight ports.
pub const COM1: u16 = 0x3f8;
/// COM1's interrupt line.
pub const COM1_GSI: u32 = 4;
/// The i8042's command port: 0xfe resets.
pub const I8042_COMMAND: u16 = 0x64;
/// ACPI PM1a event block: status, then enable, 16 bits each.
pub const PM1_EVENT: u16 = 0x600;
/// ACPI PM1a control block, 16 bits.
pub const PM1_CONTROL: u16 = 0x604;
/// The ACPI reset register, one byte.
pub const RESET: u16 = 0x608;
/// What the guest writes to [`RESET`].
pub const RESET_VALUE: u8 = 0x01;
/// The ACPI interrupt (SCI), level triggered.
pub const SCI_GSI: u32 = 9;

/// The interrupt lines virtio devices take, in order: first the pins no legacy device ever had.
pub const VIRTIO_GSIS: [u32; 14] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12];
