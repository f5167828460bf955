//! A paused machine in a directory, and out of it again: `state` (sections) and `memory` (RAM, sparse).
//!
//! The disks are not copied: whoever keeps the snapshot keeps them as they were. A snapshot is whole when `state` exists: it
//! is written last, under another name, and renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::api::State;
use crate::migrate::machine::{PAGE_SIZE, RamRegion, Section, SourceMachine};
use crate::vm::Vm;

/// The first bytes of `state`.
const MAGIC: [u8; 8] = *b"MASHSNP1";

#[derive(Serialize, Deserialize)]
struct Saved {
    magic: [u8; 8],
    machine_id: String,
    cpuid: Vec<[u32; 6]>,
    memory: Vec<(u64, u64)>,
    sections: Vec<(u16, u16, Vec<u8>)>,
}

/// Writes a paused machine to `directory`, which is made.
///
/// # Errors
/// When the machine is not paused or a file cannot be written.
pub fn write(vm: &Vm, directory: &Path) -> Result<()> {
    let state = vm.phase().state;
    ensure!(state == State::Paused, "snapshot: the machine is {state:?}; pause it first");
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let sections = vm.save_sections()?;
    write_memory(vm, &directory.join("memory"))?;
    let saved = Saved {
        magic: MAGIC,
        machine_id: vm.spec.machine_id.clone(),
        cpuid: vm.cpuid().to_description(),
        memory: shape(&SourceMachine::ram(vm)?),
        sections: sections.into_iter().map(|s| (s.kind, s.version, s.bytes)).collect(),
    };
    let partial = directory.join("state.partial");
    let mut file = BufWriter::new(File::create(&partial)?);
    file.write_all(&postcard::to_stdvec(&saved)?)?;
    file.into_inner().context("write the snapshot's state")?.sync_all()?;
    fs::rename(&partial, directory.join("state"))?;
    Ok(())
}

fn shape(regions: &[RamRegion]) -> Vec<(u64, u64)> {
    regions.iter().map(|region| (region.guest_address(), region.length() as u64)).collect()
}

fn write_memory(vm: &Vm, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    let regions = SourceMachine::ram(vm)?;
    file.set_len(regions.iter().map(|region| region.length() as u64).sum())?;
    let mut page = vec![0; PAGE_SIZE];
    let mut offset = 0;
    for region in &regions {
        for number in 0..region.pages() {
            if !region.is_zero(number)? {
                region.read_pages(number, &mut page)?;
                file.write_all_at(&page, offset).with_context(|| format!("write {}", path.display()))?;
            }
            offset += PAGE_SIZE as u64;
        }
    }
    file.sync_all().with_context(|| format!("write {}", path.display()))
}

/// Loads a snapshot into a machine that has not run. It is paused afterwards.
///
/// # Errors
/// When the snapshot is of another machine or shape, or is damaged.
pub fn read(vm: &Vm, directory: &Path) -> Result<()> {
    let path = directory.join("state");
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let saved: Saved =
        postcard::from_bytes(&bytes).with_context(|| format!("understand {}", path.display()))?;
    ensure!(saved.magic == MAGIC, "{} is no snapshot of this version", path.display());
    ensure!(
        saved.machine_id == vm.spec.machine_id,
        "the snapshot is of machine {}, not of {}",
        saved.machine_id,
        vm.spec.machine_id
    );
    let regions = SourceMachine::ram(vm)?;
    if saved.memory != shape(&regions) {
        bail!("the snapshot's memory is {:?}, the machine's {:?}", saved.memory, shape(&regions));
    }
    vm.take_over_cpu(&saved.cpuid)?;
    vm.lock_disks()?;
    read_memory(&regions, &directory.join("memory"))?;
    let sections: Vec<_> =
        saved.sections.into_iter().map(|(kind, version, bytes)| Section { kind, version, bytes }).collect();
    vm.load_sections(&sections)?;
    vm.phase().state = State::Paused;
    Ok(())
}

fn read_memory(regions: &[RamRegion], path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.metadata()?.len();
    let mut page = vec![0; PAGE_SIZE];
    let mut base = 0;
    for region in regions {
        let end = base + region.length() as u64;
        ensure!(end <= length, "{} ends at {length}, before the machine's memory does", path.display());
        for run in crate::virtio::block::data_ranges(&file, end)? {
            let first = run.start.max(base) / PAGE_SIZE as u64;
            for number in first..run.end.div_ceil(PAGE_SIZE as u64) {
                file.read_exact_at(&mut page, number * PAGE_SIZE as u64)?;
                region.write_pages(crate::num::index(number - base / PAGE_SIZE as u64), &page)?;
            }
        }
        base = end;
    }
    Ok(())
}
