//! A session channel joined to a program.
//!
//! Bytes are read from either side only as the other side takes them: a stalled reader holds back exactly its own writer. A program
//! whose client has gone is ended with all of its process group; who wants something to stay runs it with `setsid`, `tmux` or the
//! shell's `nohup … &`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::program::{self, Account, Request};
use crate::spawn;
use crate::terminal::{Ours, Size, Terminal};

/// Read at once from a program: OpenSSH's packet size.
const CHUNK: usize = 32 * 1024;

/// Extended data of this kind is standard error (RFC 4254 §5.2).
const STDERR: u32 = 1;

/// How long the end of a program's output waits for its exit status: a client that has read the end closes the channel.
const EXIT: Duration = Duration::from_secs(1);

/// How long a terminal is listened to after its program has ended, while something else holds it and says nothing.
const QUIET: Duration = Duration::from_millis(200);

/// For the words of a refusal.
const FAREWELL: Duration = Duration::from_secs(2);

/// What was asked of a session, all of it.
#[derive(Debug)]
pub struct Asked {
    /// What it is for.
    pub request: Request,
    /// Its terminal.
    pub terminal: Option<Terminal>,
    /// Variables, later ones over earlier ones.
    pub variables: Vec<(String, OsString)>,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    terminal: Option<Ours>,
}

/// What reaches a running program beside its channel's bytes.
#[derive(Clone, Debug, Default)]
pub struct Controls(Arc<Mutex<Reach>>);

#[derive(Debug, Default)]
struct Reach {
    group: Option<Pid>,
    terminal: Option<Ours>,
    over: bool,
}

impl Controls {
    /// Sends a signal to the program's group.
    pub fn signal(&self, signal: &Sig) {
        if let (Some(group), Some(signal)) = (self.reach().group, to_number(signal)) {
            // It may be gone already.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Tells the terminal its size.
    pub fn resize(&self, size: Size) {
        // A terminal that is gone has none.
        let _ = self.reach().terminal.as_ref().map(|terminal| terminal.resize(size));
    }

    /// The program has ended: its id may soon be another's.
    pub fn over(&self) {
        *self.reach() = Reach { over: true, ..Reach::default() };
    }

    /// Whether it has.
    pub fn is_over(&self) -> bool {
        self.reach().over
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts what was asked for.
///
/// # Errors
/// Why it did not start, in words for the person.
pub fn start(
    asked: Asked,
    machine: &BTreeMap<String, String>,
    controls: &Controls,
) -> Result<Running, String> {
    let account = Account::of_root();
    let program = program::find(&asked.request, &account)?;
    let mut command = spawn::command(&program, &account.home);
    command.envs(program::environment(&account, machine, &asked.variables));
    let terminal = asked.terminal.filter(|_| asked.request != Request::Sftp);
    let (started, ours) = match terminal {
        Some(Terminal { ours, theirs, .. }) => (spawn::at_terminal(command, theirs), Some(ours)),
        None => (spawn::with_pipes(command), None),
    };
    let child = started.map_err(|error| format!("{} does not start: {error}", program.file.display()))?;
    *controls.reach() = Reach { group: spawn::group(&child), terminal: ours.clone(), over: false };
    Ok(Running { child, terminal: ours })
}

/// Carries its bytes until it ends, or until the client has `gone`.
pub async fn run(channel: Channel<Msg>, running: Running, client: Handle, gone: CancellationToken) {
    let (from, to) = channel.split();
    let Running { mut child, terminal } = running;
    let ended = tokio::select! {
        ended = converse(from, &to, &mut child, terminal) => ended,
        () = gone.cancelled() => None,
    };
    match ended {
        Some(status) => farewell(&to, &client, status).await,
        None => spawn::end(child).await,
    }
    // The client has gone or is about to.
    let _gone = to.close().await;
}

/// Until the program has ended and all that it said is sent; none when the client cannot be reached.
async fn converse(
    from: ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    child: &mut Child,
    terminal: Option<Ours>,
) -> Option<ExitStatus> {
    match terminal {
        Some(ours) => {
            let typing = typed(from, &ours);
            let exited = CancellationToken::new();
            let ending = async {
                let status = child.wait().await;
                exited.cancel();
                status
            };
            let whole = async { tokio::join!(ending, shown(&ours, to, &exited)) };
            tokio::select! {
                (status, sent) = whole => sent.ok().and(status.ok()),
                () = typing => None,
            }
        }
        None => {
            let (input, output, errors) = (child.stdin.take(), child.stdout.take()?, child.stderr.take()?);
            let whole = async {
                let (sent, also) = tokio::join!(said(output, to, None), said(errors, to, Some(STDERR)));
                sent.and(also).ok()?;
                if let Ok(status) = timeout(EXIT, child.wait()).await {
                    return status.ok();
                }
                to.eof().await.ok()?;
                child.wait().await.ok()
            };
            tokio::select! {
                ended = whole => ended,
                () = fed(from, input) => None,
            }
        }
    }
}

/// The client's bytes to a program. A program that reads no more is told no more; that is no reason to end.
async fn fed(mut from: ChannelReadHalf, mut input: Option<ChildStdin>) {
    while let Some(message) = from.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                if let Some(pipe) = &mut input
                    && pipe.write_all(&data).await.is_err()
                {
                    input = None;
                }
            }
            ChannelMsg::Eof => input = None,
            _ => {}
        }
    }
    // The channel's end is told by its token.
    pending().await
}

/// The client's bytes to a terminal, which has no end of its own.
async fn typed(mut from: ChannelReadHalf, ours: &Ours) {
    while let Some(message) = from.wait().await {
        if let ChannelMsg::Data { data } = message {
            // Nobody is at the terminal any more: its reader notices too.
            let _ = ours.write_all(&data).await;
        }
    }
    pending().await
}

async fn said(
    mut from: impl AsyncRead + Unpin,
    to: &ChannelWriteHalf<Msg>,
    kind: Option<u32>,
) -> Result<(), russh::Error> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if from.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return Ok(());
        }
        send(to, kind, buffer.split().freeze()).await?;
    }
}

async fn shown(
    ours: &Ours,
    to: &ChannelWriteHalf<Msg>,
    exited: &CancellationToken,
) -> Result<(), russh::Error> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read: io::Result<usize> = if exited.is_cancelled() {
            timeout(QUIET, ours.read(&mut buffer)).await.unwrap_or(Ok(0))
        } else {
            tokio::select! {
                read = ours.read(&mut buffer) => read,
                () = exited.cancelled() => continue,
            }
        };
        match buffer.get(..read.unwrap_or(0)) {
            None | Some([]) => return Ok(()),
            Some(bytes) => send(to, None, Bytes::copy_from_slice(bytes)).await?,
        }
    }
}

async fn send(to: &ChannelWriteHalf<Msg>, kind: Option<u32>, bytes: Bytes) -> Result<(), russh::Error> {
    match kind {
        Some(kind) => to.extended_data_bytes(kind, bytes).await,
        None => to.data_bytes(bytes).await,
    }
}

/// How the program ended.
async fn farewell(to: &ChannelWriteHalf<Msg>, client: &Handle, status: ExitStatus) {
    let told = match (status.code(), status.signal()) {
        (Some(code), _) => to.exit_status(u32::try_from(code).unwrap_or(255)).await.is_ok(),
        (None, Some(number)) => {
            let (name, core) = (to_name(number), status.core_dumped());
            client.exit_signal_request(to.id(), name, core, String::new(), String::new()).await.is_ok()
        }
        (None, None) => true,
    };
    if told {
        let _gone = to.eof().await;
    }
}

/// Says why on standard error and ends the channel as a shell does that cannot run a command: with 127.
pub async fn refuse(channel: &Channel<Msg>, why: &str) {
    let said = async {
        channel.extended_data_bytes(STDERR, format!("mashines: {why}\r\n").into_bytes()).await?;
        channel.exit_status(127).await?;
        channel.eof().await?;
        channel.close().await
    };
    // A client that does not take the line has its connection ended by the keepalive.
    let _gone = timeout(FAREWELL, said).await;
}

fn to_number(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) => match name.trim_end_matches("@openssh.com") {
            "USR2" => Signal::USR2,
            "STOP" => Signal::STOP,
            "TSTP" => Signal::TSTP,
            "CONT" => Signal::CONT,
            "WINCH" => Signal::WINCH,
            _ => return None,
        },
    })
}

/// RFC 4254 §6.10 has names for these alone; what else ends a program gets a name of OpenSSH's form.
fn to_name(number: i32) -> Sig {
    let named = [
        Sig::ABRT,
        Sig::ALRM,
        Sig::FPE,
        Sig::HUP,
        Sig::ILL,
        Sig::INT,
        Sig::KILL,
        Sig::PIPE,
        Sig::QUIT,
        Sig::SEGV,
        Sig::TERM,
        Sig::USR1,
        Sig::Custom("USR2".to_owned()),
    ];
    let is = |sig: &Sig| to_number(sig).is_some_and(|signal| signal.as_raw() == number);
    named.into_iter().find(is).unwrap_or_else(|| Sig::Custom("SIG@openssh.com".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_same_name_both_ways() {
        for (number, name) in [(15, "TERM"), (9, "KILL"), (12, "USR2"), (7, "SIG@openssh.com")] {
            assert!(format!("{:?}", to_name(number)).contains(name), "{number}");
        }
        assert_eq!(to_number(&Sig::Custom("DANCE".into())), None);
    }

    #[test]
    fn what_is_over_is_reached_no_more() {
        let controls = Controls::default();
        controls.reach().group = Pid::from_raw(1);
        controls.over();
        assert!(controls.is_over() && controls.reach().group.is_none());
    }
}
