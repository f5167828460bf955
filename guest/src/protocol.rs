//! What the host can ask the agent.
//!
//! Over vsock port [`PORT`]: one connection, one JSON line of [`Request`], one JSON line of [`Response`], then both close.
//! Lines are capped at [`MAX_LINE`] bytes. The agent trusts whoever reaches the port: only the host can.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The vsock port on which the agent listens.
pub const PORT: u32 = 1024;

/// The longest request or response, in bytes, without the newline.
pub const MAX_LINE: usize = 1 << 20;

/// The most that `exec` returns of stdout and of stderr, in bytes; with base64 both fit one line.
pub const MAX_OUTPUT: usize = 352 * 1024;

/// How long `exec` lets a command run when the request names no time, in milliseconds.
pub const DEFAULT_TIMEOUT_MS: u64 = 60_000;

/// The longest time `exec` lets a command run, in milliseconds.
pub const MAX_TIMEOUT_MS: u64 = 3_600_000;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Is the machine ready, by its configuration's condition? Answers [`Response::Ready`].
    Ready,
    /// Runs a command as root. Answers [`Response::Exec`] when it has ended.
    Exec(Exec),
    /// Shuts the machine down in order. Answers [`Response::Done`] before it does.
    Shutdown,
    /// Who and how old is the machine? Answers [`Response::Status`].
    Status,
    /// Writes all file systems' caches out. Answers [`Response::Done`].
    Sync,
}

/// A command to run: `command` as it is, or `cmd` by `/bin/sh -c`; exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// A shell command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// What it reads from stdin.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub stdin: Bytes,
    /// After this time it is killed, in milliseconds; at most [`MAX_TIMEOUT_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Environment on top of the machine's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// One answer. An agent that cannot do what was asked answers [`Response::Error`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Ready`].
    Ready {
        /// Whether it is.
        ready: bool,
        /// What is missing, or what was seen.
        why: String,
    },
    /// To [`Request::Exec`].
    Exec(ExecResult),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Shutdown`] and [`Request::Sync`].
    Done,
    /// The request was not carried out.
    Error {
        /// What was tried, and what came back.
        error: String,
    },
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// The exit code, or -1 when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it, or 0.
    pub exit_signal: i32,
    /// The first [`MAX_OUTPUT`] bytes of its stdout.
    pub stdout: Bytes,
    /// The first [`MAX_OUTPUT`] bytes of its stderr.
    pub stderr: Bytes,
    /// It wrote more than is here.
    pub truncated: bool,
    /// It was killed since its time was over.
    pub timed_out: bool,
}

/// Who and how old the machine is. A migration changes none of it but the clocks, and those only forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// Time since boot, in milliseconds (`CLOCK_BOOTTIME`).
    pub uptime_ms: u64,
    /// Time since 1970, in nanoseconds (`CLOCK_REALTIME`).
    pub wall_clock_ns: u64,
    /// The hostname.
    pub hostname: String,
}

/// Bytes that travel as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<String> for Bytes {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        STANDARD.encode(bytes.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let cases = [
            (r#"{"op":"ready"}"#, Request::Ready),
            (r#"{"op":"shutdown"}"#, Request::Shutdown),
            (
                r#"{"op":"exec","cmd":"cat","stdin":"aGk=","timeout_ms":5}"#,
                Request::Exec(Exec {
                    cmd: Some("cat".into()),
                    stdin: Bytes(b"hi".to_vec()),
                    timeout_ms: Some(5),
                    ..Exec::default()
                }),
            ),
        ];
        for (text, request) in cases {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
    }

    #[test]
    fn two_full_outputs_fit_one_line() {
        let full = Bytes(vec![0xff; MAX_OUTPUT]);
        let result = ExecResult { stdout: full.clone(), stderr: full, ..ExecResult::default() };
        assert!(serde_json::to_vec(&Response::Exec(result)).unwrap().len() <= MAX_LINE);
    }

    #[test]
    fn bad_base64_is_an_error_and_not_a_panic() {
        assert!(serde_json::from_str::<Request>(r#"{"op":"exec","cmd":"x","stdin":"%%"}"#).is_err());
    }
}
