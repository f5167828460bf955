//! What is asked of a machine about what `git push` deployed there, and what it answers.
//!
//! `control`'s `exec` carries it: the program is [`AGENT`], the answer one JSON document on its stdout. An exec has a limit of
//! time and output, so that whatever may take long is begun, and then followed:
//!
//! ```text
//! deploy releases --json            ▶ Releases
//! deploy config --json              ▶ Variables
//! deploy begin    (stdin: Order)    ▶ Begun      the work goes on by itself …
//! deploy follow OPERATION OFFSET    ▶ Progress   … while it is followed: after LEASE of silence it is cancelled
//! deploy cancel OPERATION           ▶ Progress
//! ```
//!
//! A program that fails says why on its stderr and ends with 1.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The agent's program in a machine.
pub const AGENT: &str = "/run/mashines/agent";

/// An operation that nobody has followed for this long is cancelled: whoever began it has gone.
pub const LEASE: Duration = Duration::from_secs(30);

/// The most text of one [`Progress`], in bytes; as JSON it fits what `exec` returns.
pub const MAX_TEXT: usize = 64 * 1024;

/// Where a release stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Being built or started.
    Building,
    /// It serves.
    Live,
    /// It served before the live one: what `rollback` goes to.
    Former,
    /// It served once and can serve again.
    Kept,
    /// Its build, its start or its health check failed.
    Failed,
    /// It was ended before it was done: by its client, or by a newer push.
    Cancelled,
}

/// One release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Its number: v1, v2, … of this machine.
    pub version: u64,
    /// The commit that was built, in full.
    pub commit: String,
    /// The first line of that commit's message.
    pub subject: String,
    /// Who pushed, or asked, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How it is built and run: `dockerfile`, `procfile` and so on; empty when it was not found out.
    pub kind: String,
    /// Where it stands.
    pub state: Standing,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What it came from, where not from a push: `config`, `redeploy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The push options, without the values of variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// All releases, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releases {
    /// The releases.
    pub releases: Vec<ReleaseView>,
    /// The port on which the machine serves the live one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// The variables that the next release gets, beside the machine's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variables {
    /// Names and values.
    pub env: BTreeMap<String, String>,
}

/// What is to be begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Serve a kept release again, without a build.
    Rollback {
        /// Which; the former one when absent.
        #[serde(default)]
        to: Option<u64>,
    },
    /// Build the deploy branch's commit anew.
    Redeploy,
    /// Change variables, and serve the live build with them.
    Config {
        /// Variables to set.
        #[serde(default)]
        set: BTreeMap<String, String>,
        /// Variables to take away.
        #[serde(default)]
        unset: Vec<String>,
    },
}

/// Who asks, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    #[serde(flatten)]
    pub ask: Ask,
    /// Who, for the release's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// An operation has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its name, for `follow` and `cancel`.
    pub operation: String,
}

/// What an operation has said since the offset that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// At most [`MAX_TEXT`] bytes.
    pub text: String,
    /// Where the next text begins.
    pub offset: u64,
    /// How it ended; absent while it goes on, or while there is text left to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How an operation ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The release that serves now, if the operation made one serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether `name` can be an environment variable of a release; `Err` says why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(format!("{name:?} cannot be a variable's name: letters, digits and _, no digit first"));
    }
    if name == "PORT" {
        return Err("PORT is given to each release by the machine and cannot be set; \
                    for a program with a port of its own write app_port = N in mashine.toml"
            .to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_reads_as_documented() {
        let cases = [
            (r#"{"ask":"rollback"}"#, Ask::Rollback { to: None }),
            (r#"{"ask":"rollback","to":3}"#, Ask::Rollback { to: Some(3) }),
            (r#"{"ask":"redeploy"}"#, Ask::Redeploy),
            (
                r#"{"ask":"config","unset":["A"]}"#,
                Ask::Config { set: BTreeMap::new(), unset: vec!["A".into()] },
            ),
        ];
        for (text, ask) in cases {
            assert_eq!(serde_json::from_str::<Order>(text).unwrap(), Order { ask, by: None });
        }
        let order: Order = serde_json::from_str(r#"{"ask":"redeploy","by":"alice"}"#).unwrap();
        assert_eq!(order, Order { ask: Ask::Redeploy, by: Some("alice".into()) });
    }

    #[test]
    fn a_variable_has_a_shells_name_and_port_is_taken() {
        for good in ["A", "_x", "LOG_LEVEL2"] {
            check_name(good).unwrap();
        }
        for bad in ["", "2A", "A-B", "A B", "PORT", "Ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
