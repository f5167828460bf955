//! TCP connections towards machines.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mashines_fleet::record::{Machine, MachineState};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a running machine may take to accept a connection: a move's blackout and a busy guest fit into it.
const RUNNING: Duration = Duration::from_secs(10);

/// How long a machine may take that is on its way up.
const STARTING: Duration = Duration::from_secs(60);

/// Pause before a refused connection is tried again: the machine is up, its sshd not yet.
const RETRY: Duration = Duration::from_millis(200);

/// Why a machine could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answered in time.
    #[error("nothing answers at {0} within {1:?}")]
    Silent(SocketAddr, Duration),
    /// It answered with a refusal until the time was over, or cannot be reached.
    #[error("{0}: {1}")]
    Failed(SocketAddr, io::Error),
}

/// How long to wait for that machine.
pub fn patience(machine: &Machine) -> Duration {
    match machine.state {
        MachineState::Created | MachineState::Starting => STARTING,
        MachineState::Started
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Destroying
        | MachineState::Destroyed
        | MachineState::Failed => RUNNING,
    }
}

/// Connects to `address`, trying again while it refuses.
pub async fn dial(address: SocketAddr, patience: Duration) -> Result<TcpStream, DialError> {
    let deadline = Instant::now() + patience;
    let mut refused = None;
    loop {
        let begun = Instant::now();
        match timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare(&stream).map_err(|error| DialError::Failed(address, error))?;
                return Ok(stream);
            }
            Ok(Err(error)) if Instant::now() + RETRY < deadline && is_passing(&error) => {
                refused = Some(error);
                sleep(RETRY).await;
            }
            Ok(Err(error)) => return Err(DialError::Failed(address, error)),
            Err(_elapsed) => {
                // One that refused a moment ago is not silent: it is this side that came late to its last try.
                let refused = refused.filter(|_| begun + RETRY > deadline);
                return Err(refused.map_or(DialError::Silent(address, patience), |error| {
                    DialError::Failed(address, error)
                }));
            }
        }
    }
}

/// Errors that a starting or moving machine gives for a moment.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// Low latency, and an end for connections whose peer vanished. Sessions may be silent for days: there is no idle timeout, and a peer
/// is given up only after 60 + 6 × 20 s without a sign of life.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &20)?;
    setsockopt(stream, sockopt::TcpKeepCount, &6)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_refuses_is_not_called_silent_by_who_comes_late_to_the_last_try() {
        // Bound, and nobody listens.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Nothing else of this thread goes on while it sleeps, over the second try and the deadline.
        let busy = tokio::spawn(async {
            sleep(RETRY / 2).await;
            std::thread::sleep(RETRY * 2);
        });
        let error = dial(socket.local_addr().unwrap(), RETRY * 3 / 2).await.unwrap_err();
        let refused =
            matches!(&error, DialError::Failed(_, e) if e.kind() == io::ErrorKind::ConnectionRefused);
        assert!(refused, "{error}");
        busy.await.unwrap();
    }
}
