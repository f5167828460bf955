//! The durable record of one side of a move.

use std::net::SocketAddr;
use std::path::PathBuf;

use mashines_fleet::host_api::{LocalMigration, LocalMigrationState, Side};
use mashines_fleet::id::{Epoch, HostId, MachineId, MigrationId};
use mashines_vmm::api::{MigrationStatus, Phase, Status};
use serde::{Deserialize, Serialize};

use crate::decide::{self, Durable, SeenMove};
use crate::error::{HostError, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::machine::Machine;
use crate::{files, instance};

/// One side of a move. It is on disk before the monitor hears of the move, and until control forgets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// The migration.
    pub id: MigrationId,
    /// The machine.
    pub machine: MachineId,
    /// Which side this host is.
    pub side: Side,
    /// The epoch that the machine has on this side.
    pub epoch: Epoch,
    /// The other host.
    pub peer: HostId,
    /// Destination: where its monitor listens, once it does.
    pub address: Option<SocketAddr>,
    /// Destination: the volume files that were made for it, which go if it fails.
    #[serde(default)]
    pub made: Vec<PathBuf>,
    /// How it stands.
    pub state: LocalMigrationState,
    /// The monitor's phase.
    #[serde(default)]
    pub phase: Option<String>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// The monitor's figures.
    #[serde(default)]
    pub figures: Option<serde_json::Value>,
    /// The monitor has said its last word on it: the figures are whole, no late frame is under way.
    #[serde(default)]
    pub settled: bool,
}

impl Move {
    /// One that begins: nothing is known of it but who takes part.
    pub fn begun(id: MigrationId, machine: MachineId, side: Side, epoch: Epoch, peer: HostId) -> Self {
        Self {
            id,
            machine,
            side,
            epoch,
            peer,
            address: None,
            made: Vec::new(),
            state: LocalMigrationState::Active,
            phase: None,
            error: None,
            figures: None,
            settled: false,
        }
    }

    /// As control sees it.
    pub fn local(&self) -> LocalMigration {
        LocalMigration {
            id: self.id.clone(),
            machine: self.machine.clone(),
            side: self.side,
            state: self.state,
            phase: self.phase.clone(),
            error: self.error.clone(),
            figures: self.figures.clone(),
        }
    }

    /// Whether the state can still change.
    pub fn open(&self) -> bool {
        match self.state {
            LocalMigrationState::Active | LocalMigrationState::Prepared => true,
            LocalMigrationState::HandedOver | LocalMigrationState::Running | LocalMigrationState::Failed => {
                false
            }
        }
    }

    /// The record after a look at the monitor: a state that is final stays, figures grow.
    pub fn after_look(&self, alive: bool, status: Option<&Status>, durable: Durable) -> Self {
        let mine = status.and_then(|s| known_to(s, &self.id));
        let mut next = self.clone();
        if let (Some(mine), Some(status)) = (mine, status) {
            next.phase = Some(phase_name(mine.phase).to_owned());
            next.figures = serde_json::to_value(&mine.figures).ok();
            next.settled = mine.outcome.is_some() && !status.migrating;
        }
        if self.open() {
            let seen = SeenMove { alive, state: status.map(|s| s.state), status: mine, durable };
            let (state, error) = match self.side {
                Side::Source => decide::source_state(seen),
                Side::Destination => decide::destination_state(seen),
            };
            next.state = state;
            next.error = error.or_else(|| self.error.clone());
        }
        next
    }
}

/// Whether the monitor knows the move at all.
pub fn known_to<'a>(status: &'a Status, id: &MigrationId) -> Option<&'a MigrationStatus> {
    status.migration.as_ref().filter(|m| m.migration_id == id.as_str())
}

/// A phase as the records name it.
fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Handshake => "handshake",
        Phase::PreCopy => "pre-copy",
        Phase::StopAndCopy => "stop-and-copy",
        Phase::Prepared => "prepared",
        Phase::HandedOver => "handed-over",
        Phase::Running => "running",
    }
}

/// All records of moves; damaged ones are told apart.
pub fn load_all(layout: &Layout) -> Result<(Vec<Move>, Vec<HostError>)> {
    let mut found = Vec::new();
    let mut damaged = Vec::new();
    for name in instance::names_in(&layout.migrations())? {
        let Some(id) = name.strip_suffix(".json").and_then(|id| id.parse::<MigrationId>().ok()) else {
            continue;
        };
        match files::load_json(&layout.migration(&id)) {
            Ok(Some(found_move)) => found.push(found_move),
            Ok(None) => {}
            Err(e) => damaged.push(e),
        }
    }
    Ok((found, damaged))
}

impl Host {
    /// The record of a move.
    pub fn find_move(&self, id: &MigrationId) -> Result<Move> {
        self.moves()
            .get(id)
            .cloned()
            .ok_or_else(|| HostError::not_found(format!("migration {id} is not known on this host")))
    }

    /// Makes a record durable, then true.
    pub async fn put_move(&self, next: Move) -> Result<()> {
        let (path, record) = (self.layout.migration(&next.id), next.clone());
        let written = tokio::task::spawn_blocking(move || files::store_json(&path, &record)).await;
        written.map_err(|e| HostError::internal(format!("write the record of a move: {e}")))??;
        self.moves().insert(next.id.clone(), next);
        self.changed();
        Ok(())
    }

    /// Forgets a move.
    pub async fn forget_move(&self, id: &MigrationId) -> Result<()> {
        let left = self.remove_files(vec![self.layout.migration(id)]).await;
        if let Some(left) = left.first() {
            return Err(HostError::internal(format!("forget migration {id}: {left}")));
        }
        self.moves().remove(id);
        self.changed();
        Ok(())
    }

    /// Looks at the machine's monitor and brings the record of its move up to date; answers the record if there is one.
    ///
    /// Call with the machine held: two looks must not overtake each other.
    pub async fn look_at_move(&self, machine: &Machine) -> Result<Option<Move>> {
        let Some(id) = machine.instance().and_then(|i| i.migration) else { return Ok(None) };
        let Ok(now) = self.find_move(&id) else { return Ok(None) };
        let alive = machine.live().is_some_and(|live| live.ended().is_none());
        let next = now.after_look(alive, machine.status().as_ref(), machine.durable());
        if next == now {
            return Ok(Some(now));
        }
        // Progress within one state is worth no write to the disk: it is asked for anew after a restart. And figures that grew
        // are no news for control, which asks for them as often as it likes.
        if next.state == now.state && next.settled == now.settled {
            self.moves().insert(id, next.clone());
            if next.phase != now.phase || next.error != now.error {
                self.changed();
            }
        } else {
            self.put_move(next.clone()).await?;
        }
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use mashines_vmm::api::{Figures, Outcome, State};

    use super::*;

    #[test]
    fn a_move_is_settled_when_its_last_late_frame_is_through() {
        let id = MigrationId::generate();
        let peer = "hostb".parse().unwrap();
        let going = Move::begun(id.clone(), MachineId::random(), Side::Source, Epoch(3), peer);
        let mut status = Status {
            machine_id: going.machine.to_string(),
            epoch: 3,
            state: State::HandedOver,
            migration: Some(MigrationStatus {
                migration_id: id.to_string(),
                phase: Phase::Running,
                outcome: Some(Outcome::Completed),
                figures: Figures::default(),
            }),
            migrating: true,
            cpu_time_us: 0,
            resident_bytes: 0,
        };
        let forwarding = going.after_look(true, Some(&status), Durable::default());
        assert_eq!((forwarding.state, forwarding.settled), (LocalMigrationState::HandedOver, false));
        status.migrating = false;
        assert!(forwarding.after_look(true, Some(&status), Durable::default()).settled);
    }
}
