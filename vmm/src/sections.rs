//! A machine's state as sections: what kinds there are, and the order they are saved and loaded in.
//!
//! | kind | what |
//! | --- | --- |
//! | `0x0001` | interrupt controllers, PIT, the KVM clock |
//! | `0x0002` | COM1 |
//! | `0x0003` | ACPI fixed hardware |
//! | `0x0100 + n` | vCPU n |
//! | `0x1000 + 0x100 × virtio id + n` | the virtio device in place n |
//!
//! Bytes are postcard. Saving happens within a migration's blackout: vCPUs save themselves in parallel, and nothing here
//! allocates more than it returns.

use std::sync::PoisonError;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::Deserialize;
use serde::Serialize;

use crate::clock::realtime_ns;
use crate::cpu::state::{self, VcpuState};
use crate::cpu::vcpu::on_each;
use crate::migrate::machine::{DeviceDescription, Section};
use crate::power::{self, PowerState};
use crate::serial::{self, SerialState};
use crate::virtio;
use crate::vm::Vm;

const PLATFORM: u16 = 0x0001;
const COM1: u16 = 0x0002;
const POWER: u16 = 0x0003;
const VCPU: u16 = 0x0100;
const VIRTIO: u16 = 0x1000;

/// The version of [`Platform`]'s encoding.
const PLATFORM_VERSION: u16 = 1;

/// What belongs to the VM and not to a vCPU or a device.
#[derive(Clone, Serialize, Deserialize)]
struct Platform {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: ClockState,
}

/// The KVM clock and when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClockState {
    guest_ns: u64,
    realtime_ns: u64,
}

impl Vm {
    /// The sections this machine saves, in order.
    pub(crate) fn device_descriptions(&self) -> Vec<DeviceDescription> {
        let fixed = |name: &str, kind, version| DeviceDescription { name: name.into(), kind, version };
        let mut all = vec![
            fixed("platform", PLATFORM, PLATFORM_VERSION),
            fixed("com1", COM1, serial::VERSION),
            fixed("power", POWER, power::VERSION),
        ];
        for (id, _) in (0u16..).zip(self.vcpus.iter()) {
            all.push(fixed(&format!("vcpu{id}"), VCPU + id, state::VERSION));
        }
        for (place, device) in (0u16..).zip(&self.bus.virtio) {
            all.push(fixed(device.name(), virtio_kind(device.id(), place), virtio::STATE_VERSION));
        }
        all
    }

    /// The state of everything but RAM and disks. The machine is stopped.
    pub(crate) fn save_sections(&self) -> Result<Vec<Section>> {
        let shape = self.shape.clone();
        let numbers: Vec<u16> = (0u16..).zip(self.vcpus.iter()).map(|(id, _)| VCPU + id).collect();
        let vcpus = on_each(&self.vcpus, numbers, move |vcpu, kind| {
            section(kind, state::VERSION, &state::save(vcpu, &shape)?)
        })?;
        let mut sections = vec![self.save_platform()?];
        let com1 = self.bus.com1.lock().unwrap_or_else(PoisonError::into_inner).state();
        sections.push(section(COM1, serial::VERSION, &com1)?);
        let power = self.bus.power.lock().unwrap_or_else(PoisonError::into_inner).state();
        sections.push(section(POWER, power::VERSION, &power)?);
        sections.extend(vcpus);
        for (place, device) in (0u16..).zip(&self.bus.virtio) {
            let kind = virtio_kind(device.id(), place);
            sections.push(Section { kind, version: virtio::STATE_VERSION, bytes: device.save()? });
        }
        Ok(sections)
    }

    fn save_platform(&self) -> Result<Section> {
        let clock = self.fd.get_clock().context("KVM_GET_CLOCK")?;
        let platform = Platform {
            clock: ClockState { guest_ns: clock.clock, realtime_ns: realtime_ns() },
            pic_master: self.irqchip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: self.irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: self.irqchip(KVM_IRQCHIP_IOAPIC)?,
            pit: self.fd.get_pit2().context("KVM_GET_PIT2")?,
        };
        section(PLATFORM, PLATFORM_VERSION, &platform)
    }

    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip> {
        let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
        self.fd.get_irqchip(&mut chip).with_context(|| format!("KVM_GET_IRQCHIP {chip_id}"))?;
        Ok(chip)
    }

    /// Brings a state that [`Vm::save_sections`] gave, here or on another host. Every section must be there once, in a
    /// version that is known.
    pub(crate) fn load_sections(&self, sections: &[Section]) -> Result<()> {
        let expected = self.device_descriptions();
        for section in sections {
            let Some(known) = expected.iter().find(|known| known.kind == section.kind) else {
                bail!(
                    "the state has a section of kind {:#06x}, which this machine has no part for",
                    section.kind
                );
            };
            ensure!(
                section.version == known.version,
                "the state of {} has version {}, this monitor reads {}",
                known.name,
                section.version,
                known.version
            );
        }
        ensure!(
            sections.len() == expected.len(),
            "the state has {} sections, this machine {}",
            sections.len(),
            expected.len()
        );
        let clock = self.load_platform(find(sections, PLATFORM)?)?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock);
        self.load_vcpus(sections)?;
        let com1: SerialState = decode(find(sections, COM1)?)?;
        self.bus.com1.lock().unwrap_or_else(PoisonError::into_inner).set_state(com1)?;
        let power: PowerState = decode(find(sections, POWER)?)?;
        self.bus.power.lock().unwrap_or_else(PoisonError::into_inner).set_state(power);
        for (place, device) in (0u16..).zip(&self.bus.virtio) {
            device.load(&find(sections, virtio_kind(device.id(), place))?.bytes)?;
        }
        Ok(())
    }

    fn load_platform(&self, section: &Section) -> Result<ClockState> {
        let platform: Platform = decode(section)?;
        for chip in [&platform.pic_master, &platform.pic_slave, &platform.ioapic] {
            self.fd.set_irqchip(chip).with_context(|| format!("KVM_SET_IRQCHIP {}", chip.chip_id))?;
        }
        self.fd.set_pit2(&platform.pit).context("KVM_SET_PIT2")?;
        Ok(platform.clock)
    }

    fn load_vcpus(&self, sections: &[Section]) -> Result<()> {
        let mut states: Vec<VcpuState> = Vec::new();
        for (id, _) in (0u16..).zip(self.vcpus.iter()) {
            states.push(decode(find(sections, VCPU + id)?)?);
        }
        let shape = self.shape.clone();
        on_each(&self.vcpus, states, move |vcpu, state| {
            state::load(vcpu, &state, &shape)?;
            state::excuse_pause(vcpu);
            Ok(())
        })?;
        Ok(())
    }

    /// Sets the guest's clock forward by the time that really passed since it was saved. Does nothing for a machine that
    /// was not loaded.
    pub(crate) fn start_clock(&self) -> Result<()> {
        let Some(saved) = self.clock.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let elapsed = realtime_ns().saturating_sub(saved.realtime_ns);
        let clock =
            kvm_clock_data { clock: saved.guest_ns.saturating_add(elapsed), ..kvm_clock_data::default() };
        self.fd.set_clock(&clock).context("KVM_SET_CLOCK")
    }
}

fn virtio_kind(id: u32, place: u16) -> u16 {
    VIRTIO + 0x100 * u16::try_from(id).unwrap_or(0xe) + place
}

fn section(kind: u16, version: u16, state: &impl Serialize) -> Result<Section> {
    let bytes = postcard::to_stdvec(state).with_context(|| format!("encode section {kind:#06x}"))?;
    Ok(Section { kind, version, bytes })
}

fn find(sections: &[Section], kind: u16) -> Result<&Section> {
    let section = sections.iter().find(|section| section.kind == kind);
    section.with_context(|| format!("the state lacks a section of kind {kind:#06x}"))
}

fn decode<'a, T: Deserialize<'a>>(section: &'a Section) -> Result<T> {
    postcard::from_bytes(&section.bytes).with_context(|| format!("decode section {:#06x}", section.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of version 1 must go on reading these bytes: change them only together with [`PLATFORM_VERSION`].
    #[test]
    fn the_platforms_encoding_of_version_1_does_not_change() {
        let chip = |chip_id| kvm_irqchip { chip_id, ..kvm_irqchip::default() };
        let platform = Platform {
            pic_master: chip(0),
            pic_slave: chip(1),
            ioapic: chip(2),
            pit: kvm_pit_state2::default(),
            clock: ClockState { guest_ns: 300, realtime_ns: 1 },
        };
        let bytes = postcard::to_stdvec(&platform).unwrap();
        assert_eq!((bytes.len(), crc32fast::hash(&bytes)), (1682, 4_183_914_340));
        // The clock comes last: 300 ns and 1 ns.
        assert_eq!(&bytes[bytes.len() - 3..], [0xac, 2, 1]);
    }
}
