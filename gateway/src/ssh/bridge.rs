//! A channel of a client joined to a channel of a machine.
//!
//! ```text
//! client ══ russh server ══▶ to_machine ══▶ russh client ══ machine's sshd
//!        ◀═══════════════ to_client ◀═════════════════════
//! ```
//!
//! Both directions run in one task. Data is handed on as the bytes that were decrypted, without a copy, and only while the other
//! side's window has room, so that a reader who stalls holds back exactly its own writer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mashines_cli::words;
use mashines_fleet::record::Machine;
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use tokio::time::timeout;
use tracing::warn;

use super::session::Visit;
use crate::accounts::Purse;
use crate::recording::{Tape, Terminal};
use crate::upstream::{Lease, Taker};

/// How long a machine may take to confirm the end of a channel whose client has gone.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long the end of a machine's output waits for the exit status while the client may still have input for the command. Once it has
/// none, nobody can be waiting for that end but to close the channel, and it waits for as long as it takes.
const EXIT: Duration = Duration::from_secs(1);

/// Extended data of this kind is standard error (RFC 4254 §5.2).
pub const STDERR: u32 = 1;

/// Messages that came before the other side was there.
pub type Held = VecDeque<ChannelMsg>;

/// How a joined pair ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides closed the channel: the machine's connection is as good as new.
    Clean,
    /// The machine's connection broke, or did not confirm the close.
    Broken,
}

/// Whose session in which machine it is.
pub struct Passage<'a> {
    /// Who, and on which terms.
    pub visit: &'a Visit,
    /// Where.
    pub machine: &'a Machine,
}

/// What both directions of a session use.
struct Between<'a> {
    passage: &'a Passage<'a>,
    /// The recording, once there is a terminal.
    tape: Mutex<Option<Tape>>,
    /// The client has no more input.
    client_ended: AtomicBool,
}

/// Joins a session.
pub async fn session(
    channel: Channel<server::Msg>,
    held: Held,
    machine: Channel<client::Msg>,
    lease: &mut Lease,
    passage: &Passage<'_>,
) -> End {
    let (mut from_client, to_client) = channel.split();
    let (mut from_machine, to_machine) = machine.split();
    let between = Between { passage, tape: Mutex::new(None), client_ended: AtomicBool::new(false) };
    {
        let forth = between.forth(&mut from_client, held, &to_machine, &to_client, lease);
        let back = between.back(&mut from_machine, &to_client);
        tokio::pin!(forth, back);
        tokio::select! {
            end = &mut back => return end,
            outcome = &mut forth => match outcome {
                // The client closed, or its connection is gone.
                Ok(()) => (),
                // The machine's connection broke: the other direction notices too, and tells the client.
                Err(_) => return back.await,
            },
        }
    }
    close(&mut from_machine, &to_machine).await
}

/// Ends the machine's channel and waits for its confirmation.
async fn close(from: &mut ChannelReadHalf, to: &ChannelWriteHalf<client::Msg>) -> End {
    let confirmed = async {
        to.close().await.ok()?;
        while let Some(message) = from.wait().await {
            if matches!(message, ChannelMsg::Close) {
                return Some(());
            }
        }
        None
    };
    match timeout(FAREWELL, confirmed).await {
        Ok(Some(())) => End::Clean,
        Ok(None) | Err(_) => End::Broken,
    }
}

impl Between<'_> {
    /// Ends well when the client closes; fails when the machine's side cannot be written to.
    async fn forth(
        &self,
        from: &mut ChannelReadHalf,
        mut held: Held,
        to: &ChannelWriteHalf<client::Msg>,
        to_client: &ChannelWriteHalf<server::Msg>,
        lease: &mut Lease,
    ) -> Result<(), russh::Error> {
        let visit = self.passage.visit;
        loop {
            let message = match held.pop_front() {
                Some(message) => message,
                None => match from.wait().await {
                    Some(message) => message,
                    None => return Ok(()),
                },
            };
            match message {
                ChannelMsg::Data { data } => {
                    visit.pay(data.len()).await;
                    to.data_bytes(data).await?;
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    visit.pay(data.len()).await;
                    to.extended_data_bytes(ext, data).await?;
                }
                ChannelMsg::Eof => {
                    self.client_ended.store(true, Ordering::Relaxed);
                    to.eof().await?;
                }
                ChannelMsg::Close => return Ok(()),
                // The client was told no already.
                ChannelMsg::AgentForward { .. } if !visit.terms.agent => (),
                ChannelMsg::RequestPty { .. } if !visit.terms.pty => (),
                ChannelMsg::AgentForward { .. } => {
                    lease.forward_agent(Taker { client: visit.client.clone(), purse: visit.purse() });
                    to.agent_forward(false).await?;
                }
                request => {
                    self.record(&request, to_client).await;
                    pass_request(forced(request, visit.terms.force_command.as_deref()), to).await?;
                }
            }
        }
    }

    /// Begins a recording with the terminal, where the machine's owner wants one, and tells the person.
    async fn record(&self, request: &ChannelMsg, to_client: &ChannelWriteHalf<server::Msg>) {
        let Passage { visit, machine } = *self.passage;
        match request {
            ChannelMsg::RequestPty { term, col_width, row_height, .. } if machine.config.record_sessions => {
                let terminal = Terminal { kind: term.clone(), size: (*col_width, *row_height) };
                let title = format!("{} in {}", visit.name(), machine.slug);
                let told = match visit.gateway.recordings.begin(machine.slug.as_str(), &title, &terminal) {
                    Ok(tape) => {
                        *self.tape() = Some(tape);
                        "mashines: this session is recorded\r\n"
                    }
                    Err(error) => {
                        warn!(machine = %machine.slug, %error, "a session is not recorded");
                        "mashines: this session could not be recorded\r\n"
                    }
                };
                let _gone = to_client.extended_data_bytes(STDERR, told.as_bytes()).await;
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                if let Some(tape) = self.tape().as_mut() {
                    tape.resized(*col_width, *row_height);
                }
            }
            _ => (),
        }
    }

    fn tape(&self) -> MutexGuard<'_, Option<Tape>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request that begins a session, with a certificate's command in place of what was asked for; that is told in
/// `SSH_ORIGINAL_COMMAND`, as sshd does (`sshd_config(5)`, ForceCommand).
fn forced(request: ChannelMsg, command: Option<&str>) -> ChannelMsg {
    let Some(forced) = command else { return request };
    let original = match &request {
        ChannelMsg::RequestShell { .. } => None,
        ChannelMsg::Exec { command, .. } => Some(String::from_utf8_lossy(command).into_owned()),
        ChannelMsg::RequestSubsystem { name, .. } => Some(name.clone()),
        _ => return request,
    };
    let told = original.map(|original| format!("export SSH_ORIGINAL_COMMAND={}; ", words::quote(&original)));
    let command = format!("{}{forced}", told.unwrap_or_default()).into_bytes();
    ChannelMsg::Exec { want_reply: false, command }
}

/// Requests before and during a session. The client had its answer already (see `handler`); of the machine only whether the
/// command itself begins is asked.
async fn pass_request(request: ChannelMsg, to: &ChannelWriteHalf<client::Msg>) -> Result<(), russh::Error> {
    match request {
        ChannelMsg::RequestPty {
            term, col_width, row_height, pix_width, pix_height, terminal_modes, ..
        } => {
            to.request_pty(false, &term, col_width, row_height, pix_width, pix_height, &terminal_modes).await
        }
        ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
            to.set_env(false, variable_name, variable_value).await
        }
        ChannelMsg::RequestShell { .. } => to.request_shell(true).await,
        ChannelMsg::Exec { command, .. } => to.exec(true, command).await,
        ChannelMsg::RequestSubsystem { name, .. } => to.request_subsystem(true, name).await,
        ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
            to.window_change(col_width, row_height, pix_width, pix_height).await
        }
        ChannelMsg::Signal { signal } => to.signal(signal).await,
        // X11 was refused to the client; the rest is russh's own bookkeeping.
        _ => Ok(()),
    }
}

impl Between<'_> {
    async fn back(&self, from: &mut ChannelReadHalf, to: &ChannelWriteHalf<server::Msg>) -> End {
        match self.pass_answers(from, to).await {
            Ok(End::Clean) => {
                let _gone = to.close().await;
                End::Clean
            }
            Ok(End::Broken) => {
                refuse(to, "the connection to the machine broke").await;
                End::Broken
            }
            // The client has gone, so there is nobody to tell.
            Err(_gone) => End::Broken,
        }
    }

    async fn pass_answers(
        &self,
        from: &mut ChannelReadHalf,
        to: &ChannelWriteHalf<server::Msg>,
    ) -> Result<End, russh::Error> {
        // A client that has read the end of the output closes the channel, and a status that comes after that reaches nobody. So the
        // end waits for the status, for as long as a process may take that has closed its output and is about to exit.
        let (mut exited, mut ended) = (false, false);
        loop {
            let held = ended && !self.client_ended.load(Ordering::Relaxed);
            let message = match timeout(if held { EXIT } else { Duration::MAX }, from.wait()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(End::Broken),
                Err(_late) => {
                    to.eof().await?;
                    ended = false;
                    continue;
                }
            };
            match message {
                ChannelMsg::Data { data } => {
                    if let Some(tape) = self.tape().as_mut() {
                        tape.shown(&data);
                    }
                    self.passage.visit.pay(data.len()).await;
                    to.data_bytes(data).await?;
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    self.passage.visit.pay(data.len()).await;
                    to.extended_data_bytes(ext, data).await?;
                }
                ChannelMsg::Eof if exited => to.eof().await?,
                ChannelMsg::Eof => ended = true,
                ChannelMsg::ExitStatus { exit_status } => {
                    to.exit_status(exit_status).await?;
                    exited = true;
                }
                ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, lang_tag } => {
                    let sent = self
                        .passage
                        .visit
                        .client
                        .exit_signal_request(to.id(), signal_name, core_dumped, error_message, lang_tag)
                        .await;
                    sent.map_err(|()| russh::Error::SendError)?;
                    exited = true;
                }
                ChannelMsg::Failure => {
                    refuse(to, "the machine's sshd refuses this command or subsystem").await;
                    return Ok(End::Clean);
                }
                ChannelMsg::Close => return Ok(End::Clean),
                // Success, window news: the client had its answers, russh keeps the windows.
                _ => (),
            }
            if exited && ended {
                to.eof().await?;
                ended = false;
            }
        }
    }
}

/// Says why on standard error and ends the channel as `ssh` ends when it fails: with 255.
pub async fn refuse(to: &ChannelWriteHalf<server::Msg>, why: &str) {
    let line = format!("mashines: {why}\r\n");
    let said = async {
        to.extended_data_bytes(STDERR, line.into_bytes()).await?;
        to.exit_status(255).await?;
        to.eof().await?;
        to.close().await
    };
    // A client that does not take the line has its connection ended by the keepalive.
    let _gone = timeout(FAREWELL, said).await;
}

/// Joins two channels that carry nothing but bytes, until either side closes. What passes is paid for from `purse`.
pub async fn plain<A, B>(one: Channel<A>, two: Channel<B>, purse: &Purse) -> End
where
    A: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
    B: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
{
    let (mut from_one, to_one) = one.split();
    let (mut from_two, to_two) = two.split();
    let end = tokio::select! {
        end = bytes(&mut from_one, &to_two, purse) => end,
        end = bytes(&mut from_two, &to_one, purse) => end,
    };
    let _gone = (to_one.close().await, to_two.close().await);
    end
}

async fn bytes<S>(from: &mut ChannelReadHalf, to: &ChannelWriteHalf<S>, purse: &Purse) -> End
where
    S: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
{
    while let Some(message) = from.wait().await {
        let passed = match message {
            ChannelMsg::Data { data } => {
                purse.pay(data.len()).await;
                to.data_bytes(data).await
            }
            ChannelMsg::Eof => to.eof().await,
            ChannelMsg::Close => return End::Clean,
            _ => Ok(()),
        };
        if passed.is_err() {
            return End::Broken;
        }
    }
    End::Broken
}
