//! Cancel or commit: exactly one of them wins.
//!
//! ```text
//! Open ──cancel──▶ Cancelled      all sockets shut down; the source resumes
//!   └───commit──▶ Committed      the hand-over record is being written; a cancellation is refused
//! ```

use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;

use anyhow::{Result, bail};

use super::progress::lock;

#[derive(Clone, Debug)]
enum Stand {
    Open,
    Cancelled(String),
    Committed,
}

/// Shared by the migration and the control socket.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<(Stand, Vec<TcpStream>)>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { inner: Mutex::new((Stand::Open, Vec::new())) }
    }
}

impl Gate {
    /// Gives up, unless committed. Every wait on a guarded socket ends at once.
    ///
    /// # Errors
    /// When the machine has been handed over already.
    pub fn cancel(&self, why: &str) -> Result<()> {
        let mut inner = lock(&self.inner);
        match inner.0 {
            Stand::Open => inner.0 = Stand::Cancelled(why.to_owned()),
            Stand::Cancelled(_) => {}
            Stand::Committed => {
                bail!("the machine is handed over already; the migration cannot be cancelled any more")
            }
        }
        for socket in inner.1.drain(..) {
            // A socket that is closed already needs no shutting down.
            let _ = socket.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// The point of no return.
    ///
    /// # Errors
    /// When it was cancelled before.
    pub fn commit(&self) -> Result<()> {
        let mut inner = lock(&self.inner);
        check(&inner.0)?;
        inner.0 = Stand::Committed;
        Ok(())
    }

    /// Includes a socket.
    ///
    /// # Errors
    /// When it was cancelled before.
    pub fn guard(&self, socket: &TcpStream) -> Result<()> {
        let mut inner = lock(&self.inner);
        check(&inner.0)?;
        inner.1.push(socket.try_clone()?);
        Ok(())
    }

    /// Fails when cancelled.
    ///
    /// # Errors
    /// With the reason given.
    pub fn check(&self) -> Result<()> {
        check(&lock(&self.inner).0)
    }
}

fn check(stand: &Stand) -> Result<()> {
    match stand {
        Stand::Cancelled(why) => bail!("cancelled: {why}"),
        Stand::Open | Stand::Committed => Ok(()),
    }
}
