//! How busy machines are: CPU time from one report to the next. In memory only, from the reports that come anyway.

use std::time::{Duration, Instant};

use mashines_fleet::id::Epoch;

/// Less time between two reports makes a figure of noise.
const LEAST: Duration = Duration::from_millis(500);

/// The last figure of one instance, and what the next is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Meter {
    epoch: Epoch,
    at: Instant,
    cpu_time_us: u64,
    percent: Option<f64>,
}

impl Meter {
    /// The first report of an instance.
    pub fn begin(epoch: Epoch, at: Instant, cpu_time_us: u64) -> Self {
        Self { epoch, at, cpu_time_us, percent: None }
    }

    /// The next report. Another epoch is another instance, whose time begins anew.
    pub fn next(self, epoch: Epoch, at: Instant, cpu_time_us: u64) -> Self {
        let passed = at.saturating_duration_since(self.at);
        let Some(worked) = cpu_time_us.checked_sub(self.cpu_time_us).filter(|_| epoch == self.epoch) else {
            return Self::begin(epoch, at, cpu_time_us);
        };
        if passed < LEAST {
            return self;
        }
        let percent = Duration::from_micros(worked).as_secs_f64() / passed.as_secs_f64() * 100.0;
        Self { epoch, at, cpu_time_us, percent: Some((percent * 10.0).round() / 10.0) }
    }

    /// Percent of one CPU between the last two reports.
    pub fn percent(self) -> Option<f64> {
        self.percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_second_of_work_in_a_second_is_fifty_percent() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let first = Meter::begin(Epoch(1), at(0), 1_000_000);
        assert_eq!(first.percent(), None);
        let second = first.next(Epoch(1), at(1000), 1_500_000);
        assert_eq!(second.percent(), Some(50.0));
        assert_eq!(second.next(Epoch(1), at(1100), 1_600_000), second, "too soon to say");
        assert_eq!(second.next(Epoch(1), at(3000), 5_500_000).percent(), Some(200.0), "two CPUs");
        assert_eq!(second.next(Epoch(2), at(3000), 2_000_000).percent(), None, "a new instance");
        assert_eq!(second.next(Epoch(1), at(3000), 7).percent(), None, "a counter that went back");
    }
}
