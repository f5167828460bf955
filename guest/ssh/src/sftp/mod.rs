//! One SFTP session on standard input and output: protocol 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions.
//!
//! A process of its own, as OpenSSH's `sftp-server`: it may wait for disks, it stalls with its reader, and it ends with its session. Names
//! are bytes, as the kernel's are. Answers come in the order of the requests.

mod attributes;
mod files;
mod wire;

use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};

use anyhow::{Context as _, Result, bail};
use files::Files;
use wire::{Fields, Packet};

/// The protocol's version.
const VERSION: u32 = 3;

/// The longest packet: what OpenSSH's own takes.
const MAX_PACKET: u32 = 256 * 1024;

/// The most bytes of a file in one packet, which also holds a few fields.
const MAX_DATA: u32 = MAX_PACKET - 1024;

/// The most open files and directories.
const MAX_HANDLES: u32 = 1024;

/// `PROTOCOL`, section 4 of OpenSSH; each with its version.
const EXTENSIONS: [(&str, &str); 7] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];

/// Serves until the client ends.
///
/// # Errors
/// When the other side does not speak SFTP, or is gone.
pub fn run() -> Result<()> {
    serve(std::io::stdin().lock(), std::io::stdout().lock())
}

fn serve(from: impl Read, to: impl Write) -> Result<()> {
    let mut from = BufReader::with_capacity(64 * 1024, from);
    let mut to = BufWriter::with_capacity(64 * 1024, to);
    let mut files = Files::new(usize::try_from(MAX_HANDLES)?);
    while let Some(packet) = read(&mut from)? {
        let answer = answer(&packet, &mut files)?;
        to.write_all(&answer.finish()?).context("answering")?;
        // Several requests come at once: so do the answers.
        if from.buffer().is_empty() {
            to.flush().context("answering")?;
        }
    }
    Ok(())
}

/// The next packet without its length; none at the end.
fn read(from: &mut impl Read) -> Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error).context("reading a request"),
    }
    let length = u32::from_be_bytes(length);
    if length == 0 || length > MAX_PACKET {
        bail!("a request of {length} bytes: this is no SFTP client");
    }
    let mut packet = vec![0; usize::try_from(length)?];
    from.read_exact(&mut packet).context("reading a request")?;
    Ok(Some(packet))
}

fn answer(packet: &[u8], files: &mut Files) -> Result<Packet> {
    let mut fields = Fields::new(packet);
    let kind = fields.byte()?;
    if kind == wire::INIT {
        let mut version = Packet::bare(wire::VERSION).u32(VERSION);
        for (name, data) in EXTENSIONS {
            version = version.string(name).string(data);
        }
        return Ok(version);
    }
    let id = fields.u32().context("a request without an id")?;
    Ok(files.carry_out(kind, id, &mut fields).unwrap_or_else(|error| error.answer(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 1).unwrap().to_be_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(body);
        bytes
    }

    fn talk(said: &[u8]) -> Vec<u8> {
        let mut heard = Vec::new();
        serve(said, &mut heard).unwrap();
        heard
    }

    #[test]
    fn the_first_answer_names_version_3_and_the_extensions() {
        let heard = talk(&packet(wire::INIT, &3u32.to_be_bytes()));
        assert_eq!(heard[4..9], [2, 0, 0, 0, 3]);
        let name = b"posix-rename@openssh.com";
        assert!(heard.windows(name.len()).any(|w| w == name));
    }

    #[test]
    fn what_is_not_understood_is_answered_under_its_id() {
        // An unknown request, and a read without its fields.
        for (kind, code) in [(99, wire::UNSUPPORTED), (wire::READ, wire::BAD_MESSAGE)] {
            let heard = talk(&packet(kind, &7u32.to_be_bytes()));
            assert_eq!(
                heard[4..13],
                [&[wire::STATUS][..], &7u32.to_be_bytes(), &code.to_be_bytes()].concat()
            );
        }
    }

    #[test]
    fn a_packet_longer_than_any_client_sends_ends_the_session() {
        assert!(serve(&[0xff; 64][..], Vec::new()).is_err());
        assert!(serve(&[0, 0, 0, 9, 1][..], Vec::new()).is_err());
    }
}
