//! The executor of one move: asks both sides, does what [`next`](super::next::next) says, and looks again until it is over.

use std::time::{Duration, Instant};

use mashines_fleet::host_api::{
    Incoming, IncomingReady, LocalMigration, LocalMigrationState, Outgoing, Resolve,
};
use mashines_fleet::id::{HostId, MigrationId};
use mashines_fleet::record::{Machine, Migration, MigrationStep};
use mashines_fleet::rpc::{Client, Empty, RpcError};

use super::begin::Terms;
use super::next::{Destination, Next, Source, next};
use super::settle;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::Private;
use crate::time::now;

/// Between two looks.
const POLL: Duration = Duration::from_millis(100);
/// Between two looks while memory is copied, which takes seconds: a look costs both hosts and control some CPU.
const COPYING: Duration = Duration::from_millis(500);
/// Between two looks while nobody answers, or an action failed.
const SLOW: Duration = Duration::from_secs(1);
/// A host answers questions at once.
const ASK: Duration = Duration::from_secs(3);
/// A destination makes files and starts a monitor.
const PREPARE: Duration = Duration::from_secs(60);
/// A hand-over that takes longer is lost.
const OVERDUE: Duration = Duration::from_millis(500);
/// After the outgoing side's own time-out, control ends it.
const GRACE_MS: u64 = 30_000;

/// Runs the saga in a task, unless it runs in this process.
pub fn start(control: &Control, id: &MigrationId) {
    let Some(running) = control.take_saga(id) else { return };
    let (control, id) = (control.clone(), id.clone());
    tokio::spawn(async move {
        let _running = running;
        let mut saga = Saga { control, id, why: None, due: None };
        loop {
            let pause = match saga.turn().await {
                Ok(Turn::Over) => return,
                Ok(Turn::Again) => continue,
                Ok(Turn::After(pause)) => pause,
                Err(failure) => {
                    tracing::warn!(id = %saga.id, %failure, "a migration's step failed; it is tried again");
                    SLOW
                }
            };
            tokio::time::sleep(pause).await;
        }
    });
}

enum Turn {
    Over,
    Again,
    After(Duration),
}

struct Saga {
    control: Control,
    id: MigrationId,
    /// Why it will fail, as far as heard.
    why: Option<String>,
    /// Since when the destination waits for a hand-over that the source has made.
    due: Option<Instant>,
}

/// What both sides said.
struct Heard {
    source: Source,
    destination: Destination,
    /// The first error that a side told, the source's before the destination's.
    error: Option<String>,
    /// The machine runs at the source, and its memory is on its way.
    copying: bool,
}

impl Saga {
    async fn turn(&mut self) -> Result<Turn> {
        let Some(migration) = self.control.view().migrations.get(&self.id).cloned() else {
            return Ok(Turn::Over);
        };
        if migration.step.is_final() {
            return Ok(Turn::Over);
        }
        let terms: Option<Terms> = self.control.records.private(Private::Terms(&self.id)).await?;
        let config = &self.control.config;
        let terms = terms.unwrap_or(Terms {
            budget_ms: config.blackout_budget_ms,
            timeout_ms: config.migration_timeout_s.saturating_mul(1000),
        });
        let heard = self.hear(&migration).await?;
        let end = self.should_end(&migration, terms).await?;
        let action = next(migration.step, heard.source, heard.destination, end);
        tracing::debug!(id = %self.id, step = migration.step.word(), ?heard.source, ?heard.destination, ?action, "saga");
        self.act(&migration, &heard, action, terms).await
    }

    /// Asks the source, then the destination: the table of `next` relies on the order.
    async fn hear(&mut self, migration: &Migration) -> Result<Heard> {
        let source = self.ask(&migration.source).await?;
        let destination = self.ask(&migration.destination).await?;
        for said in [&source, &destination] {
            if let Answer::Says(said) = said {
                settle::progress(&self.control, &self.id, said).await?;
            }
        }
        let error = [&source, &destination].into_iter().find_map(Answer::error);
        let copying = matches!(&source, Answer::Says(said) if said.phase.as_deref() == Some("pre-copy"));
        Ok(Heard {
            copying,
            source: match source {
                Answer::Says(said) => said.state.into(),
                Answer::Silent => Source::Silent,
                Answer::Gone => Source::Gone,
            },
            destination: match destination {
                Answer::Says(said) => said.state.into(),
                Answer::Silent => Destination::Silent,
                Answer::Gone => Destination::Gone,
            },
            error,
        })
    }

    async fn ask(&self, host: &HostId) -> Result<Answer> {
        let client = self.client(host)?.with_timeout(ASK);
        match client.get::<LocalMigration>(&format!("/v1/migrations/{}", self.id)).await {
            Ok(said) => Ok(Answer::Says(said)),
            Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => Ok(Answer::Gone),
            // An error of the host's own says nothing about the migration.
            Err(error) => {
                tracing::debug!(%host, %error, "no answer about a migration");
                Ok(Answer::Silent)
            }
        }
    }

    async fn should_end(&mut self, migration: &Migration, terms: Terms) -> Result<bool> {
        let cancelled: Option<u64> = self.control.records.private(Private::Cancel(&self.id)).await?;
        if cancelled.is_some() {
            self.why.get_or_insert_with(|| "it was cancelled".to_owned());
            return Ok(true);
        }
        let deadline = migration.created_at.saturating_add(terms.timeout_ms).saturating_add(GRACE_MS);
        if now() > deadline {
            let after = Duration::from_millis(terms.timeout_ms + GRACE_MS);
            self.why.get_or_insert_with(|| format!("it was not over after {after:?}"));
            return Ok(true);
        }
        Ok(false)
    }

    async fn act(
        &mut self,
        migration: &Migration,
        heard: &Heard,
        action: Next,
        terms: Terms,
    ) -> Result<Turn> {
        match action {
            Next::Prepare => self.prepare(migration).await,
            Next::Send => self.send(migration, terms).await,
            Next::Wait if heard.copying => Ok(Turn::After(COPYING)),
            Next::Wait => Ok(Turn::After(POLL)),
            Next::Doubt => {
                settle::step(&self.control, &self.id, MigrationStep::Doubtful).await?;
                Ok(Turn::After(POLL * 3))
            }
            Next::StopSource => self.tell(&migration.source, "cancel", &Empty {}).await,
            Next::StopDestination => {
                if let Some(error) = &heard.error {
                    self.why.get_or_insert_with(|| error.clone());
                }
                self.tell(&migration.destination, "cancel", &Empty {}).await
            }
            // The hand-over itself is on its way in every smooth move: only one that does not arrive is made up for.
            Next::RunDestination if self.due.get_or_insert_with(Instant::now).elapsed() < OVERDUE => {
                Ok(Turn::After(POLL))
            }
            Next::RunDestination => {
                self.tell(&migration.destination, "resolve", &Resolve { run: true }).await
            }
            Next::Commit => {
                settle::commit(&self.control, &self.id).await?;
                Ok(Turn::Again)
            }
            Next::Fail => {
                let unknown = || "the move ended without a hand-over, and neither side said why".to_owned();
                // What the sides say comes before what control thinks of it, save that somebody asked for the end.
                let why = match (&self.why, &heard.error) {
                    (Some(why), Some(error)) if !error.contains(why.as_str()) => format!("{why}: {error}"),
                    (Some(why), _) => why.clone(),
                    (None, error) => error.clone().unwrap_or_else(unknown),
                };
                settle::fail(&self.control, &self.id, why).await?;
                Ok(Turn::Over)
            }
            Next::Lose => {
                let (a, b) = (&migration.source, &migration.destination);
                let said = heard.error.as_deref().unwrap_or("it does not say why");
                let why = format!(
                    "{a} handed the machine over, but {b} lost it before it ran there: {said}. Its memory is gone; its disks at {a} are intact"
                );
                settle::lose(&self.control, &self.id, why).await?;
                Ok(Turn::Over)
            }
            Next::Finish => self.finish(migration).await,
            Next::Done => Ok(Turn::Over),
            Next::Contradiction => {
                tracing::error!(id = %self.id, machine = %migration.machine, "source and destination both claim the machine: look at both hosts");
                Ok(Turn::After(SLOW))
            }
        }
    }

    /// Room and preparations at the destination.
    async fn prepare(&mut self, migration: &Migration) -> Result<Turn> {
        match self.incoming(migration).await {
            Ok(_) => {
                settle::step(&self.control, &self.id, MigrationStep::Prepared).await?;
                Ok(Turn::Again)
            }
            Err(Refusal::Never(why)) => {
                settle::fail(&self.control, &self.id, why).await?;
                Ok(Turn::Over)
            }
            Err(Refusal::Unheard(failure)) => Err(failure),
        }
    }

    async fn incoming(&self, migration: &Migration) -> Result<IncomingReady, Refusal> {
        let machine = self.control.machine(&migration.machine)?;
        // The region in the guest's environment is the destination's from now on.
        let arriving = Machine {
            place: Some(mashines_fleet::record::Place {
                host: migration.destination.clone(),
                epoch: migration.epoch.next(),
            }),
            ..(*machine).clone()
        };
        let body = Incoming {
            machine: self.control.spec(&arriving).await?,
            epoch: migration.epoch.next(),
            source: migration.source.clone(),
        };
        let client = self.client(&migration.destination)?.with_timeout(PREPARE);
        let ready = client.put(&format!("/v1/migrations/{}/incoming", self.id), &body).await;
        ready.map_err(|error| Refusal::of(&migration.destination, "prepare for it", error))
    }

    /// `Moving` is written before the source hears of it. The destination's address is asked for again: that is idempotent, and
    /// it survives a restart of control.
    async fn send(&mut self, migration: &Migration, terms: Terms) -> Result<Turn> {
        settle::step(&self.control, &self.id, MigrationStep::Moving).await?;
        match self.outgoing(migration, terms).await {
            Ok(said) => {
                settle::progress(&self.control, &self.id, &said).await?;
                Ok(Turn::After(POLL))
            }
            // The source never began. The destination is stopped by the next turn, for the reason kept here.
            Err(Refusal::Never(why)) => {
                self.why.get_or_insert(why);
                self.tell(&migration.destination, "cancel", &Empty {}).await
            }
            Err(Refusal::Unheard(failure)) => Err(failure),
        }
    }

    async fn outgoing(&self, migration: &Migration, terms: Terms) -> Result<LocalMigration, Refusal> {
        let ready = self.incoming(migration).await?;
        let body = Outgoing {
            machine: migration.machine.clone(),
            epoch: migration.epoch,
            destination: migration.destination.clone(),
            address: ready.address,
            budget_ms: terms.budget_ms,
            timeout_ms: terms.timeout_ms,
        };
        let client = self.client(&migration.source)?;
        let said = client.put(&format!("/v1/migrations/{}/outgoing", self.id), &body).await;
        said.map_err(|error| Refusal::of(&migration.source, "send it", error))
    }

    /// Tells one side, and looks again whatever it answers: its state is the answer.
    async fn tell<B: serde::Serialize + Sync>(&self, host: &HostId, what: &str, body: &B) -> Result<Turn> {
        let client = self.client(host)?;
        let said: LocalMigration = client.post(&format!("/v1/migrations/{}/{what}", self.id), body).await?;
        settle::progress(&self.control, &self.id, &said).await?;
        let open = matches!(said.state, LocalMigrationState::Active | LocalMigrationState::Prepared);
        Ok(if open { Turn::After(POLL) } else { Turn::Again })
    }

    /// The source's monitor and disks go, then both forget. A side that does not answer is swept when it does.
    async fn finish(&self, migration: &Migration) -> Result<Turn> {
        for host in [&migration.source, &migration.destination] {
            let client = self.client(host)?.with_timeout(PREPARE);
            match client.post::<_, Empty>(&format!("/v1/migrations/{}/finish", self.id), &Empty {}).await {
                Ok(Empty {}) => self.control.hosts.forget_migration(host, &self.id),
                Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => {}
                Err(error) => {
                    tracing::warn!(id = %self.id, %host, %error, "could not finish; it is swept later")
                }
            }
        }
        settle::complete(&self.control, &self.id).await?;
        Ok(Turn::Over)
    }

    fn client(&self, host: &HostId) -> Result<Client> {
        self.control.hosts.client(&*self.control.host(host)?)
    }
}

/// A side's answer to "how does it stand?".
enum Answer {
    Says(LocalMigration),
    Silent,
    Gone,
}

impl Answer {
    fn error(&self) -> Option<String> {
        match self {
            Self::Says(said) => said.error.clone(),
            Self::Silent | Self::Gone => None,
        }
    }
}

/// Why an order was not taken.
enum Refusal {
    /// The host said no: asking again changes nothing.
    Never(String),
    /// Nobody knows whether it was heard.
    Unheard(Failure),
}

impl Refusal {
    fn of(host: &HostId, what: &str, error: RpcError) -> Self {
        match error.status() {
            Some(_) => Self::Never(format!("{host} cannot {what}: {}", error.message())),
            None => Self::Unheard(error.into()),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Unheard(failure)
    }
}
