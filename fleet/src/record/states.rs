//! The states that machines and their moves go through, and their words.

use serde::{Deserialize, Serialize};

/// What is known of a machine: the Fly Machines API's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Recorded, not on a host yet.
    Created,
    /// On its way up.
    Starting,
    /// Up and ready.
    Started,
    /// On its way down.
    Stopping,
    /// Down; disks kept.
    Stopped,
    /// Being removed.
    Destroying,
    /// Gone; kept for a while so that its end can be asked for.
    Destroyed,
    /// Could not be brought up; `reason` says why.
    Failed,
}

impl MachineState {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Starting,
        Self::Started,
        Self::Stopping,
        Self::Stopped,
        Self::Destroying,
        Self::Destroyed,
        Self::Failed,
    ];

    /// As the API writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }
}

/// The saga of a move.
///
/// ```text
/// Reserved → Prepared → Moving ─┬→ Committed → Completed
///     │          │         │    └→ Doubtful → (Committed | Lost)
///     └──────────┴─────────┴→ Failed            Lost: the machine's RAM is gone; it is reported stopped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStep {
    /// Room is promised at the destination; nothing was done there yet.
    Reserved,
    /// The destination's monitor waits.
    Prepared,
    /// The source was told to send.
    Moving,
    /// The source handed over, or cannot be asked; the destination is not known to run.
    Doubtful,
    /// The machine's place is `{destination, epoch + 1}`; the source is still to be cleared.
    Committed,
    /// Done.
    Completed,
    /// The machine is where it was, unharmed; `error` says why.
    Failed,
    /// The instance was lost with a monitor or a host; the machine is stopped with its disks intact, `error` says why.
    Lost,
}

impl MigrationStep {
    /// Nothing more will be done.
    pub fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Lost => true,
            Self::Reserved | Self::Prepared | Self::Moving | Self::Doubtful | Self::Committed => false,
        }
    }

    /// As the API writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Prepared => "prepared",
            Self::Moving => "moving",
            Self::Doubtful => "doubtful",
            Self::Committed => "committed",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_api() {
        for state in MachineState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
        }
        let mut step = MigrationStep::Reserved;
        for word in ["reserved", "prepared", "moving", "doubtful", "committed", "completed", "failed", "lost"]
        {
            step = serde_json::from_value(word.into()).unwrap_or(step);
            assert_eq!(step.word(), word);
        }
    }
}
