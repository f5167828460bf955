//! The client of the agent inside a guest (`mashines_guest::protocol`), through the monitor's vsock socket.
//!
//! The guest is a stranger: what it answers is capped, timed, and never more than data.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mashines_guest::protocol::{Exec, ExecResult, MAX_LINE, PORT, Request, Response};
use tokio::net::UnixStream;

use crate::error::{Context, HostError, Result};
use crate::lines::{read_line, write_line};

/// How long the answer to anything but `exec` may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest `OK PORT` line.
const MAX_GREETING: usize = 64;

/// A guest's agent, reached by its machine's vsock socket.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// The agent behind `socket`. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// Whether the guest is ready; an error when it cannot be asked yet.
    pub async fn ready(&self) -> Result<bool> {
        match self.ask(&Request::Ready, TIMEOUT).await? {
            Response::Ready { ready, .. } => Ok(ready),
            other => Err(unexpected("ready", other)),
        }
    }

    /// Asks for an orderly shutdown.
    pub async fn shut_down(&self) -> Result<()> {
        match self.ask(&Request::Shutdown, TIMEOUT).await? {
            Response::Done => Ok(()),
            other => Err(unexpected("shutdown", other)),
        }
    }

    /// Runs a command in the guest.
    pub async fn exec(&self, exec: Exec, timeout: Duration) -> Result<ExecResult> {
        match self.ask(&Request::Exec(exec), timeout.saturating_add(TIMEOUT)).await? {
            Response::Exec(result) => Ok(result),
            other => Err(unexpected("exec", other)),
        }
    }

    async fn ask(&self, request: &Request, timeout: Duration) -> Result<Response> {
        let line = serde_json::to_vec(request).doing(|| "write a request to the guest's agent".to_owned())?;
        if line.len() > MAX_LINE {
            return Err(HostError::invalid(format!(
                "the request has {} bytes, the guest's agent takes {MAX_LINE}: send less on stdin",
                line.len()
            )));
        }
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            write_line(&mut stream, format!("CONNECT {PORT}").as_bytes()).await?;
            let greeting = read_line(&mut stream, MAX_GREETING).await?;
            if !greeting.starts_with(b"OK") {
                return Err(io::Error::other("the guest refused the connection"));
            }
            write_line(&mut stream, &line).await?;
            read_line(&mut stream, MAX_LINE).await
        };
        let name = || format!("ask the guest's agent by {}", self.socket.display());
        let answer = match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer.doing(name)?,
            Err(_) => return Err(HostError::internal(format!("{}: no answer within {timeout:?}", name()))),
        };
        serde_json::from_slice(&answer).doing(name)
    }
}

fn unexpected(asked: &str, answer: Response) -> HostError {
    match answer {
        Response::Error { error } => {
            HostError::invalid(format!("the guest's agent did not {asked}: {error}"))
        }
        other @ (Response::Ready { .. } | Response::Exec(_) | Response::Status(_) | Response::Done) => {
            let kind = match other {
                Response::Ready { .. } => "ready",
                Response::Exec(_) => "exec",
                Response::Status(_) => "status",
                Response::Done | Response::Error { .. } => "done",
            };
            HostError::internal(format!(
                "the guest's agent answered {asked} with {kind}: is its image of this version?"
            ))
        }
    }
}
