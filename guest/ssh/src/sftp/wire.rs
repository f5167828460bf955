//! Packets and their fields (draft-ietf-secsh-filexfer-02, section 3).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

macro_rules! kinds {
    ($($name:ident = $number:literal),* $(,)?) => {
        $(#[doc = concat!("`SSH_FXP_", stringify!($name), "`")] pub const $name: u8 = $number;)*
    };
}

kinds! {
    INIT = 1, VERSION = 2, OPEN = 3, CLOSE = 4, READ = 5, WRITE = 6, LSTAT = 7, FSTAT = 8, SETSTAT = 9, FSETSTAT = 10,
    OPENDIR = 11, READDIR = 12, REMOVE = 13, MKDIR = 14, RMDIR = 15, REALPATH = 16, STAT = 17, RENAME = 18,
    READLINK = 19, SYMLINK = 20, STATUS = 101, HANDLE = 102, DATA = 103, NAME = 104, ATTRS = 105, EXTENDED = 200,
    EXTENDED_REPLY = 201,
}

/// `SSH_FX_OK`
pub const OK: u32 = 0;
const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
const FAILURE: u32 = 4;
/// `SSH_FX_BAD_MESSAGE`
pub const BAD_MESSAGE: u32 = 5;
/// `SSH_FX_OP_UNSUPPORTED`
pub const UNSUPPORTED: u32 = 8;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The end of a file or a directory.
    #[error("end of file")]
    End,
    /// The file system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The request ends too early, or names a handle that there is not.
    #[error("bad message: {0}")]
    Bad(&'static str),
    /// No such request here.
    #[error("operation unsupported")]
    Unsupported,
}

impl From<rustix::io::Errno> for Refusal {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl Refusal {
    /// The status to answer.
    pub fn answer(&self, id: u32) -> Packet {
        let code = match self {
            Self::End => EOF,
            Self::Bad(_) => BAD_MESSAGE,
            Self::Unsupported => UNSUPPORTED,
            Self::Io(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NO_SUCH_FILE,
                io::ErrorKind::PermissionDenied => PERMISSION_DENIED,
                _ => FAILURE,
            },
        };
        Packet::new(STATUS, id).u32(code).string(self.to_string()).string("en")
    }
}

/// What is left of a packet that is read.
#[derive(Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Of a packet without its length.
    pub fn new(packet: &'a [u8]) -> Self {
        Self(packet)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(Refusal::Bad("it ends too early"))?;
        self.0 = rest;
        Ok(field)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Refusal> {
        self.take(1).map(|bytes| bytes.iter().copied().sum())
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Result<u32, Refusal> {
        let bytes = self.take(4)?.try_into().map_err(|_| Refusal::Bad("it ends too early"))?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Result<u64, Refusal> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    /// Bytes with their length.
    pub fn string(&mut self) -> Result<&'a [u8], Refusal> {
        let length = usize::try_from(self.u32()?).map_err(|_| Refusal::Bad("it ends too early"))?;
        self.take(length)
    }

    /// A path. The empty one is where the session begins.
    pub fn path(&mut self) -> Result<&'a Path, Refusal> {
        let bytes = self.string()?;
        if bytes.contains(&0) {
            return Err(Refusal::Bad("a path with a NUL"));
        }
        Ok(Path::new(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }
}

/// A packet that is written.
#[derive(Debug)]
pub struct Packet(Vec<u8>);

impl Packet {
    /// One that answers a request.
    pub fn new(kind: u8, id: u32) -> Self {
        Self::bare(kind).u32(id)
    }

    /// One without an id.
    pub fn bare(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    /// "Done."
    pub fn done(id: u32) -> Self {
        Self::new(STATUS, id).u32(OK).string("").string("en")
    }

    /// 32 bits.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// 64 bits.
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Bytes with their length.
    pub fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        // Longer than 4 GiB is nothing here; finish() would notice.
        let mut packet = self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        packet.0.extend_from_slice(bytes);
        packet
    }

    /// Puts another packet's fields behind its own.
    pub fn append(mut self, fields: &[u8]) -> Self {
        self.0.extend_from_slice(fields);
        self
    }

    /// Its fields, without length, kind and id.
    pub fn fields(&self) -> &[u8] {
        self.0.get(9..).unwrap_or_default()
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Result<Vec<u8>, std::num::TryFromIntError> {
        let length = u32::try_from(self.0.len() - 4)?.to_be_bytes();
        self.0.iter_mut().zip(length).for_each(|(byte, length)| *byte = length);
        Ok(self.0)
    }
}
