//! A session's terminal: the pair of devices, its size, its modes (RFC 4254 §8).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use russh::Pty;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex as Code, Termios, Winsize,
    tcgetattr, tcsetattr, tcsetwinsize,
};
use tokio::io::unix::AsyncFd;

/// Columns, rows, and both in pixels, as SSH sends them.
pub type Size = (u32, u32, u32, u32);

/// A terminal nobody is at yet.
#[derive(Debug)]
pub struct Terminal {
    /// `TERM`.
    pub kind: String,
    /// The device's path.
    pub path: String,
    /// Our side.
    pub ours: Ours,
    /// The session's side; gone once something was started at it.
    pub theirs: OwnedFd,
}

/// Our side of a terminal, to read, to write and to resize.
#[derive(Clone, Debug)]
pub struct Ours(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Makes one.
    pub fn open(kind: &str, size: Size, modes: &[(Pty, u32)]) -> io::Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?.to_string_lossy().into_owned();
        let theirs =
            ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let mut attributes = tcgetattr(&theirs)?;
        modes.iter().for_each(|&(mode, value)| set_mode(&mut attributes, mode, value));
        tcsetattr(&theirs, OptionalActions::Now, &attributes)?;
        fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` has the one descriptor for as long as it lives, and nothing takes it out of the `AsyncFd`.
        let registered = unsafe { AsyncFd::register(ours) }?;
        let ours = Ours(Arc::new(registered));
        ours.resize(size)?;
        Ok(Self { kind: kind.to_owned(), path, ours, theirs })
    }
}

impl Ours {
    /// Tells the session the window's new size; it gets SIGWINCH.
    pub fn resize(&self, (columns, rows, width, height): Size) -> io::Result<()> {
        let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: short(rows),
            ws_col: short(columns),
            ws_xpixel: short(width),
            ws_ypixel: short(height),
        };
        Ok(tcsetwinsize(self.0.get_ref().as_fd(), size)?)
    }

    /// Reads what was shown; 0 when nobody is at the terminal any more.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                // What reading our side answers once the other is closed (`pty(7)` does not say so; the kernel does).
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    /// Types all of it.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// One mode of RFC 4254 §8. Speeds and what Linux has not are passed over.
fn set_mode(attributes: &mut Termios, mode: Pty, value: u32) {
    let on = value != 0;
    if let Some(index) = code(mode) {
        // 255 is SSH's word for "disabled", 0 is POSIX's.
        attributes.special_codes[index] = u8::try_from(value).ok().filter(|&byte| byte != 255).unwrap_or(0);
    } else if let Some(flag) = input(mode) {
        attributes.input_modes.set(flag, on);
    } else if let Some(flag) = local(mode) {
        attributes.local_modes.set(flag, on);
    } else if let Some(flag) = output(mode) {
        attributes.output_modes.set(flag, on);
    }
}

fn code(mode: Pty) -> Option<Code> {
    Some(match mode {
        Pty::VINTR => Code::VINTR,
        Pty::VQUIT => Code::VQUIT,
        Pty::VERASE => Code::VERASE,
        Pty::VKILL => Code::VKILL,
        Pty::VEOF => Code::VEOF,
        Pty::VEOL => Code::VEOL,
        Pty::VEOL2 => Code::VEOL2,
        Pty::VSTART => Code::VSTART,
        Pty::VSTOP => Code::VSTOP,
        Pty::VSUSP => Code::VSUSP,
        Pty::VREPRINT => Code::VREPRINT,
        Pty::VWERASE => Code::VWERASE,
        Pty::VLNEXT => Code::VLNEXT,
        Pty::VDISCARD => Code::VDISCARD,
        _ => return None,
    })
}

fn input(mode: Pty) -> Option<InputModes> {
    Some(match mode {
        Pty::IGNPAR => InputModes::IGNPAR,
        Pty::PARMRK => InputModes::PARMRK,
        Pty::INPCK => InputModes::INPCK,
        Pty::ISTRIP => InputModes::ISTRIP,
        Pty::INLCR => InputModes::INLCR,
        Pty::IGNCR => InputModes::IGNCR,
        Pty::ICRNL => InputModes::ICRNL,
        Pty::IXON => InputModes::IXON,
        Pty::IXANY => InputModes::IXANY,
        Pty::IXOFF => InputModes::IXOFF,
        Pty::IMAXBEL => InputModes::IMAXBEL,
        Pty::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local(mode: Pty) -> Option<LocalModes> {
    Some(match mode {
        Pty::ISIG => LocalModes::ISIG,
        Pty::ICANON => LocalModes::ICANON,
        Pty::ECHO => LocalModes::ECHO,
        Pty::ECHOE => LocalModes::ECHOE,
        Pty::ECHOK => LocalModes::ECHOK,
        Pty::ECHONL => LocalModes::ECHONL,
        Pty::NOFLSH => LocalModes::NOFLSH,
        Pty::TOSTOP => LocalModes::TOSTOP,
        Pty::IEXTEN => LocalModes::IEXTEN,
        Pty::ECHOCTL => LocalModes::ECHOCTL,
        Pty::ECHOKE => LocalModes::ECHOKE,
        Pty::PENDIN => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output(mode: Pty) -> Option<OutputModes> {
    Some(match mode {
        Pty::OPOST => OutputModes::OPOST,
        Pty::ONLCR => OutputModes::ONLCR,
        Pty::OCRNL => OutputModes::OCRNL,
        Pty::ONOCR => OutputModes::ONOCR,
        Pty::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_terminal_has_the_size_and_the_modes_that_were_asked_for() {
        let modes = [(Pty::ECHO, 0), (Pty::VINTR, 7), (Pty::VKILL, 255), (Pty::TTY_OP_OSPEED, 9600)];
        let terminal = Terminal::open("xterm", (132, 43, 0, 70_000), &modes).unwrap();
        let attributes = tcgetattr(&terminal.theirs).unwrap();
        assert!(!attributes.local_modes.contains(LocalModes::ECHO));
        assert!(attributes.local_modes.contains(LocalModes::ICANON));
        assert_eq!((attributes.special_codes[Code::VINTR], attributes.special_codes[Code::VKILL]), (7, 0));
        let size = rustix::termios::tcgetwinsize(&terminal.theirs).unwrap();
        assert_eq!((size.ws_col, size.ws_row, size.ws_ypixel), (132, 43, u16::MAX));
        assert!(terminal.path.starts_with("/dev/pts/"));
    }

    #[tokio::test]
    async fn the_end_of_the_other_side_is_the_end_of_reading() {
        let terminal = Terminal::open("dumb", (80, 24, 0, 0), &[]).unwrap();
        drop(terminal.theirs);
        assert_eq!(terminal.ours.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
