//! Which model-specific registers are part of a vCPU's state.

use anyhow::{Context, Result, bail};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// `IA32_TSC`.
pub const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: only means something once the TSC is set.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_MISC_ENABLE`.
const MISC_ENABLE: u32 = 0x1a0;

/// MSRs of the performance counters, which the CPUID baseline hides. `(first, last)`.
const PMU: [(u32, u32); 8] = [
    (0x0c1, 0x0c8),
    (0x186, 0x18d),
    (0x309, 0x30c),
    (0x345, 0x345),
    (0x38d, 0x390),
    (0x3f1, 0x3f2),
    (0xc001_0000, 0xc001_0007),
    (0xc001_0200, 0xc001_020b),
];
/// One more PMU range, of AMD's version 2.
const PMU_AMD_V2: (u32, u32) = (0xc000_0300, 0xc000_0302);

/// The MSRs to save on this host, in the order to load them: the TSC first, its deadline last.
///
/// # Errors
/// When KVM does not answer.
pub fn saved(kvm: &Kvm, scratch: &VcpuFd) -> Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    let mut indices: Vec<u32> = list.as_slice().iter().copied().filter(|msr| !is_pmu(*msr)).collect();
    indices.retain(|msr| readable(scratch, *msr));
    indices.sort_by_key(|msr| (rank(*msr), *msr));
    indices.dedup();
    Ok(indices)
}

fn is_pmu(msr: u32) -> bool {
    PMU.iter().chain([&PMU_AMD_V2]).any(|(first, last)| (*first..=*last).contains(&msr))
}

fn rank(msr: u32) -> u8 {
    match msr {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    }
}

fn readable(vcpu: &VcpuFd, msr: u32) -> bool {
    let entry = kvm_msr_entry { index: msr, ..kvm_msr_entry::default() };
    let Ok(mut msrs) = Msrs::from_entries(&[entry]) else { return false };
    matches!(vcpu.get_msrs(&mut msrs), Ok(1))
}

/// Reads `indices`.
///
/// # Errors
/// When one cannot be read, naming it.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>> {
    let entries: Vec<_> =
        indices.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }).collect();
    let mut msrs = Msrs::from_entries(&entries).context("more MSRs than KVM takes at once")?;
    let count = vcpu.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
    if let Some(missing) = indices.get(count) {
        bail!("KVM_GET_MSRS stopped at MSR {missing:#x}, which was readable when the machine was made");
    }
    Ok(msrs.as_slice().iter().map(|entry| (entry.index, entry.data)).collect())
}

/// Writes `values` in order. An MSR that KVM refuses to set is passed over if it has that value already.
///
/// # Errors
/// When one cannot be set, naming it and both values.
pub fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<()> {
    let mut left = values;
    while !left.is_empty() {
        let entries: Vec<_> = left
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..kvm_msr_entry::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries).context("more MSRs than KVM takes at once")?;
        let count = vcpu.set_msrs(&msrs).context("KVM_SET_MSRS")?;
        let Some((index, wanted)) = left.get(count) else { return Ok(()) };
        let present = read(vcpu, &[*index])?.first().map(|(_, value)| *value);
        if present != Some(*wanted) {
            bail!("KVM_SET_MSRS refused MSR {index:#x} = {wanted:#x}; here it is {present:x?}");
        }
        left = &left[count + 1..];
    }
    Ok(())
}

/// What firmware would have set on every CPU: fast string operations.
///
/// # Errors
/// When KVM refuses a value.
pub fn set_at_boot(vcpu: &VcpuFd) -> Result<()> {
    if readable(vcpu, MISC_ENABLE) {
        let present = read(vcpu, &[MISC_ENABLE])?.first().map_or(0, |(_, value)| *value);
        write(vcpu, &[(MISC_ENABLE, present | 1)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_is_loaded_first_and_its_deadline_last() {
        let mut msrs = [TSC_DEADLINE, 0xc000_0080, TSC, 0x174];
        msrs.sort_by_key(|msr| (rank(*msr), *msr));
        assert_eq!(msrs, [TSC, 0x174, 0xc000_0080, TSC_DEADLINE]);
    }

    #[test]
    fn performance_counters_are_not_saved() {
        assert!(is_pmu(0x186) && is_pmu(0xc001_0200) && is_pmu(0xc000_0301));
        assert!(!is_pmu(TSC) && !is_pmu(0xc000_0080));
    }
}
