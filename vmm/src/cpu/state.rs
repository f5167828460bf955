//! A vCPU's registers, out of KVM and back in.
//!
//! Order matters (`Documentation/virt/kvm/api.rst`): reading `mp_state` first lets KVM settle pending INIT/SIPI; the LAPIC
//! goes in after the special registers (which hold its base), the MSRs after the LAPIC (a TSC deadline arms its timer),
//! the pending events last.

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msr;
use crate::clock::{ClockShift, Stamp};
use crate::kvm_ext;

/// The version of [`VcpuState`]'s encoding.
pub const VERSION: u16 = 1;

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
    /// The TSC's offset to the host's, where KVM tells it, and when that was.
    tsc_offset: Option<u64>,
    stamp: Stamp,
}

/// What the host fixes once: which MSRs, and how large the extended state is.
#[derive(Clone, Debug)]
pub struct StateShape {
    /// From [`msr::saved`].
    pub msrs: Vec<u32>,
    /// From `KVM_CAP_XSAVE2`, or 0.
    pub xsave_size: usize,
}

/// Reads everything. The vCPU is not in `KVM_RUN` and has completed its last exit.
///
/// # Errors
/// Names the call that KVM refused.
pub fn save(vcpu: &VcpuFd, shape: &StateShape) -> Result<VcpuState> {
    let mp_state = vcpu.get_mp_state().context("KVM_GET_MP_STATE")?;
    let stamp = Stamp::now();
    Ok(VcpuState {
        mp_state,
        regs: vcpu.get_regs().context("KVM_GET_REGS")?,
        sregs: vcpu.get_sregs().context("KVM_GET_SREGS")?,
        xsave: kvm_ext::xsave(vcpu, shape.xsave_size).context("KVM_GET_XSAVE")?,
        xcrs: vcpu.get_xcrs().context("KVM_GET_XCRS")?,
        debug_regs: vcpu.get_debug_regs().context("KVM_GET_DEBUGREGS")?,
        lapic: vcpu.get_lapic().context("KVM_GET_LAPIC")?,
        msrs: msr::read(vcpu, &shape.msrs)?,
        events: vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?,
        tsc_khz: vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?,
        tsc_offset: kvm_ext::tsc_offset(vcpu),
        stamp,
    })
}

/// Writes everything. `shift` is how far the clocks of the two hosts lie apart.
///
/// # Errors
/// Names the call that KVM refused.
pub fn load(vcpu: &VcpuFd, state: &VcpuState, shape: &StateShape) -> Result<()> {
    set_frequency(vcpu, state.tsc_khz)?;
    vcpu.set_mp_state(state.mp_state).context("KVM_SET_MP_STATE")?;
    vcpu.set_regs(&state.regs).context("KVM_SET_REGS")?;
    vcpu.set_sregs(&state.sregs).context("KVM_SET_SREGS")?;
    kvm_ext::set_xsave(vcpu, &state.xsave, shape.xsave_size).context("KVM_SET_XSAVE")?;
    vcpu.set_xcrs(&state.xcrs).context("KVM_SET_XCRS")?;
    vcpu.set_debug_regs(&state.debug_regs).context("KVM_SET_DEBUGREGS")?;
    vcpu.set_lapic(&state.lapic).context("KVM_SET_LAPIC")?;
    let shift = ClockShift::between(&state.stamp, &Stamp::now());
    let mut msrs = state.msrs.clone();
    let by_offset = match state.tsc_offset {
        Some(offset) => kvm_ext::set_tsc_offset(vcpu, shift.tsc_offset(offset, state.tsc_khz)).is_ok(),
        None => false,
    };
    if by_offset {
        msrs.retain(|(index, _)| *index != msr::TSC);
    } else if let Some((_, tsc)) = msrs.iter_mut().find(|(index, _)| *index == msr::TSC) {
        *tsc = tsc.wrapping_add(shift.elapsed_cycles(state.tsc_khz));
    }
    msr::write(vcpu, &msrs)?;
    vcpu.set_vcpu_events(&state.events).context("KVM_SET_VCPU_EVENTS")
}

/// Tells the guest's watchdogs that it was paused (`KVM_KVMCLOCK_CTRL`). A guest without the KVM clock has none to tell.
pub fn excuse_pause(vcpu: &VcpuFd) {
    let _ = vcpu.kvmclock_ctrl();
}

/// Runs the guest's TSC at `khz`. Asking for what it has already is not a request for scaling.
fn set_frequency(vcpu: &VcpuFd, khz: u32) -> Result<()> {
    let here = vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
    if here == khz {
        return Ok(());
    }
    // The kernel itself calls 250 ppm the same frequency.
    let close = u64::from(here.abs_diff(khz)) * 4000 <= u64::from(here);
    let set = vcpu.set_tsc_khz(khz);
    ensure!(
        close || set.is_ok(),
        "the machine's TSC runs at {khz} kHz, this host's at {here} kHz and it cannot scale: choose a host with the \
         same frequency"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of version 1 must go on reading these bytes: change them only together with [`VERSION`].
    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let state = VcpuState {
            mp_state: kvm_mp_state { mp_state: 3 },
            regs: kvm_regs { rip: 0x1122, ..kvm_regs::default() },
            sregs: kvm_sregs::default(),
            xsave: vec![1, 2, 3],
            xcrs: kvm_xcrs::default(),
            debug_regs: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            msrs: vec![(0x10, 5), (0x6e0, 300)],
            events: kvm_vcpu_events::default(),
            tsc_khz: 1_000_000,
            tsc_offset: Some(7),
            stamp: Stamp { boot_id: [9; 16], realtime_ns: 1, host_tsc: 2 },
        };
        let bytes = postcard::to_stdvec(&state).unwrap();
        assert_eq!(postcard::from_bytes::<VcpuState>(&bytes).unwrap(), state);
        assert_eq!(
            (bytes.len(), crc32fast::hash(&bytes)),
            (2114, 3_673_075_940),
            "the layout of version {VERSION} changed"
        );
    }
}
