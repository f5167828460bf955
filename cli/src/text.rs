//! Text for people: tables, sizes, times. Pure, so that the tests hold it by the letter.

use std::fmt::Write as _;
use std::time::Duration;

/// Rows under a head, columns as wide as their widest cell. The last column is not padded.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// Adds a row. Control characters, which could steer a terminal, become spaces.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The text, a line a row.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `name   value` lines, values aligned. Empty values are left out.
pub fn fields<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:<width$}  {}\n", printable(value))).collect()
}

/// The text without control characters: a record may hold a guest's words, and those must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `512 MiB`, `1.5 GiB`.
pub fn mebibytes(mib: u64) -> String {
    bytes(mib.saturating_mul(1 << 20))
}

/// `17 B`, `3.2 KiB`, `512 MiB`: three digits, no needless fraction.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut size = 1u64;
    while unit + 1 < UNITS.len() && count / size >= 1024 {
        size *= 1024;
        unit += 1;
    }
    let whole = count / size;
    let tenth = (count % size).saturating_mul(10) / size;
    if whole >= 100 || tenth == 0 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

/// `850 µs`, `71.4 ms`, `2.31 s`, `3 m 05 s`.
pub fn span(time: Duration) -> String {
    let us = time.as_micros();
    let s = time.as_secs();
    if us < 1_000 {
        format!("{us} µs")
    } else if us < 1_000_000 {
        format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
    } else if s < 60 {
        format!("{}.{:02} s", s, us % 1_000_000 / 10_000)
    } else {
        format!("{} m {:02} s", s / 60, s % 60)
    }
}

/// How long ago, roughly: `12s`, `5m`, `3h`, `8d`. A time in the future is `0s`.
pub fn age(now_ms: u64, then_ms: u64) -> String {
    match now_ms.saturating_sub(then_ms) / 1_000 {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3_600 => format!("{}m", s / 60),
        s @ 3_600..86_400 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// [`age`] of an RFC 3339 time; `?` for a text that is none.
pub fn age_of(now_ms: u64, then: &str) -> String {
    let then = then.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_millisecond()).ok());
    then.map_or_else(|| "?".to_owned(), |then| age(now_ms, then))
}

/// Milliseconds since the Unix epoch, as the records hold times.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns_and_leaves_no_blanks_at_line_ends() {
        let mut table = Table::new(["NAME", "STATE", "WHY"]);
        table.row(["web".into(), "started".into(), String::new()]);
        table.row(["database".into(), "failed".into(), "no\x1b[2J room".into()]);
        assert_eq!(
            table.render(),
            "NAME      STATE    WHY\n\
             web       started\n\
             database  failed   no [2J room\n"
        );
    }

    #[test]
    fn fields_align_and_skip_the_empty() {
        assert_eq!(
            fields([("name", "web".into()), ("reason", String::new()), ("host", "b".into())]),
            "name  web\nhost  b\n"
        );
    }

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(bytes(17), "17 B");
        assert_eq!(bytes(3_300), "3.2 KiB");
        assert_eq!(mebibytes(512), "512 MiB");
        assert_eq!(mebibytes(1536), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16777215 TiB");
        assert_eq!(span(Duration::from_micros(850)), "850 µs");
        assert_eq!(span(Duration::from_micros(71_423)), "71.4 ms");
        assert_eq!(span(Duration::from_millis(2_314)), "2.31 s");
        assert_eq!(span(Duration::from_secs(185)), "3 m 05 s");
        assert_eq!(age(10_000, 0), "10s");
        assert_eq!(age(7_200_000, 0), "2h");
        assert_eq!(age(0, 5), "0s");
        assert_eq!(age_of(90_000, "1970-01-01T00:00:00Z"), "1m");
        assert_eq!(age_of(90_000, "yesterday"), "?");
    }
}
