//! Where a command runs: whose output it writes to, how it reaches the API, what it may do there.

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::client::Client;
use crate::error::CliError;

/// Where answers or progress go.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Where a confirmation is read from.
pub type Input = Box<dyn AsyncBufRead + Send + Unpin>;

/// Columns, where there is no terminal to ask.
const WIDTH: usize = 100;

/// Lines, where there is no terminal to ask.
const HEIGHT: usize = 24;

/// On whose machine the command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the person's: files may be read, ssh may be started.
    Local,
    /// In the SSH lobby of a gateway: neither.
    Lobby {
        /// The name people reach this gateway by: `mashine.dev`. Shown in commands to type instead.
        gateway: String,
    },
}

/// One run of a command, or of several in a row.
pub struct Session {
    /// The API, when the caller brings it (the lobby: the entry's certificate and the person's account). A local session has none:
    /// it reads the settings that `mashines login` wrote.
    pub client: Option<Client>,
    /// Answers to questions (`rm`). None: nobody can be asked, `--yes` is needed.
    pub stdin: Option<Input>,
    /// The answer.
    pub stdout: Output,
    /// Progress and errors.
    pub stderr: Output,
    /// A person looks at `stderr`: progress is drawn in place.
    pub terminal: bool,
    /// Columns of that terminal.
    pub width: usize,
    /// Lines of that terminal.
    pub height: usize,
    /// Where it runs.
    pub place: Place,
}

impl Session {
    /// The process's own standard streams and settings.
    pub fn local() -> Self {
        use std::io::IsTerminal as _;
        let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Self {
            client: None,
            stdin: asks.then(|| Box::new(BufReader::new(tokio::io::stdin())) as Input),
            stdout: Box::new(tokio::io::stdout()),
            stderr: Box::new(tokio::io::stderr()),
            terminal: std::io::stderr().is_terminal(),
            width: terminal_width().unwrap_or(WIDTH),
            height: HEIGHT,
            place: Place::Local,
        }
    }

    /// A person in the SSH lobby, already known by key; `client` speaks for their account. Set `stdin`, `terminal`,
    /// `width` and `height` when they have a terminal; the caller's writers then turn `\n` into `\r\n`.
    pub fn lobby(client: Client, gateway: impl Into<String>, stdout: Output, stderr: Output) -> Self {
        Self {
            client: Some(client),
            stdin: None,
            stdout,
            stderr,
            terminal: false,
            width: WIDTH,
            height: HEIGHT,
            place: Place::Lobby { gateway: gateway.into() },
        }
    }

    /// Writes a part of the answer.
    pub async fn out(&mut self, text: &str) -> Result<(), CliError> {
        self.stdout.write_all(text.as_bytes()).await?;
        Ok(self.stdout.flush().await?)
    }

    /// Writes for people beside the answer.
    pub async fn err(&mut self, text: &str) -> Result<(), CliError> {
        self.stderr.write_all(text.as_bytes()).await?;
        Ok(self.stderr.flush().await?)
    }

    /// Asks a yes-or-no question; no without anyone to ask.
    pub async fn confirm(&mut self, question: &str) -> Result<bool, CliError> {
        if self.stdin.is_none() {
            return Ok(false);
        }
        self.err(&format!("{question} [y/N] ")).await?;
        let mut line = String::new();
        if let Some(stdin) = &mut self.stdin {
            stdin.read_line(&mut line).await?;
        }
        Ok(matches!(line.trim(), "y" | "Y" | "yes"))
    }
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}
