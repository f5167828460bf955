//! What this machine offers for running guests: hardware KVM, the lab, or neither.
//!
//! `/dev/kvm` may open and still be useless: a module without hardware behind it interprets every instruction of an ordinary
//! guest, hundreds of times slower, and a stock kernel never finishes booting on it. So a small guest is timed: the same
//! loop here and in a guest, and their ratio decides. The guest runs in a thread of its own with a time limit.

use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvm_ioctls::{Kvm, VcpuExit};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::memory;

/// How often the loop goes round. About 50 ms natively on an old CPU.
const ROUNDS: u32 = 50_000_000;
/// A guest slower than this many times the host is not hardware. (Hardware is about 1; interpreters are above 50.)
const LIMIT: f64 = 8.0;
/// How long the guest may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the guest's code lies and begins: real mode, `CS` base 0.
const CODE: u64 = 0x1000;
/// `mov ecx, ROUNDS` · `dec ecx` · `jnz` · `hlt`, in 16-bit code.
const PROGRAM: [u8; 11] = {
    let rounds = ROUNDS.to_le_bytes();
    [0x66, 0xb9, rounds[0], rounds[1], rounds[2], rounds[3], 0x66, 0x49, 0x75, 0xfc, 0xf4]
};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offer {
    /// Guests run here at full speed.
    HardwareKvm,
    /// Not here, but QEMU is installed: the lab runs real KVM guests in an emulated machine.
    Lab,
    /// Neither.
    Neither,
}

/// The answer, for a program and for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What was found.
    pub offer: Offer,
    /// How many times longer the guest took than the host for the same loop, where a guest ran to its end.
    pub ratio: Option<f64>,
    /// What was seen and what follows, in plain words.
    pub text: String,
}

/// Looks. Takes some 100 ms with hardware, at most about ten seconds without.
#[must_use]
pub fn probe() -> Verdict {
    let host = time_host();
    let guest = time_guest_with_patience();
    let qemu = qemu_installed();
    match guest {
        Ok(guest) => judge(guest.as_secs_f64() / host.as_secs_f64().max(1e-9), qemu),
        Err(reason) => without(None, &format!("{reason:#}"), qemu),
    }
}

fn judge(ratio: f64, qemu: bool) -> Verdict {
    if ratio <= LIMIT {
        let text = format!(
            "hardware KVM: a small guest ran {ratio:.1} times as long as the same loop on the host; machines run here"
        );
        return Verdict { offer: Offer::HardwareKvm, ratio: Some(ratio), text };
    }
    let seen = format!(
        "/dev/kvm exists, but a small guest took {ratio:.0} times as long as the host: it is not hardware, and \
         machines would never finish booting"
    );
    without(Some(ratio), &seen, qemu)
}

fn without(ratio: Option<f64>, seen: &str, qemu: bool) -> Verdict {
    let (offer, then) = if qemu {
        (Offer::Lab, "use the lab: scripts/lab runs a machine with KVM in QEMU")
    } else {
        (Offer::Neither, "install qemu-system-x86 to use the lab, or take a machine with virtualization")
    };
    Verdict { offer, ratio, text: format!("no hardware KVM: {seen}; {then}") }
}

fn qemu_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| is_file(&directory.join("qemu-system-x86_64")))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// The same loop on this CPU; the faster of two.
fn time_host() -> Duration {
    let once = || {
        let start = Instant::now();
        let mut rounds = ROUNDS;
        while std::hint::black_box(rounds) != 0 {
            rounds -= 1;
        }
        start.elapsed()
    };
    once().min(once())
}

/// The guest's time; an error when it does not come to an end in time.
fn time_guest_with_patience() -> Result<Duration> {
    let (sender, receiver) = channel();
    thread::Builder::new().name("probe".into()).spawn(move || drop(sender.send(time_guest())))?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result,
        // The thread is left to its guest; it ends with the process.
        Err(_) => bail!(
            "/dev/kvm exists, but a loop of {ROUNDS} rounds did not end in a guest within {} s: it is not hardware",
            PATIENCE.as_secs()
        ),
    }
}

fn time_guest() -> Result<Duration> {
    let kvm = Kvm::new().context("/dev/kvm cannot be opened")?;
    let vm = kvm.create_vm().context("KVM makes no VM")?;
    let ram = memory::map(32)?;
    memory::register(&vm, &ram, false)?;
    ram.write_slice(&PROGRAM, GuestAddress(CODE))?;
    let mut vcpu = vm.create_vcpu(0).context("KVM makes no vCPU")?;
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rip = CODE;
    regs.rflags = 2;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(start.elapsed()),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Ok(exit) => bail!("/dev/kvm runs no guest: a small loop ended with {exit:?}"),
            Err(error) => bail!("/dev/kvm runs no guest: KVM_RUN says {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_as_fast_as_the_host_is_hardware() {
        assert_eq!(judge(1.1, false).offer, Offer::HardwareKvm);
    }

    #[test]
    fn a_slow_guest_means_the_lab_or_neither_and_the_text_says_what_was_seen() {
        let verdict = judge(300.0, true);
        assert_eq!(verdict.offer, Offer::Lab);
        assert!(verdict.text.contains("300 times"), "{}", verdict.text);
        assert_eq!(judge(300.0, false).offer, Offer::Neither);
    }

    #[test]
    fn a_machine_without_kvm_is_told_why() {
        let verdict = without(None, "/dev/kvm cannot be opened", false);
        assert_eq!(verdict.offer, Offer::Neither);
        assert!(verdict.text.contains("cannot be opened"));
    }
}
