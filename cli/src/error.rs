//! What a command says when it fails: what was tried and what came back, and the next command to type.

use serde::Serialize;

/// Exit codes. They are part of the interface: scripts branch on them, `mashines --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Ok,
    /// 1: the fleet refused, or the work failed.
    Failed,
    /// 2: the command line is wrong.
    Usage,
    /// 3: no such machine, volume, host, migration.
    NotFound,
    /// 4: not logged in, or not allowed.
    Denied,
    /// 5: `--timeout` passed; the work goes on.
    TimedOut,
    /// 6: the API cannot be reached, or is not the one that was trusted at login.
    Unreachable,
    /// 255: `exec`, `enter`, `cp`: the remote side could not be reached, as ssh says it.
    Transport,
    /// 141: whoever read the answer went away, as in `mashines ls | head -1`; what a shell shows for SIGPIPE.
    NobodyReads,
    /// The remote command's own exit code.
    Remote(u8),
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::TimedOut => 5,
            Self::Unreachable => 6,
            Self::Transport => 255,
            Self::NobodyReads => 141,
            Self::Remote(code) => code,
        }
    }

    /// The word for programs, in the JSON of an error.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed | Self::Remote(_) => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::TimedOut => "timed-out",
            Self::Unreachable => "unreachable",
            Self::Transport => "transport",
            Self::NobodyReads => "nobody-reads",
        }
    }
}

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// How the process ends.
    pub exit: Exit,
    /// What was tried, on what, and what came back.
    pub message: String,
    /// What to do now: most often a command to type.
    pub next: Option<String>,
}

/// The JSON of a failed command.
#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

impl CliError {
    /// An error that ends with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), next: None }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The work failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Adds what to do now.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// As people read it.
    pub fn human(&self) -> String {
        match &self.next {
            Some(next) => format!("error: {}\n  next: {next}\n", self.message),
            None => format!("error: {}\n", self.message),
        }
    }

    /// As programs read it.
    pub fn json(&self) -> String {
        let document =
            ErrorDocument { error: &self.message, code: self.exit.word(), next: self.next.as_deref() };
        serde_json::to_string_pretty(&document).unwrap_or_else(|_| "{\"error\":\"unprintable\"}".to_owned())
    }
}

impl From<std::io::Error> for CliError {
    /// Standard output or error went away, or their disk is full.
    fn from(error: std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::BrokenPipe => Exit::NobodyReads,
            _ => Exit::Failed,
        };
        Self::new(exit, format!("cannot write the answer: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_and_what_next_in_both_forms() {
        let error = CliError::new(Exit::NotFound, "no machine `wbe`").next("mashines show web");
        assert_eq!(error.human(), "error: no machine `wbe`\n  next: mashines show web\n");
        let json: serde_json::Value = serde_json::from_str(&error.json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": "no machine `wbe`", "code": "not-found", "next": "mashines show web"})
        );
        assert_eq!(error.exit.code(), 3);
    }
}
