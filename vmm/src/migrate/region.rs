//! Guest RAM as migration sees it: page-wise copies in and out of a mapping that the guest may be writing, and the
//! bitmap of written pages. The only `unsafe` code of migration is here.
//!
//! A page copied while the guest writes it may be torn. That is harmless: such a page is in the dirty log and is sent
//! again after the guest stopped.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::resident;

/// The unit of the dirty log and of transfer, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// One contiguous piece of guest RAM, a private anonymous mapping.
#[derive(Clone)]
pub struct RamRegion {
    guest_address: u64,
    host: NonNull<u8>,
    length: usize,
    /// Keeps the mapping alive.
    _mapping: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointer is only used for copies through raw pointers within the mapping, which `_mapping` keeps alive; guest RAM is
// shared with the vCPUs in any case, so no reference to it is ever made.
unsafe impl Send for RamRegion {}
// SAFETY: as above.
unsafe impl Sync for RamRegion {}

impl fmt::Debug for RamRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamRegion({:#x}, {} bytes)", self.guest_address, self.length)
    }
}

impl RamRegion {
    /// Describes `length` bytes of RAM at `guest_address`, mapped at `host`.
    ///
    /// # Errors
    /// When address or length is not a multiple of the page size.
    ///
    /// # Safety
    /// `host..host + length` must be readable and writable as long as `mapping` lives, and must only ever be accessed
    /// through raw pointers or atomics (guest RAM).
    pub unsafe fn new(
        guest_address: u64,
        host: NonNull<u8>,
        length: usize,
        mapping: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        ensure!(
            guest_address.is_multiple_of(PAGE_SIZE as u64) && length.is_multiple_of(PAGE_SIZE),
            "RAM region {guest_address:#x}+{length:#x} is not made of whole pages"
        );
        Ok(Self { guest_address, host, length, _mapping: mapping })
    }

    /// The first guest physical address.
    #[must_use]
    pub fn guest_address(&self) -> u64 {
        self.guest_address
    }

    /// The length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.length / PAGE_SIZE
    }

    /// The address of the first byte in this process.
    #[must_use]
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    fn at(&self, page: usize, pages: usize) -> Result<*mut u8> {
        let end = page.checked_add(pages);
        ensure!(
            end.is_some_and(|end| end <= self.pages()),
            "pages {page}+{pages} lie outside the RAM region {:#x} of {} pages",
            self.guest_address,
            self.pages()
        );
        // SAFETY: `page` is within the mapping, as just checked.
        Ok(unsafe { self.host.as_ptr().add(page * PAGE_SIZE) })
    }

    /// Copies whole pages out: `out.len() / PAGE_SIZE` of them from `page` on.
    ///
    /// # Errors
    /// When they lie outside the region.
    pub fn read_pages(&self, page: usize, out: &mut [u8]) -> Result<()> {
        let from = self.at(page, out.len().div_ceil(PAGE_SIZE))?;
        // SAFETY: the range was checked by `at`; `out` is ours and cannot overlap guest RAM.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies whole pages in, from `page` on.
    ///
    /// # Errors
    /// When they lie outside the region.
    pub fn write_pages(&self, page: usize, bytes: &[u8]) -> Result<()> {
        let to = self.at(page, bytes.len().div_ceil(PAGE_SIZE))?;
        // SAFETY: the range was checked by `at`; `bytes` is ours and cannot overlap guest RAM.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Whether a page is all zero.
    ///
    /// # Errors
    /// When it lies outside the region.
    pub fn is_zero(&self, page: usize) -> Result<bool> {
        let words = self.at(page, 1)?.cast::<[u64; 8]>();
        for index in 0..PAGE_SIZE / 64 {
            // SAFETY: within the page, which `at` checked, and aligned since pages are. Volatile, as the guest may write.
            let eight = unsafe { words.add(index).read_volatile() };
            if eight.iter().fold(0, |all, word| all | word) != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// For each page whether it may hold anything but zeros, told without touching it.
    ///
    /// # Errors
    /// When they lie outside the region.
    pub fn may_hold(&self, page: usize, pages: usize) -> Result<Vec<bool>> {
        let first = NonNull::new(self.at(page, pages)?).context("guest RAM mapped at address 0")?;
        Ok(resident::may_hold(first, pages))
    }

    /// Makes pages zero. Pages that read as zero already are left alone, so that untouched memory stays unallocated.
    ///
    /// # Errors
    /// When they lie outside the region.
    pub fn zero_pages(&self, page: usize, pages: usize) -> Result<()> {
        for (page, may_hold) in (page..).zip(self.may_hold(page, pages)?) {
            if may_hold && !self.is_zero(page)? {
                let to = self.at(page, 1)?;
                // SAFETY: one page within the region, as `at` checked.
                unsafe { std::ptr::write_bytes(to, 0, PAGE_SIZE) };
            }
        }
        Ok(())
    }
}

/// Which pages of each region were written: one bit a page, words as `KVM_GET_DIRTY_LOG` lays them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    regions: Vec<RegionBits>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RegionBits {
    pages: usize,
    words: Vec<u64>,
}

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The index of the region.
    pub region: usize,
    /// The first page within it.
    pub page: usize,
    /// How many.
    pub count: usize,
}

impl DirtyBitmap {
    /// A clean bitmap for these regions.
    #[must_use]
    pub fn new(regions: &[RamRegion]) -> Self {
        let bits = |region: &RamRegion| RegionBits {
            pages: region.pages(),
            words: vec![0; region.pages().div_ceil(64)],
        };
        Self { regions: regions.iter().map(bits).collect() }
    }

    /// The number of regions.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Marks every page.
    pub fn set_all(&mut self) {
        for region in &mut self.regions {
            for (index, word) in region.words.iter_mut().enumerate() {
                let left = region.pages - index * 64;
                *word = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
            }
        }
    }

    /// Marks none.
    pub fn clear(&mut self) {
        for region in &mut self.regions {
            region.words.fill(0);
        }
    }

    /// Marks one page; what lies outside is ignored.
    pub fn set(&mut self, region: usize, page: usize) {
        let Some(region) = self.regions.get_mut(region) else { return };
        if page < region.pages
            && let Some(word) = region.words.get_mut(page / 64)
        {
            *word |= 1 << (page % 64);
        }
    }

    /// ORs the words of a whole region in, bit 0 of word 0 being its first page. Bits past the end are dropped.
    pub fn or_words(&mut self, region: usize, words: &[u64]) {
        let Some(region) = self.regions.get_mut(region) else { return };
        let last = region.words.len().saturating_sub(1);
        let tail = region.pages % 64;
        for (index, (mine, other)) in region.words.iter_mut().zip(words).enumerate() {
            let mask = if index == last && tail != 0 { (1 << tail) - 1 } else { u64::MAX };
            *mine |= other & mask;
        }
    }

    /// How many pages are marked.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.regions.iter().flat_map(|region| &region.words).map(|word| u64::from(word.count_ones())).sum()
    }

    /// The marked pages as runs of at most `longest`, ascending.
    #[must_use]
    pub fn runs(&self, longest: usize) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for (region, bits) in self.regions.iter().enumerate() {
            for (index, &word) in bits.words.iter().enumerate() {
                let mut left = word;
                while left != 0 {
                    let bit = left.trailing_zeros() as usize;
                    let count = (!(left >> bit)).trailing_zeros() as usize;
                    push(&mut runs, longest, PageRun { region, page: index * 64 + bit, count });
                    left = if bit + count >= 64 { 0 } else { left >> (bit + count) << (bit + count) };
                }
            }
        }
        runs
    }
}

/// Appends a run, joined to the one before where they touch, cut at `longest`.
fn push(runs: &mut Vec<PageRun>, longest: usize, mut run: PageRun) {
    if let Some(last) = runs.last_mut()
        && last.region == run.region
        && last.page + last.count == run.page
        && last.count < longest
    {
        let more = run.count.min(longest - last.count);
        last.count += more;
        run.page += more;
        run.count -= more;
    }
    while run.count > 0 {
        let count = run.count.min(longest.max(1));
        runs.push(PageRun { count, ..run });
        run.page += count;
        run.count -= count;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn region(pages: usize) -> RamRegion {
        let words = (0..pages * PAGE_SIZE / 8).map(|_| AtomicU64::new(0));
        let mapping: Arc<Vec<AtomicU64>> = Arc::new(words.collect());
        let host = NonNull::new(mapping.as_ptr().cast::<u8>().cast_mut()).unwrap();
        // SAFETY: the vector lives as long as its Arc and nobody else touches it.
        unsafe { RamRegion::new(0x1000, host, pages * PAGE_SIZE, mapping) }.unwrap()
    }

    #[test]
    fn pages_go_in_and_come_out() {
        let region = region(4);
        assert!(region.is_zero(2).unwrap());
        region.write_pages(1, &[7; 2 * PAGE_SIZE]).unwrap();
        let mut page = [0; PAGE_SIZE];
        region.read_pages(2, &mut page).unwrap();
        assert_eq!(page, [7; PAGE_SIZE]);
        region.zero_pages(0, 4).unwrap();
        assert!(region.is_zero(1).unwrap());
    }

    #[test]
    fn pages_outside_a_region_are_refused() {
        let region = region(4);
        assert!(region.write_pages(4, &[0; PAGE_SIZE]).is_err());
        assert!(region.write_pages(3, &[0; 2 * PAGE_SIZE]).is_err());
        assert!(region.is_zero(usize::MAX).is_err());
        assert!(region.zero_pages(1, usize::MAX).is_err());
    }

    proptest::proptest! {
        #[test]
        fn runs_cover_exactly_the_marked_pages(marked in proptest::collection::btree_set(0usize..300, 0..200), longest in 1usize..80) {
            let regions = [region(100), region(200)];
            let mut dirty = DirtyBitmap::new(&regions);
            for &page in &marked {
                if page < 100 { dirty.set(0, page) } else { dirty.set(1, page - 100) }
            }
            let mut seen = std::collections::BTreeSet::new();
            for run in dirty.runs(longest) {
                assert!(run.count <= longest && run.count > 0);
                for page in run.page..run.page + run.count {
                    assert!(seen.insert(page + run.region * 100));
                }
            }
            assert_eq!(seen, marked);
        }

        #[test]
        fn all_means_all(pages in 1usize..200) {
            let mut dirty = DirtyBitmap::new(&[region(pages)]);
            dirty.set_all();
            assert_eq!(dirty.count(), pages as u64);
            let mut other = DirtyBitmap::new(&[region(pages)]);
            other.or_words(0, &vec![u64::MAX; pages.div_ceil(64)]);
            assert_eq!(dirty, other);
        }
    }
}
