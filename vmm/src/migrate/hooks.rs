//! The lines sent to other daemons of this host: see [`crate::api::Hooks`].

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::api::Hook;

const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_ANSWER: u64 = 64 << 10;

/// Sends the line and reads the answer.
///
/// # Errors
/// Names the socket; when it is not there, silent for 2 s, or its answer is not `{"ok":true…`.
pub fn send(hook: &Hook) -> Result<()> {
    let socket = hook.socket.display();
    let mut stream = UnixStream::connect(&hook.socket).with_context(|| format!("connecting to {socket}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream
        .write_all(format!("{}\n", hook.line).as_bytes())
        .with_context(|| format!("sending the hook's line to {socket}"))?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST_ANSWER))
        .read_line(&mut answer)
        .with_context(|| format!("waiting for the answer of {socket}"))?;
    if !answer.starts_with("{\"ok\":true") {
        bail!("{socket} refused the line {:?}: {:?}", hook.line, answer.trim_end());
    }
    Ok(())
}

/// A hook whose thread waits for the moment, so that firing costs no more than waking it.
pub struct Armed {
    trigger: Sender<()>,
    done: Receiver<()>,
}

impl Armed {
    /// Prepares a hook, if there is one.
    #[must_use]
    pub fn new(name: &'static str, hook: Option<&Hook>) -> Option<Self> {
        let hook = hook?.clone();
        let ((trigger, fired), (finished, done)) = (channel(), channel());
        let work = move || {
            if fired.recv().is_err() {
                return;
            }
            if let Err(error) = send(&hook) {
                tracing::error!(hook = name, error = format!("{error:#}"), "a hook failed");
            }
            // Nobody may be waiting any more.
            let _ = finished.send(());
        };
        std::thread::Builder::new().name(format!("hook-{name}")).spawn(work).ok()?;
        Some(Self { trigger, done })
    }

    /// Sends the line, from the hook's own thread.
    #[must_use]
    pub fn fire(self) -> Fired {
        // The thread waits for this or for the trigger's drop, so somebody listens.
        let _ = self.trigger.send(());
        Fired { done: self.done }
    }
}

/// A hook under way.
pub struct Fired {
    done: Receiver<()>,
}

impl Fired {
    /// Waits for its end, for better or worse. Returns whether it came in time.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        self.done.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    }
}
