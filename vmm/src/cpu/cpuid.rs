//! What the guest's CPU looks like: what KVM supports on this host, less what cannot migrate, with the machine's own topology.
//!
//! Taken away: nested virtualization, MONITOR/MWAIT, performance counters, SGX, processor trace, AMX (its state is not in
//! every host's XSAVE area), user-level waits. A table is fixed at boot and travels with the machine; a destination must
//! support every feature in it ([`compatible`]).

use anyhow::{Context, Result};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use super::cpuid_names::{self, Register};

/// The leaves of a CPU, in KVM's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidTable(pub Vec<Leaf>);

/// One leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// EAX on entry.
    pub function: u32,
    /// ECX on entry.
    pub index: u32,
    /// KVM's flags (whether `index` matters).
    pub flags: u32,
    /// EAX, EBX, ECX, EDX on return.
    pub registers: [u32; 4],
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Bits taken away: `(function, index, register, mask)`.
const HIDDEN: [(u32, u32, usize, u32); 12] = [
    (0x1, 0, ECX, 1 << 3 | 1 << 5 | 1 << 6 | 1 << 15), // MONITOR, VMX, SMX, PDCM
    (0x1, 0, EDX, 1 << 21),                            // DS
    (0x7, 0, EBX, 1 << 2 | 1 << 25),                   // SGX, PT
    (0x7, 0, ECX, 1 << 5 | 1 << 30),                   // WAITPKG, SGX_LC
    (0x7, 0, EDX, 1 << 22 | 1 << 24 | 1 << 25),        // AMX-BF16, AMX-TILE, AMX-INT8
    (0x7, 1, EAX, 1 << 21),                            // AMX-FP16
    (0x7, 1, EDX, 1 << 8),                             // AMX-COMPLEX
    (0xd, 0, EAX, 1 << 17 | 1 << 18),                  // AMX state components
    (0xd, 1, EAX, 1 << 4),                             // XFD, which only AMX uses
    (0x8000_0001, 0, ECX, 1 << 2 | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28), // SVM, IBS, counters
    (0x8000_0022, 0, EAX, u32::MAX),                   // counters, version 2
    (0xa, 0, EAX, u32::MAX),                           // architectural counters
];

/// Leaves returned as zero: PMU, SGX, PT, AMX tiles, SVM, IBS.
const EMPTIED: [u32; 7] = [0xa, 0x12, 0x14, 0x1d, 0x1e, 0x8000_000a, 0x8000_001b];

/// Leaves whose answer depends on ECX.
const INDEXED: [u32; 17] = [
    0x4,
    0x7,
    0xb,
    0xd,
    0xf,
    0x10,
    0x12,
    0x14,
    0x17,
    0x18,
    0x1d,
    0x1e,
    0x1f,
    0x24,
    0x8000_001d,
    0x8000_0020,
    0x8000_0026,
];

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HYPER_THREADING: u32 = 1 << 28;
const X2APIC: u32 = 1 << 21;

/// What this host can give a guest, before any filter.
///
/// # Errors
/// When KVM does not answer.
pub fn supported(kvm: &Kvm) -> Result<CpuidTable> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let mut table = CpuidTable(cpuid.as_slice().iter().map(Leaf::from_kvm).collect());
    if let Some(leaf) = table.leaf_mut(1, 0) {
        // KVM emulates these whatever the host's own CPU has, but does not list all of them.
        leaf.registers[ECX] |= HYPERVISOR | X2APIC;
        // The topology is ours to tell, whatever the host's is.
        leaf.registers[EDX] |= HYPER_THREADING;
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            leaf.registers[ECX] |= TSC_DEADLINE;
        }
    }
    Ok(table)
}

/// The table of a machine with `vcpus` CPUs on a host that supports `host`; [`CpuidTable::for_vcpu`] adds each CPU's own
/// numbers.
#[must_use]
pub fn baseline(host: &CpuidTable, vcpus: u8) -> CpuidTable {
    let mut table = host.clone();
    for leaf in &mut table.0 {
        for (function, index, register, mask) in HIDDEN {
            if (leaf.function, leaf.index) == (function, index) {
                leaf.registers[register] &= !mask;
            }
        }
        if EMPTIED.contains(&leaf.function) {
            leaf.registers = [0; 4];
        }
        topology(leaf, vcpus);
    }
    table.0.retain(|leaf| !matches!(leaf.function, 0xb | 0x1f));
    if host.leaf(0xb, 0).is_some() {
        table.0.extend(extended_topology(vcpus));
    }
    table
}

/// The topology of one socket of `vcpus` cores of one thread, where an existing leaf tells it.
fn topology(leaf: &mut Leaf, vcpus: u8) {
    let cores = u32::from(vcpus);
    let id_bits = cores.next_power_of_two().trailing_zeros();
    let registers = &mut leaf.registers;
    match leaf.function {
        0x1 => {
            registers[EBX] = registers[EBX] & 0x0000_ffff | cores << 16;
            registers[EDX] =
                if cores > 1 { registers[EDX] | HYPER_THREADING } else { registers[EDX] & !HYPER_THREADING };
        }
        0x4 | 0x8000_001d if registers[EAX] & 0x1f != 0 => {
            // The last level is shared by all cores, the others by nobody.
            let sharing = if registers[EAX] >> 5 & 7 >= 3 { cores - 1 } else { 0 };
            registers[EAX] = registers[EAX] & 0x0000_3fff | sharing << 14;
            if leaf.function == 0x4 {
                registers[EAX] |= (cores - 1) << 26;
            }
        }
        0x8000_0008 => registers[ECX] = registers[ECX] & !0xf0ff | id_bits << 12 | (cores - 1),
        _ => {}
    }
}

fn extended_topology(vcpus: u8) -> [Leaf; 3] {
    let cores = u32::from(vcpus);
    let id_bits = cores.next_power_of_two().trailing_zeros();
    let leaf = |index, eax, ebx, kind: u32| Leaf {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        registers: [eax, ebx, kind << 8 | index, 0],
    };
    [leaf(0, 0, 1, 1), leaf(1, id_bits, cores, 2), leaf(2, 0, 0, 0)]
}

impl Leaf {
    fn from_kvm(entry: &kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
        }
    }

    fn to_kvm(self) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = self.registers;
        kvm_cpuid_entry2 {
            function: self.function,
            index: self.index,
            flags: self.flags,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }
}

impl CpuidTable {
    /// One leaf, when the CPU has it.
    #[must_use]
    pub fn leaf(&self, function: u32, index: u32) -> Option<&Leaf> {
        self.0.iter().find(|leaf| (leaf.function, leaf.index) == (function, index))
    }

    fn leaf_mut(&mut self, function: u32, index: u32) -> Option<&mut Leaf> {
        self.0.iter_mut().find(|leaf| (leaf.function, leaf.index) == (function, index))
    }

    fn register(&self, function: u32, index: u32, register: usize) -> u32 {
        self.leaf(function, index).map_or(0, |leaf| leaf.registers[register])
    }

    /// As a migration describes it: `[function, index, eax, ebx, ecx, edx]`.
    #[must_use]
    pub fn to_description(&self) -> Vec<[u32; 6]> {
        let flat = |leaf: &Leaf| {
            let [eax, ebx, ecx, edx] = leaf.registers;
            [leaf.function, leaf.index, eax, ebx, ecx, edx]
        };
        self.0.iter().map(flat).collect()
    }

    /// What [`CpuidTable::to_description`] gave.
    #[must_use]
    pub fn from_description(leaves: &[[u32; 6]]) -> Self {
        let leaf = |&[function, index, eax, ebx, ecx, edx]: &[u32; 6]| Leaf {
            function,
            index,
            flags: if INDEXED.contains(&function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            registers: [eax, ebx, ecx, edx],
        };
        Self(leaves.iter().map(leaf).collect())
    }

    /// `AuthenticAMD`, `GenuineIntel`.
    #[must_use]
    pub fn vendor(&self) -> String {
        let bytes: Vec<u8> =
            [EBX, EDX, ECX].iter().flat_map(|r| self.register(0, 0, *r).to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The table as KVM takes it for the vCPU with this APIC id.
    ///
    /// # Errors
    /// When there are more leaves than KVM takes.
    pub fn for_vcpu(&self, id: u8) -> Result<CpuId> {
        let id = u32::from(id);
        let mut leaves = self.0.clone();
        for leaf in &mut leaves {
            match leaf.function {
                0x1 => leaf.registers[EBX] = leaf.registers[EBX] & 0x00ff_ffff | id << 24,
                0xb => leaf.registers[EDX] = id,
                0x8000_001e => {
                    // Extended APIC id; core id with one thread a core; node 0 of 1.
                    leaf.registers = [id, id, 0, 0];
                }
                _ => {}
            }
        }
        let entries: Vec<_> = leaves.into_iter().map(Leaf::to_kvm).collect();
        CpuId::from_entries(&entries).context("more CPUID leaves than KVM takes")
    }
}

/// Whether a machine with `source` can run where `host` is supported. The error names every feature that is missing.
///
/// # Errors
/// The missing features, or the vendor's difference.
pub fn compatible(source: &CpuidTable, host: &CpuidTable) -> Result<(), Vec<String>> {
    let (wanted, here) = (source.vendor(), host.vendor());
    if wanted != here {
        return Err(vec![format!("the machine's CPU is {wanted:?}, this host's {here:?}")]);
    }
    let mut missing = Vec::new();
    for register in cpuid_names::FEATURE_REGISTERS {
        let Register { function, index, register: slot, .. } = *register;
        let lacking = source.register(function, index, slot) & !host.register(function, index, slot);
        for bit in (0..32).filter(|bit| lacking >> bit & 1 == 1) {
            missing.push(cpuid_names::name(register, bit));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(leaves: &[(u32, u32, [u32; 4])]) -> CpuidTable {
        let leaf = |&(function, index, registers)| Leaf { function, index, flags: 0, registers };
        CpuidTable(leaves.iter().map(leaf).collect())
    }

    #[test]
    fn a_host_with_more_features_will_do_and_one_with_fewer_is_told_which() {
        let small = table(&[(0, 0, [7, 1, 2, 3]), (1, 0, [0, 0, 1, 0])]);
        let large = table(&[(0, 0, [7, 1, 2, 3]), (1, 0, [0, 0, 1 | 1 << 28, 0])]);
        assert_eq!(compatible(&small, &large), Ok(()));
        assert_eq!(compatible(&large, &small), Err(vec!["avx".to_owned()]));
    }

    #[test]
    fn another_vendor_is_refused() {
        let amd = table(&[(0, 0, [0, 0x6874_7541, 0x444d_4163, 0x6974_6e65])]);
        let intel = table(&[(0, 0, [0, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])]);
        assert_eq!(amd.vendor(), "AuthenticAMD");
        let error = compatible(&amd, &intel).unwrap_err();
        assert!(error[0].contains("GenuineIntel"), "{error:?}");
    }

    #[test]
    fn features_without_a_name_are_told_by_leaf_and_bit() {
        let source = table(&[(1, 0, [0, 0, 0, 1 << 10])]);
        assert_eq!(compatible(&source, &table(&[])), Err(vec!["CPUID 0x1.0 EDX bit 10".to_owned()]));
    }

    #[test]
    fn the_baseline_hides_nesting_and_counters_and_tells_the_topology() {
        let host = table(&[
            (1, 0, [0, 0, u32::MAX, u32::MAX]),
            (0xa, 0, [9; 4]),
            (0xb, 0, [9; 4]),
            (0x8000_0001, 0, [0, 0, u32::MAX, 0]),
        ]);
        let table = baseline(&host, 3);
        assert_eq!(table.register(1, 0, ECX) & (1 << 5), 0);
        assert_eq!(table.register(0x8000_0001, 0, ECX) & (1 << 2), 0);
        assert_eq!(table.register(0xa, 0, EAX), 0);
        assert_eq!(table.register(1, 0, EBX) >> 16, 3);
        assert_eq!(table.leaf(0xb, 1).unwrap().registers, [2, 3, 2 << 8 | 1, 0]);
        let cpu2 = table.for_vcpu(2).unwrap();
        let leaf1 = cpu2.as_slice().iter().find(|entry| entry.function == 1).unwrap();
        assert_eq!(leaf1.ebx >> 24, 2);
    }

    #[test]
    fn a_baseline_is_supported_by_its_own_host() {
        let host =
            table(&[(0, 0, [1, 2, 3, 4]), (1, 0, [5, 6, u32::MAX, 0x0fff_ffff]), (7, 0, [0, 9, 9, 9])]);
        for vcpus in 1..=8 {
            let mut host = host.clone();
            host.0[1].registers[EDX] |= HYPER_THREADING;
            assert_eq!(compatible(&baseline(&host, vcpus), &host), Ok(()));
        }
    }
}
