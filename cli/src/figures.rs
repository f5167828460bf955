//! What a migration cost, as people read it. The monitor's figures arrive as JSON and are read leniently: an older command
//! shows what it knows of a newer fleet's.

use std::time::Duration;

use mashines_fleet::api::Migration;
use serde::Deserialize;

use crate::text::{self, Table};

/// The monitor's figures, in microseconds and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// From the request to the end.
    pub total_us: u64,
    /// The time in which the guest ran nowhere.
    pub blackout_us: u64,
    /// RAM sent.
    pub ram_bytes: u64,
    /// Disk sent.
    pub disk_bytes: u64,
    /// Pages that went as a flag because they are zero.
    pub zero_pages: u64,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Pages sent within the blackout.
    pub last_pages: u64,
    /// Frames taken out of the source's tap queue and delivered at the destination.
    pub frames: u64,
    /// The highest throttle applied, percent.
    pub throttle_percent: u8,
    /// Named spans within the blackout, in order, microseconds.
    pub spans: Vec<(String, u64)>,
}

impl Figures {
    /// Those of a migration; none while the monitor has not reported any.
    pub fn of(migration: &Migration) -> Option<Self> {
        serde_json::from_value(migration.figures.clone()?).ok()
    }
}

/// One line about a migration under way: `pre-copy, 212 MiB sent, round 2`.
pub fn underway(migration: &Migration) -> String {
    let phase = migration.phase.as_deref().unwrap_or_else(|| migration.step.word());
    match Figures::of(migration) {
        Some(figures) if figures.ram_bytes + figures.disk_bytes > 0 => {
            let sent = text::bytes(figures.ram_bytes.saturating_add(figures.disk_bytes));
            format!("{phase}, {sent} sent, round {}", figures.rounds)
        }
        _ => phase.to_owned(),
    }
}

/// The final report of a migration that completed.
pub fn report(migration: &Migration) -> String {
    let name = if migration.slug.is_empty() { migration.machine.as_str() } else { &migration.slug };
    let head = format!("{name} moved from {} to {}\n", migration.source, migration.destination);
    let Some(figures) = Figures::of(migration) else { return head };
    let sent = format!(
        "{} of RAM and {} of disk in {} rounds; {} zero pages went as flags",
        text::bytes(figures.ram_bytes),
        text::bytes(figures.disk_bytes),
        figures.rounds,
        figures.zero_pages
    );
    let throttle = match figures.throttle_percent {
        0 => String::new(),
        percent => {
            format!("the guest's CPUs were slowed by up to {percent} % so that it could be caught up with")
        }
    };
    let fields = text::fields([
        ("  total", us(figures.total_us)),
        ("  blackout", us(figures.blackout_us)),
        ("  sent", sent),
        ("  last", format!("{} pages within the blackout", figures.last_pages)),
        ("  frames", format!("{} waited in the old host's queue and were delivered", figures.frames)),
        ("  throttle", throttle),
    ]);
    format!("{head}\n{fields}{}", spans(&figures))
}

fn spans(figures: &Figures) -> String {
    if figures.spans.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["  WITHIN THE BLACKOUT", "TIME"]);
    for (name, span) in &figures.spans {
        table.row([format!("  {name}"), us(*span)]);
    }
    format!("\n{}", table.render())
}

/// Microseconds for people.
pub fn us(us: u64) -> String {
    text::span(Duration::from_micros(us))
}
