//! The block device: 4 KiB logical blocks on a sparse overlay over an optional read-only base.

mod bitmap;
mod device;
mod disk;
mod extents;
mod request;

pub use device::Block;
pub use disk::DiskFile;
pub use extents::data as data_ranges;

/// The logical block, and the unit of allocation and of dirty tracking, in bytes.
pub const BLOCK: u64 = 4096;
