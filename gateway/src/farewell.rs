//! Turning somebody away from a TCP port with a reason. An SSH server may send lines before its version (RFC 4253 §4.2); `ssh -v`
//! shows them, and whoever looks at the port with another program reads them too.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client is given to take the line.
const PATIENCE: Duration = Duration::from_secs(2);

fn line(why: &str) -> String {
    format!("mashines: {why}\r\n")
}

/// Says why, lets the client hear it, and closes.
pub async fn farewell(mut stream: TcpStream, why: &str) {
    let said = async {
        stream.write_all(line(why).as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with something unread resets the connection, and a reset discards the line on its way.
        let mut unread = [0u8; 1024];
        while stream.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _gone = timeout(PATIENCE, said).await;
}

/// Says why as well as can be done at once, for those who come in numbers: it costs neither a task nor a moment. The caller closes.
pub fn turn_away(stream: &TcpStream, why: &str) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _gone = send(stream.as_raw_fd(), line(why).as_bytes(), flags);
}
