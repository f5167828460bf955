//! What a saga does next: a total function of its step and of what each side says.
//!
//! The facts it stands on (the hosts' contract):
//! - A source's `HandedOver` is durable: it never runs again in this epoch. Until then only the source may run.
//! - A destination runs only once it saw the hand-over, or was told to by [`Next::RunDestination`].
//! - `Failed` is durable on both sides: no hand-over happened (source), it never ran and never will (destination).
//!
//! While `Moving` or `Doubtful` (the source is asked before the destination, so its answer may be the older one):
//!
//! | source ↓ \ destination → | silent | gone | active | prepared | running | failed |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | silent | wait | doubt | wait | doubt | **commit** | doubt |
//! | gone | wait³ | fail | send¹ | doubt | **commit** | fail |
//! | active | wait² | stop source | wait² | wait² | wait | stop source |
//! | handed over | doubt | lost | wait | **run it** | **commit** | lost |
//! | failed | fail | fail | stop destination | stop destination | contradiction | fail |
//!
//! ¹ in `Moving`, unless it is to end: then the destination is stopped. ² unless it is to end: then the source is stopped, which answers with
//! what became of it. ³ unless it is to end: then it failed. *Doubt* waits, in `Doubtful`, until somebody answers. There is no arm from anything but *handed
//! over* to *run it*, and none from *handed over* to *fail*: that is the promise that a machine runs once at most.

use mashines_fleet::host_api::LocalMigrationState;
use mashines_fleet::record::MigrationStep;

/// What the source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No answer.
    Silent,
    /// It knows nothing of this migration.
    Gone,
    /// It sends.
    Active,
    /// It never runs again in this epoch.
    HandedOver,
    /// It ended without a hand-over.
    Failed,
}

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// No answer.
    Silent,
    /// It knows nothing of this migration.
    Gone,
    /// It receives.
    Active,
    /// It has everything and waits for the hand-over.
    Prepared,
    /// It runs there.
    Running,
    /// It never ran and never will.
    Failed,
}

impl From<LocalMigrationState> for Source {
    fn from(state: LocalMigrationState) -> Self {
        match state {
            LocalMigrationState::Active => Self::Active,
            LocalMigrationState::HandedOver => Self::HandedOver,
            LocalMigrationState::Failed => Self::Failed,
            // A source has no such states: what makes no sense is no answer.
            LocalMigrationState::Prepared | LocalMigrationState::Running => Self::Silent,
        }
    }
}

impl From<LocalMigrationState> for Destination {
    fn from(state: LocalMigrationState) -> Self {
        match state {
            LocalMigrationState::Active => Self::Active,
            LocalMigrationState::Prepared => Self::Prepared,
            LocalMigrationState::Running => Self::Running,
            LocalMigrationState::Failed => Self::Failed,
            LocalMigrationState::HandedOver => Self::Silent,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Have the destination made ready; then `Prepared`.
    Prepare,
    /// Write `Moving`; then tell the source to send.
    Send,
    /// Ask again in a moment.
    Wait,
    /// Write `Doubtful`; ask until somebody answers.
    Doubt,
    /// Tell the source to give up.
    StopSource,
    /// Tell the destination to discard.
    StopDestination,
    /// Tell the destination to run: the source has handed over for good.
    RunDestination,
    /// The machine's place becomes `{destination, epoch + 1}`; then `Committed`.
    Commit,
    /// Nothing moved; the machine goes on at the source.
    Fail,
    /// The instance is lost: the source has handed over, the destination never ran. The disks at the source are the machine.
    Lose,
    /// Have the source cleared, and both sides forget.
    Finish,
    /// It is over.
    Done,
    /// Both sides claim the machine, which cannot be. Nothing is done; a person is told.
    Contradiction,
}

/// Decides. `end` says that somebody asked to end it, or that its time is over.
pub fn next(step: MigrationStep, source: Source, destination: Destination, end: bool) -> Next {
    match step {
        MigrationStep::Reserved if end => undo(destination),
        MigrationStep::Reserved => Next::Prepare,
        MigrationStep::Prepared => match destination {
            Destination::Gone | Destination::Failed => Next::Fail,
            Destination::Silent | Destination::Active | Destination::Prepared | Destination::Running
                if end =>
            {
                undo(destination)
            }
            Destination::Silent => Next::Wait,
            Destination::Active | Destination::Prepared => Next::Send,
            // It runs without a hand-over that this saga knows of: the source will say.
            Destination::Running => Next::Send,
        },
        MigrationStep::Moving | MigrationStep::Doubtful => moving(step, source, destination, end),
        MigrationStep::Committed => match destination {
            Destination::Silent => Next::Wait,
            // The place is committed because it ran there: whatever it says now, the source's part is over.
            Destination::Gone
            | Destination::Active
            | Destination::Prepared
            | Destination::Running
            | Destination::Failed => Next::Finish,
        },
        MigrationStep::Completed | MigrationStep::Failed | MigrationStep::Lost => Next::Done,
    }
}

/// The source was never told: only the destination's preparations are to be taken back.
fn undo(destination: Destination) -> Next {
    match destination {
        Destination::Active | Destination::Prepared => Next::StopDestination,
        // What a silent destination holds is swept when it speaks again.
        Destination::Silent | Destination::Gone | Destination::Failed => Next::Fail,
        Destination::Running => Next::Contradiction,
    }
}

fn moving(step: MigrationStep, source: Source, destination: Destination, end: bool) -> Next {
    match (source, destination) {
        (Source::Silent, Destination::Running)
        | (Source::Gone, Destination::Running)
        | (Source::HandedOver, Destination::Running) => Next::Commit,

        (Source::HandedOver, Destination::Prepared) => Next::RunDestination,
        (Source::HandedOver, Destination::Gone | Destination::Failed) => Next::Lose,
        (Source::HandedOver, Destination::Silent) => Next::Doubt,
        // It was loaded when the source handed over, so this answer is being overtaken.
        (Source::HandedOver, Destination::Active) => Next::Wait,

        (Source::Active, Destination::Gone | Destination::Failed) => Next::StopSource,
        (Source::Active, Destination::Silent | Destination::Active | Destination::Prepared) => {
            if end {
                Next::StopSource
            } else {
                Next::Wait
            }
        }
        // The source's answer is older than the destination's.
        (Source::Active, Destination::Running) => Next::Wait,

        (Source::Failed, Destination::Active | Destination::Prepared) => Next::StopDestination,
        (Source::Failed, Destination::Silent | Destination::Gone | Destination::Failed) => Next::Fail,
        (Source::Failed, Destination::Running) => Next::Contradiction,

        // Whether it handed over before it fell silent, only it can say.
        (Source::Silent, Destination::Prepared | Destination::Gone | Destination::Failed) => Next::Doubt,
        (Source::Silent, Destination::Silent | Destination::Active) => Next::Wait,

        // The order to send never arrived. What the destination holds is swept when it speaks again.
        (Source::Gone, Destination::Silent) if end => Next::Fail,
        (Source::Gone, Destination::Silent) => Next::Wait,
        (Source::Gone, Destination::Gone | Destination::Failed) => Next::Fail,
        (Source::Gone, Destination::Active) if end => Next::StopDestination,
        (Source::Gone, Destination::Active) => match step {
            MigrationStep::Moving => Next::Send,
            MigrationStep::Reserved
            | MigrationStep::Prepared
            | MigrationStep::Doubtful
            | MigrationStep::Committed
            | MigrationStep::Completed
            | MigrationStep::Failed
            | MigrationStep::Lost => Next::StopDestination,
        },
        // It has received everything from a source that knows nothing of it: a source that lost its records. Its disk
        // may be the only one.
        (Source::Gone, Destination::Prepared) => Next::Doubt,
    }
}

#[cfg(test)]
mod tests;
