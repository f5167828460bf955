//! One line out, one line in: how this daemon speaks to monitors, agents and netd.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Writes `line` and a newline.
pub async fn write_line(stream: &mut (impl AsyncWrite + Unpin), line: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line);
    bytes.push(b'\n');
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads to the first newline, which is not returned; longer than `limit` is an error.
///
/// What the peer sent after that newline in the same packet is lost: it has nothing to say before it is asked.
pub async fn read_line(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0_u8; 8192];
    loop {
        let read = stream.read(&mut chunk).await?;
        let part = &chunk[..read];
        if let Some(end) = part.iter().position(|b| *b == b'\n') {
            line.extend_from_slice(&part[..end]);
            return Ok(line);
        }
        line.extend_from_slice(part);
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer hung up within a line"));
        }
        if line.len() > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line of over {limit} bytes")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_read_to_its_end_and_no_further_than_allowed() {
        let mut bytes: &[u8] = b"one\n";
        assert_eq!(read_line(&mut bytes, 10).await.unwrap(), b"one");
        let mut cut: &[u8] = b"cut";
        assert_eq!(read_line(&mut cut, 10).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let long = vec![b'x'; 10_000];
        assert_eq!(
            read_line(&mut long.as_slice(), 9_000).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
