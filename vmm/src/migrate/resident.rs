//! Which pages of a private anonymous mapping hold anything, without touching them: reading an untouched page would cost a
//! fault, and most of an idle machine's RAM is untouched.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::region::PAGE_SIZE;

/// Present, or in swap (Documentation/admin-guide/mm/pagemap.rst).
const HOLDS_SOMETHING: u64 = 1 << 63 | 1 << 62;

/// For each of `pages` pages from `first` on whether it may hold anything but zeros. Where the kernel does not tell, all may.
pub fn may_hold(first: NonNull<u8>, pages: usize) -> Vec<bool> {
    if !first.addr().get().is_multiple_of(PAGE_SIZE) {
        return vec![true; pages];
    }
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    let Some(pagemap) = PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()) else {
        return vec![true; pages];
    };
    let mut entries = vec![0; pages * 8];
    let offset = first.addr().get() / PAGE_SIZE * 8;
    match pagemap.read_exact_at(&mut entries, offset as u64) {
        Ok(()) => {
            entries.as_chunks().0.iter().map(|e| u64::from_le_bytes(*e) & HOLDS_SOMETHING != 0).collect()
        }
        Err(_) => vec![true; pages],
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;

    #[test]
    fn only_pages_that_were_written_hold_anything() {
        let ram = crate::memory::map(32).unwrap();
        let region = ram.iter().next().unwrap();
        // SAFETY: it is mapped, and huge pages are kept out of the picture.
        unsafe { libc::madvise(region.as_ptr().cast(), 8 * PAGE_SIZE, libc::MADV_NOHUGEPAGE) };
        ram.write_obj(0u64, GuestAddress(3 * PAGE_SIZE as u64)).unwrap();
        let mut written = [false; 8];
        written[3] = true;
        assert_eq!(may_hold(NonNull::new(region.as_ptr()).unwrap(), 8), written);
    }

    #[test]
    fn of_a_mapping_that_is_not_aligned_everything_is_looked_at() {
        let bytes = vec![0u8; 3 * PAGE_SIZE];
        let odd = bytes.as_ptr().addr() | 1;
        assert_eq!(may_hold(NonNull::new(std::ptr::without_provenance_mut(odd)).unwrap(), 2), [true; 2]);
    }
}
