//! Progress for a person at a terminal: finished steps stay as lines with their times, the current one is redrawn in place. Without a
//! terminal nothing is written, so a script's standard error holds errors only.

use std::time::{Duration, Instant};

use crate::error::CliError;
use crate::session::Session;
use crate::text;

/// The steps of one command.
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Begins now.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A step that is done.
    pub async fn done(&self, session: &mut Session, step: &str) -> Result<(), CliError> {
        if session.terminal {
            let at = text::span(self.elapsed());
            session.err(&format!("\r\x1b[K  {:<32} {at:>9}\n", text::printable(step))).await?;
        }
        Ok(())
    }

    /// What happens just now.
    pub async fn now(&self, session: &mut Session, what: &str) -> Result<(), CliError> {
        if session.terminal {
            let at = text::span(self.elapsed());
            let line = format!("  {:<32} {at:>9}", text::printable(what));
            let line: String = line.chars().take(session.width.saturating_sub(1)).collect();
            session.err(&format!("\r\x1b[K{line}")).await?;
        }
        Ok(())
    }

    /// Removes the line of what happens just now.
    pub async fn clear(&self, session: &mut Session) -> Result<(), CliError> {
        if session.terminal {
            session.err("\r\x1b[K").await?;
        }
        Ok(())
    }
}
