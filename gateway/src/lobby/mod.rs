//! The lobby: `ssh lobby@mashine.dev ls`, for people who name no machine. It runs the CLI's own command tree.
//!
//! | asked for | what happens |
//! | --- | --- |
//! | a command | it runs once; its exit code is the session's |
//! | a shell with a terminal | a prompt with history and completion ([`prompt`]) |
//! | a shell without one | each line of standard input is a command, as in a script |
//! | sftp | refused: files are in machines |

mod api;
mod prompt;
mod terminal;

use std::sync::Arc;
use std::time::Duration;

use mashines_cli::{Client, Session, words};
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::control::{Caller, Control};
use crate::directory::Directory;
use crate::ssh::bridge::{self, STDERR};
use crate::ssh::session::{Begun, Request};
use api::OnBehalf;

/// Exit code of a command that the person interrupted: that of a shell, 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// How long a client may take to take the end of a session.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the lobby needs.
#[derive(Clone)]
pub struct Lobby {
    control: Control,
    directory: watch::Receiver<Arc<Directory>>,
}

/// A terminal, as the client describes it.
#[derive(Debug, Clone, Copy)]
struct Size {
    columns: usize,
    rows: usize,
}

impl Lobby {
    /// A lobby whose commands go to `control`.
    pub fn new(control: Control, directory: watch::Receiver<Arc<Directory>>) -> Self {
        Self { control, directory }
    }

    /// The name people reach this gateway by: the apex, whose addresses are the entries'.
    fn gateway(&self) -> String {
        self.directory.borrow().domain().to_owned()
    }

    /// A run of the command tree for `caller`, with its output in the channel.
    fn session(&self, caller: &Caller, to: &ChannelWriteHalf<Msg>, size: Option<Size>) -> Session {
        let client = Client::new(OnBehalf::new(self.control.clone(), caller.clone()));
        let (stdout, stderr) = (Box::pin(to.make_writer()), Box::pin(to.make_writer_ext(Some(STDERR))));
        let mut session = match size {
            // A terminal in raw mode wants both ends of a line.
            Some(_) => {
                let (stdout, stderr) = (terminal::CrLf::new(stdout), terminal::CrLf::new(stderr));
                Session::lobby(client, self.gateway(), Box::new(stdout), Box::new(stderr))
            }
            None => Session::lobby(client, self.gateway(), Box::new(stdout), Box::new(stderr)),
        };
        if let Some(size) = size {
            session.terminal = true;
            session.width = size.columns;
            session.height = size.rows;
        }
        session
    }
}

/// Serves one session channel of a person, which has begun.
pub async fn serve(lobby: Lobby, caller: Caller, channel: Channel<Msg>, begun: Begun) {
    let (mut from, to) = channel.split();
    let size = begun.terminal.map(|terminal| sized(terminal.size));
    let code = match begun.request {
        Request::Exec(line) => once(&lobby, &caller, &line, &mut from, &to, size).await,
        Request::Shell => match size {
            Some(size) => prompt::run(&lobby, &caller, &mut from, &to, size).await,
            None => script(&lobby, &caller, &mut from, &to).await,
        },
        Request::Subsystem(name) => {
            let why = format!(
                "the lobby has no {name}: log in as one of your machines, as in sftp web@{}",
                lobby.gateway()
            );
            return bridge::refuse(&to, &why).await;
        }
    };
    let end = async {
        to.exit_status(u32::from(code)).await?;
        to.eof().await?;
        to.close().await
    };
    let _gone = timeout(FAREWELL, end).await;
}

fn sized((columns, rows): (u32, u32)) -> Size {
    // Clients without a window say 0.
    let or = |said: u32, usual: usize, least: usize| match usize::try_from(said).unwrap_or(0) {
        0 => usual,
        said => said.clamp(least, 500),
    };
    Size { columns: or(columns, 80, 20), rows: or(rows, 24, 4) }
}

/// One command; ends early when the client goes away.
async fn once(
    lobby: &Lobby,
    caller: &Caller,
    line: &str,
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    size: Option<Size>,
) -> u8 {
    let mut session = lobby.session(caller, to, size);
    match size {
        Some(_) => {
            let mut editor = prompt::Editor::default();
            let typed = prompt::typed_into(&mut session);
            prompt::attend(run_line(caller, line, &mut session), from, to, &mut editor, Some(typed)).await
        }
        None => {
            tokio::select! {
                code = run_line(caller, line, &mut session) => code,
                () = gone(from) => INTERRUPTED,
            }
        }
    }
}

/// Each line a command, until the input ends; the last one's exit code.
async fn script(
    lobby: &Lobby,
    caller: &Caller,
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
) -> u8 {
    let mut session = lobby.session(caller, to, None);
    let mut lines = terminal::Lines::default();
    let mut code = 0;
    let mut open = true;
    while open {
        match from.wait().await {
            Some(ChannelMsg::Data { data }) => lines.push(&data),
            Some(ChannelMsg::Eof | ChannelMsg::Close) | None => {
                lines.end();
                open = false;
            }
            Some(_) => (),
        }
        while let Some(line) = lines.next() {
            code = run_line(caller, &line, &mut session).await;
        }
    }
    code
}

/// Runs one line of words.
async fn run_line(caller: &Caller, line: &str, session: &mut Session) -> u8 {
    let words = match words::split(line) {
        Ok(words) => words,
        Err(error) => {
            let _gone = session.err(&error.human()).await;
            return error.exit.code();
        }
    };
    // People type the command's name out of habit, and `ssh gw mashines ls` is what they would write in a script.
    let arguments = match words.first().map(String::as_str) {
        Some("mashines") => words.get(1..).unwrap_or_default(),
        _ => words.as_slice(),
    };
    if arguments.is_empty() {
        return 0;
    }
    info!(account = %caller.account, command = arguments.first(), "lobby");
    mashines_cli::run(arguments, session).await
}

/// Returns when the client has closed its channel.
async fn gone(from: &mut ChannelReadHalf) {
    while !matches!(from.wait().await, Some(ChannelMsg::Close) | None) {}
}
