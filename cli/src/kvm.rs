//! Whether KVM on this machine is hardware or only looks like it: a counting loop timed in a guest and here.
//!
//! `/dev/kvm` may open, make VMs and vCPUs, and still interpret every instruction in software (`kvm_pvm`); only time tells. On
//! hardware, nested or not, the loop takes about as long inside as outside; interpreted, hundreds of times as long.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;

/// What there is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kvm {
    /// Guests run on the CPU.
    Hardware {
        /// Time of a loop in a guest over its time here.
        ratio: f64,
    },
    /// Guests run, instruction by instruction.
    Interpreted {
        /// Time of a loop in a guest over its time here.
        ratio: f64,
    },
    /// `/dev/kvm` opens, and no guest ran to its end.
    Unusable {
        /// What came back.
        why: String,
    },
    /// No `/dev/kvm`, or none that may be opened.
    Absent {
        /// What came back.
        why: String,
    },
}

/// Between the two kinds: hardware shows 0.5 to 3, interpretation hundreds.
const FAR_SLOWER: f64 = 20.0;

/// The guest may take this long; a loop that is interpreted takes about a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Times the loop. Takes a few milliseconds on hardware.
pub fn measure() -> Kvm {
    let (tell, told) = mpsc::channel();
    // A guest that never stops cannot be taken back; its thread ends with the process.
    thread::spawn(move || tell.send(guest::time_loops()));
    match told.recv_timeout(PATIENCE) {
        Ok(Ok(times)) => judge(times.inside, times.outside),
        Ok(Err(kvm)) => kvm,
        Err(_) => Kvm::Unusable { why: format!("a short loop did not end within {} s", PATIENCE.as_secs()) },
    }
}

/// The same loop, in a guest and here.
struct Times {
    inside: Duration,
    outside: Duration,
}

fn judge(inside: Duration, outside: Duration) -> Kvm {
    let ratio = inside.as_secs_f64() / outside.as_secs_f64().max(1e-9);
    if ratio < FAR_SLOWER { Kvm::Hardware { ratio } } else { Kvm::Interpreted { ratio } }
}

#[cfg(not(target_arch = "x86_64"))]
mod guest {
    //! The monitor is for x86-64.

    use super::{Kvm, Times};

    pub(super) fn time_loops() -> Result<Times, Kvm> {
        Err(Kvm::Absent { why: format!("machines run on x86_64; this is {}", std::env::consts::ARCH) })
    }
}

#[cfg(target_arch = "x86_64")]
mod guest {
    //! A guest of one page in real mode that counts down and halts.

    use std::time::{Duration, Instant};

    use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

    use super::{Kvm, Times};

    /// Where the code is, in the guest.
    const AT: u64 = 0x1000;
    /// How much there is.
    const PAGE: usize = 0x1000;
    /// `dec ecx; jnz -4; hlt` in 16-bit mode.
    const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];
    /// Rounds of the loop: 0.2 ms here, a second when interpreted.
    const ROUNDS: u32 = 500_000;
    /// Warms up: the guest's page, the tables that map it.
    const WARM_UP: u32 = 1_000;
    /// The best of so many counts: another process may have had the CPU.
    const TRIES: usize = 3;

    pub(super) fn time_loops() -> Result<Times, Kvm> {
        let kvm = kvm_ioctls::Kvm::new()
            .map_err(|e| Kvm::Absent { why: format!("cannot open /dev/kvm: {}", std::io::Error::from(e)) })?;
        let unusable =
            |doing: &str, e: &dyn std::fmt::Display| Kvm::Unusable { why: format!("cannot {doing}: {e}") };
        let vm = kvm.create_vm().map_err(|e| unusable("make a VM", &e))?;
        let memory = memory(&vm).map_err(|why| unusable("give the VM memory", &why))?;
        let mut vcpu = vm.create_vcpu(0).map_err(|e| unusable("make a vCPU", &e))?;
        count(&mut vcpu, WARM_UP).map_err(|why| unusable("run a guest", &why))?;
        let mut inside = Duration::MAX;
        let mut outside = Duration::MAX;
        for _ in 0..TRIES {
            let took = count(&mut vcpu, ROUNDS).map_err(|why| unusable("run a guest", &why))?;
            inside = inside.min(took);
            outside = outside.min(count_here(ROUNDS));
            if took > Duration::from_millis(500) {
                break;
            }
        }
        drop(memory);
        Ok(Times { inside, outside })
    }

    /// One page with the code; it must live as long as the vCPU runs.
    fn memory(vm: &VmFd) -> Result<GuestMemoryMmap, String> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(AT), PAGE)]).map_err(|e| e.to_string())?;
        memory.write_slice(&CODE, GuestAddress(AT)).map_err(|e| e.to_string())?;
        let host = memory.get_host_address(GuestAddress(AT)).map_err(|e| e.to_string())?;
        if vm.check_extension(Cap::SetTssAddr) {
            // Intel CPUs without unrestricted guests need three pages for real mode.
            vm.set_tss_address(0xfffb_d000).map_err(|e| e.to_string())?;
        }
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: AT,
            memory_size: 0x1000,
            userspace_addr: u64::try_from(host.addr()).map_err(|e| e.to_string())?,
        };
        // SAFETY: the region is the whole of the mapping that `memory` owns, and the caller keeps `memory` until after the last run.
        unsafe { vm.set_user_memory_region(region) }.map_err(|e| e.to_string())?;
        Ok(memory)
    }

    /// Counts `rounds` down in the guest.
    fn count(vcpu: &mut VcpuFd, rounds: u32) -> Result<Duration, String> {
        let mut sregs = vcpu.get_sregs().map_err(|e| e.to_string())?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).map_err(|e| e.to_string())?;
        let regs = kvm_bindings::kvm_regs { rip: AT, rcx: rounds.into(), rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).map_err(|e| e.to_string())?;
        let started = Instant::now();
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => Ok(started.elapsed()),
            Ok(other) => Err(format!("it ended with {other:?} instead of HLT")),
            Err(e) => Err(e.to_string()),
        }
    }

    /// The same loop here.
    fn count_here(rounds: u32) -> Duration {
        let started = Instant::now();
        // SAFETY: the two instructions change one register, which is named, and the flags, which are clobbered by default.
        unsafe {
            std::arch::asm!("2:", "dec {0:e}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack));
        }
        started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_judged_by_time_alone() {
        let ms = Duration::from_millis;
        assert!(matches!(judge(ms(101), ms(140)), Kvm::Hardware { .. }));
        assert!(matches!(judge(ms(30), ms(10)), Kvm::Hardware { .. }));
        assert!(matches!(judge(ms(4000), ms(10)), Kvm::Interpreted { .. }));
        assert!(matches!(judge(ms(1), Duration::ZERO), Kvm::Interpreted { .. }));
    }

    #[test]
    fn measuring_ends_whatever_this_machine_has() {
        let kvm = measure();
        if let Kvm::Hardware { ratio } | Kvm::Interpreted { ratio } = kvm {
            assert!(ratio > 0.0);
        }
    }
}
