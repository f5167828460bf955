//! The clock of records: milliseconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mashines_fleet::record::UnixMs;

/// Now.
pub fn now() -> UnixMs {
    ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A span in milliseconds.
pub fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339, as the API shows it.
pub fn rfc3339(at: UnixMs) -> String {
    let at = i64::try_from(at).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(at).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_look_as_clients_expect_them() {
        assert_eq!(super::rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(super::rfc3339(u64::MAX), "");
    }
}
