//! The client of a monitor's control socket (`mashines_vmm::api`): one request, one answer, one connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mashines_vmm::api::{MAX_LINE, Reply, Request, Status};
use tokio::net::UnixStream;

use crate::error::{Context, HostError, Result};
use crate::lines::{read_line, write_line};

/// How long a monitor may take to answer. It answers at once, also within a migration.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A machine's monitor, reached by its socket.
#[derive(Debug, Clone)]
pub struct Monitor {
    socket: PathBuf,
}

impl Monitor {
    /// The monitor behind `socket`. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// Asks; a refusal of the monitor is a conflict with what runs.
    pub async fn call(&self, request: &Request) -> Result<Reply> {
        let exchange = async {
            let line = serde_json::to_vec(request).map_err(std::io::Error::other)?;
            let mut stream = UnixStream::connect(&self.socket).await?;
            write_line(&mut stream, &line).await?;
            read_line(&mut stream, MAX_LINE).await
        };
        let name = || format!("ask the monitor at {} for {}", self.socket.display(), op(request));
        let line = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(line) => line.doing(name)?,
            Err(_) => {
                return Err(HostError::internal(format!("{}: no answer within {TIMEOUT:?}", name())));
            }
        };
        match serde_json::from_slice(&line).doing(name)? {
            Reply::Error { error } => Err(HostError::conflict(error)),
            reply => Ok(reply),
        }
    }

    /// Where it stands.
    pub async fn status(&self) -> Result<Status> {
        match self.call(&Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.unexpected(&Request::Status, &other)),
        }
    }

    /// The end of the serial console.
    pub async fn console(&self) -> Result<String> {
        match self.call(&Request::Console).await? {
            Reply::Console { text } => Ok(text),
            other => Err(self.unexpected(&Request::Console, &other)),
        }
    }

    /// Asks for something that is only done.
    pub async fn tell(&self, request: &Request) -> Result<()> {
        match self.call(request).await? {
            Reply::Ok => Ok(()),
            other => Err(self.unexpected(request, &other)),
        }
    }

    /// The error for an answer that belongs to another request.
    pub fn unexpected(&self, request: &Request, reply: &Reply) -> HostError {
        HostError::internal(format!(
            "the monitor at {} answered {} with {reply:?}: are monitor and daemon of one version?",
            self.socket.display(),
            op(request)
        ))
    }
}

/// Its name on the wire.
fn op(request: &Request) -> String {
    let tagged = serde_json::to_value(request).unwrap_or_default();
    tagged.get("op").and_then(|op| op.as_str()).unwrap_or("?").to_owned()
}
