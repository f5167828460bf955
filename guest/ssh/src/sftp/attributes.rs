//! What a file is (draft-ietf-secsh-filexfer-02, section 5), and the line that `ls -l` shows of it.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use super::wire::{Fields, Packet, Refusal};

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;

/// What a client wants a file to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes.
    pub size: Option<u64>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Last access and last change, seconds since 1970.
    pub times: Option<(u32, u32)>,
}

impl Wanted {
    /// Reads it.
    pub fn read(fields: &mut Fields<'_>) -> Result<Self, Refusal> {
        let flags = fields.u32()?;
        let mut wanted = Self::default();
        if flags & SIZE != 0 {
            wanted.size = Some(fields.u64()?);
        }
        if flags & OWNER != 0 {
            wanted.owner = Some((fields.u32()?, fields.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            wanted.mode = Some(fields.u32()? & 0o7777);
        }
        if flags & TIMES != 0 {
            wanted.times = Some((fields.u32()?, fields.u32()?));
        }
        Ok(wanted)
    }
}

/// Adds what a file is to an answer.
pub fn add(packet: Packet, found: &Metadata) -> Packet {
    packet
        .u32(SIZE | OWNER | PERMISSIONS | TIMES)
        .u64(found.size())
        .u32(found.uid())
        .u32(found.gid())
        .u32(found.mode())
        .u32(second(found.atime()))
        .u32(second(found.mtime()))
}

/// The protocol's times end in 2106.
fn second(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

/// The line of `ls -l`, owner and group by number: the image need not have names for them.
pub fn line(found: &Metadata, name: &[u8]) -> Vec<u8> {
    let kind = match found.file_type() {
        t if t.is_dir() => 'd',
        t if t.is_symlink() => 'l',
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        t if t.is_fifo() => 'p',
        t if t.is_socket() => 's',
        _ => '-',
    };
    let mut line = format!(
        "{kind}{} {:>4} {:<8} {:<8} {:>8} {} ",
        permissions(found.mode()),
        found.nlink(),
        found.uid(),
        found.gid(),
        found.size(),
        date(found.mtime())
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

fn permissions(mode: u32) -> String {
    let bit = |bit: u32, letter: char| if mode & bit != 0 { letter } else { '-' };
    let special =
        |execute: u32, bit: u32, both: char, alone: char| match (mode & execute != 0, mode & bit != 0) {
            (true, true) => both,
            (false, true) => alone,
            (true, false) => 'x',
            (false, false) => '-',
        };
    [
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o001, 0o1000, 't', 'T'),
    ]
    .into_iter()
    .collect()
}

/// Day and minute in UTC, or day and year when that is long ago: as `ls`.
fn date(time: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = civil(time.div_euclid(86_400));
    let minute = time.rem_euclid(86_400) / 60;
    let month = usize::try_from(month - 1).ok().and_then(|n| MONTHS.get(n)).unwrap_or(&"???");
    let now =
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    let age = i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_sub(time);
    if (0..183 * 86_400).contains(&age) {
        format!("{month} {day:>2} {:02}:{:02}", minute / 60, minute % 60)
    } else {
        format!("{month} {day:>2} {year:>5}")
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(date(951_782_400), "Feb 29  2000");
    }

    #[test]
    fn permissions_are_written_as_ls_writes_them() {
        assert_eq!(permissions(0o4755), "rwsr-xr-x");
        assert_eq!(permissions(0o1666), "rw-rw-rwT");
    }

    #[test]
    fn attributes_have_their_fields_in_order() {
        let packet = Packet::new(9, 1).u32(SIZE | PERMISSIONS | TIMES).u64(5).u32(0o100_644).u32(6).u32(7);
        let wanted = Wanted::read(&mut Fields::new(packet.fields())).unwrap();
        assert_eq!(wanted, Wanted { size: Some(5), owner: None, mode: Some(0o644), times: Some((6, 7)) });
    }
}
