//! Which parts of a sparse file hold data: the file system's extent map, through `SEEK_DATA` and `SEEK_HOLE`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// The byte ranges of data below `size`, ascending. A file system that knows no holes reports all of it.
///
/// # Errors
/// When the file cannot be sought.
pub fn data(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut position = 0;
    while position < size {
        let Some(start) = seek(file, position, libc::SEEK_DATA)? else { break };
        if start >= size {
            break;
        }
        let end = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(size).min(size);
        ranges.push(start..end);
        position = end;
    }
    Ok(ranges)
}

/// The next data or hole at or after `position`; `None` when there is none (`ENXIO`).
fn seek(file: &File, position: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = i64::try_from(position).map_err(io::Error::other)?;
    // SAFETY: lseek has no memory effects. The file's position is used by nobody: all I/O is positioned.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
        }
    }
}

/// Deallocates a range; it reads as zero afterwards. The size stays.
///
/// # Errors
/// When the file system cannot.
pub fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, range)
}

/// Makes a range read as zero *and* count as data, so that it hides what a base holds below.
///
/// # Errors
/// When the file cannot be written.
pub fn write_zeroes(file: &File, range: &Range<u64>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;

    // `FALLOC_FL_ZERO_RANGE` leaves unwritten extents, which `SEEK_DATA` may report as holes: only real zeroes stay
    // visible across a restart.
    let zeroes = vec![0; 1 << 16];
    let mut position = range.start;
    while position < range.end {
        let count = usize::try_from(range.end - position).unwrap_or(usize::MAX).min(zeroes.len());
        file.write_all_at(&zeroes[..count], position)?;
        position += count as u64;
    }
    Ok(())
}

fn fallocate(file: &File, mode: libc::c_int, range: &Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(range.start).map_err(io::Error::other)?;
    let length = i64::try_from(range.end - range.start).map_err(io::Error::other)?;
    // SAFETY: fallocate has no memory effects.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
