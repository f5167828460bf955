//! Pages onto a stream and off it.
//!
//! A zero page is a flag, run-length encoded; at the destination it is zeroed, as it may have held something in an
//! earlier round. What is sent is written at the destination, which thereby pre-faults the memory that the guest uses.

use anyhow::{Context as _, Result};

use super::frame::{BLOCK_SIZE, Encoder, Entry, MAX_DATA, Message};
use super::machine::{DirtyBitmap, RamRegion};
use super::region::{PAGE_SIZE, PageRun};
use super::send::Tally;

/// Pages in one frame: large enough that headers and system calls do not count, small enough to spread over streams.
pub const BATCH_PAGES: usize = MAX_DATA / PAGE_SIZE;

/// Cuts the marked pages into batches of at most [`BATCH_PAGES`].
#[must_use]
pub fn batches(dirty: &DirtyBitmap) -> Vec<Vec<PageRun>> {
    let mut batches: Vec<Vec<PageRun>> = Vec::new();
    let mut room = 0;
    for mut run in dirty.runs(BATCH_PAGES) {
        while run.count > 0 {
            if room == 0 {
                batches.push(Vec::new());
                room = BATCH_PAGES;
            }
            let count = run.count.min(room);
            if let Some(batch) = batches.last_mut() {
                batch.push(PageRun { count, ..run });
            }
            (run.page, run.count, room) = (run.page + count, run.count - count, room - count);
        }
    }
    batches
}

/// Appends one frame with the pages of `runs`.
///
/// # Errors
/// When a run lies outside its region, or holds more than a batch.
pub fn encode(
    regions: &[RamRegion],
    runs: &[PageRun],
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
    tally: &mut Tally,
) -> Result<()> {
    let start = out.len();
    let entries = entries(regions, runs)?;
    let message = Message::Pages(entries.iter().map(|(_, entry)| *entry).collect());
    encoder.encode_with(out, &message, |out| -> Result<()> {
        for (run, entry) in &entries {
            let pages = u64::from(entry.count);
            tally.pages += pages;
            if entry.zero {
                tally.zero_pages += pages;
                continue;
            }
            tally.content += pages * PAGE_SIZE as u64;
            let end = out.len();
            out.resize(end + run.count * PAGE_SIZE, 0);
            region(regions, run)?.read_pages(run.page, out.get_mut(end..).unwrap_or_default())?;
        }
        Ok(())
    })?;
    tally.ram_bytes += (out.len() - start) as u64;
    Ok(())
}

/// Splits runs where zero pages begin and end.
fn entries(regions: &[RamRegion], runs: &[PageRun]) -> Result<Vec<(PageRun, Entry)>> {
    let mut entries: Vec<(PageRun, Entry)> = Vec::new();
    for run in runs {
        let region = region(regions, run)?;
        let base = region.guest_address() / PAGE_SIZE as u64;
        for (page, may_hold) in (run.page..).zip(region.may_hold(run.page, run.count)?) {
            let zero = !may_hold || region.is_zero(page)?;
            let first = base + page as u64;
            match entries.last_mut() {
                Some((run, entry)) if entry.zero == zero && entry.first + u64::from(entry.count) == first => {
                    entry.count += 1;
                    run.count += 1;
                }
                _ => entries.push((
                    PageRun { region: run.region, page, count: 1 },
                    Entry { first, count: 1, zero, disk: 0 },
                )),
            }
        }
    }
    Ok(entries)
}

fn region<'a>(regions: &'a [RamRegion], run: &PageRun) -> Result<&'a RamRegion> {
    regions.get(run.region).with_context(|| format!("there is no RAM region {}", run.region))
}

/// Applies a frame of pages at the destination; `data` holds those that are not zero. All entries are checked against the
/// RAM before the first is written.
///
/// # Errors
/// When an entry lies outside RAM.
pub fn apply(regions: &[RamRegion], entries: &[Entry], mut data: &[u8]) -> Result<()> {
    let places = entries.iter().map(|entry| place(regions, entry)).collect::<Result<Vec<_>>>()?;
    for (region, page, count, zero) in places {
        if zero {
            region.zero_pages(page, count)?;
            continue;
        }
        let (bytes, rest) =
            data.split_at_checked(count * PAGE_SIZE).context("a frame of pages is cut short")?;
        region.write_pages(page, bytes)?;
        data = rest;
    }
    Ok(())
}

fn place<'a>(regions: &'a [RamRegion], entry: &Entry) -> Result<(&'a RamRegion, usize, usize, bool)> {
    let found = regions.iter().find_map(|region| {
        let page = entry.first.checked_sub(region.guest_address() / PAGE_SIZE as u64)?;
        let (page, count) = (usize::try_from(page).ok()?, usize::try_from(entry.count).ok()?);
        (page.checked_add(count)? <= region.pages()).then_some((region, page, count, entry.zero))
    });
    found.with_context(|| {
        format!(
            "the source sent {} pages from guest page {:#x} on, which lie outside the RAM",
            entry.count, entry.first
        )
    })
}

const _: () = assert!(BLOCK_SIZE == PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::super::fake::memory;
    use super::*;

    #[test]
    fn batches_hold_all_pages_and_no_more_than_fit_a_frame() {
        let regions = [memory(0, 1000), memory(1 << 30, 500)];
        let mut dirty = DirtyBitmap::new(&regions);
        dirty.set_all();
        let batches = batches(&dirty);
        let size = |batch: &Vec<PageRun>| batch.iter().map(|run| run.count).sum::<usize>();
        assert!(batches.iter().all(|batch| size(batch) <= BATCH_PAGES));
        assert_eq!(batches.iter().map(size).sum::<usize>(), 1500);
    }

    #[test]
    fn zero_pages_become_flags_and_others_data() {
        let regions = [memory(0x10_0000, 8)];
        regions[0].write_pages(2, &[1; 2 * PAGE_SIZE]).unwrap();
        let (mut out, mut tally) = (Vec::new(), Tally::default());
        let runs = [PageRun { region: 0, page: 0, count: 8 }];
        encode(&regions, &runs, &mut Encoder::new(1, 2, 3), &mut out, &mut tally).unwrap();
        let (_, message, data, _) = super::super::frame::parse(&out).unwrap();
        let entry = |first, count, zero| Entry { first, count, zero, disk: 0 };
        assert_eq!(
            message,
            Message::Pages(vec![entry(0x100, 2, true), entry(0x102, 2, false), entry(0x104, 4, true)])
        );
        assert_eq!(data, [1; 2 * PAGE_SIZE]);
        assert_eq!((tally.pages, tally.zero_pages), (8, 6));
    }

    #[test]
    fn pages_outside_ram_have_no_place() {
        let regions = [memory(0, 10), memory(0x10_0000, 10)];
        for (first, count) in [(10, 1), (9, 2), (0x100, 11), (0xff, 1), (u64::MAX - 1, 1)] {
            assert!(
                place(&regions, &Entry { first, count, zero: false, disk: 0 }).is_err(),
                "{first} {count}"
            );
        }
        place(&regions, &Entry { first: 0x109, count: 1, zero: true, disk: 0 }).unwrap();
    }
}
