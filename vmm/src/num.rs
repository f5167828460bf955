//! Conversions that cannot lose anything on the one platform this crate runs on (x86-64).

const _: () = assert!(usize::BITS == 64, "the monitor is a 64-bit program");

/// A length or offset of the guest as an index of the host.
#[allow(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
#[must_use]
pub const fn index(value: u64) -> usize {
    value as usize
}

/// The low 32 bits of a register, on purpose.
#[allow(clippy::cast_possible_truncation, reason = "the mask says what is kept")]
#[must_use]
pub const fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The high 32 bits of a register.
#[must_use]
pub const fn high32(value: u64) -> u32 {
    low32(value >> 32)
}

/// `value` rounded up to a multiple of `align`, which is a power of two.
#[must_use]
pub const fn round_up(value: u64, align: u64) -> u64 {
    (value + align - 1) & !(align - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_rounding_are_exact() {
        assert_eq!(low32(0x1234_5678_9abc_def0), 0x9abc_def0);
        assert_eq!(high32(0x1234_5678_9abc_def0), 0x1234_5678);
        assert_eq!(round_up(0, 4096), 0);
        assert_eq!(round_up(1, 4096), 4096);
        assert_eq!(round_up(4096, 4096), 4096);
    }
}
