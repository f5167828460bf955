//! TCP connections towards machines.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a machine may take to accept a connection. A move's blackout, a boot's last second fit into it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a refused connection is tried again: the machine is up, its sshd not yet.
const RETRY: Duration = Duration::from_millis(200);

/// Why a machine could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answered in time.
    #[error("nothing answers at {0} ({CONNECT_TIMEOUT:?})")]
    Silent(SocketAddr),
    /// It answered with a refusal until the time was over, or cannot be reached.
    #[error("{0}: {1}")]
    Failed(SocketAddr, io::Error),
}

/// Connects to `address`, trying again while it refuses.
pub async fn dial(address: SocketAddr) -> Result<TcpStream, DialError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare(&stream).map_err(|error| DialError::Failed(address, error))?;
                return Ok(stream);
            }
            Ok(Err(error)) if Instant::now() + RETRY < deadline && is_passing(&error) => sleep(RETRY).await,
            Ok(Err(error)) => return Err(DialError::Failed(address, error)),
            Err(_elapsed) => return Err(DialError::Silent(address)),
        }
    }
}

/// Errors that a starting or moving machine gives for a moment.
fn is_passing(error: &io::Error) -> bool {
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
