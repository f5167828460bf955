//! Why there is no certificate: whose fault it is, what a person can do, when it may be tried again.

use instant_acme::{Error, Problem};
use mashines_fleet::entry_api::Limited;
use mashines_fleet::id::DomainName;
use mashines_fleet::record::UnixMs;

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The issuer does not answer, or not in time, or not as ACME does.
    #[error("the issuer cannot be reached: {0}")]
    Unreachable(String),
    /// The issuer says that it is too much.
    #[error("the issuer limits us: {what}")]
    Limited {
        /// Its words.
        what: String,
        /// When it may be asked again.
        until: UnixMs,
        /// About anything; about this certificate alone when not.
        all: bool,
    },
    /// The issuer looked, and did not see what it wanted.
    #[error("the issuer could not validate {}: {what}", list(names))]
    Invalid {
        /// Which names.
        names: Vec<DomainName>,
        /// Its words.
        what: String,
    },
    /// The issuer will not issue.
    #[error("the issuer refuses: {what}")]
    Refused {
        /// Its words.
        what: String,
        /// The kind of RFC 8555 §6.7, the last part.
        kind: String,
    },
    /// Our own servers do not show the challenge, so the issuer was not asked to look.
    #[error("the fleet does not show the challenge: {0}")]
    NotShown(String),
    /// The machine that holds the key cannot do its part.
    #[error("{0}")]
    Machine(String),
    /// Ours: control, the key, the clock.
    #[error("{0}")]
    Ours(String),
}

/// Each once: a wildcard and its base are proved by the same name, and both count at the issuer.
fn list(names: &[DomainName]) -> String {
    let mut names: Vec<&str> = names.iter().map(DomainName::as_str).collect();
    names.dedup();
    names.join(", ")
}

/// What comes before the kind of a problem.
const KIND: &str = "urn:ietf:params:acme:error:";

/// The kind of a problem document, without what comes before it.
pub fn kind_of(problem: &Problem) -> &str {
    problem.r#type.as_deref().and_then(|kind| kind.strip_prefix(KIND)).unwrap_or_default()
}

/// A nonce that the issuer did not take: the same call is made again with the next.
pub fn is_bad_nonce(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind_of(problem) == "badNonce")
}

/// The issuer knows no account of ours (any more).
pub fn is_unknown_account(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind_of(problem) == "accountDoesNotExist")
}

/// Its words, without what could steer a terminal.
fn words(problem: &Problem) -> String {
    let mut text = problem.detail.clone().unwrap_or_else(|| "no reason given".to_owned());
    for sub in &problem.subproblems {
        text.push_str(&format!("; {sub}"));
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

/// An hour, for an issuer that does not say how long.
const LIMITED_MS: u64 = 3_600_000;

impl Fault {
    /// From an error of the client. `paused_until`: what the issuer's last `Retry-After` said.
    pub fn of(error: &Error, now: UnixMs, paused_until: Option<UnixMs>) -> Self {
        let Error::Api(problem) = error else {
            if let Some(until) = paused_until {
                return Self::Limited { what: chain(error), until, all: true };
            }
            return match error {
                Error::Crypto | Error::KeyRejected => Self::Ours(format!("our key at the issuer: {error}")),
                other => Self::Unreachable(chain(other)),
            };
        };
        let (kind, what) = (kind_of(problem), words(problem));
        let throttled = matches!(problem.status, Some(429 | 503)) || kind == "rateLimited";
        if throttled {
            let until = paused_until.unwrap_or(now.saturating_add(LIMITED_MS));
            // `rateLimited` is most often of one name or set of names; a server that is busy is so for all.
            return Self::Limited { what, until, all: kind != "rateLimited" };
        }
        if problem.status.is_some_and(|status| status >= 500) || kind == "serverInternal" {
            return Self::Unreachable(what);
        }
        Self::Refused { what, kind: kind.to_owned() }
    }

    /// What a person can do.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::Unreachable(_) => {
                "nothing: it is tried again, and then at the next issuer; administrators look at the entry's way out"
            }
            Self::Limited { .. } => "nothing: it is tried again when the issuer allows it",
            Self::Invalid { .. } => {
                "look whether the name leads here from everywhere (A and AAAA), and whether its CAA records allow the issuer; then `mashines certs check NAME`"
            }
            Self::Refused { kind, .. } if kind == "caa" => {
                "the domain's CAA records forbid this issuer: allow it there, or remove them"
            }
            Self::Refused { kind, .. } if kind == "rejectedIdentifier" => {
                "the issuer gives no certificates for this name: bring one with `mashines certs import`"
            }
            Self::Refused { kind, .. }
                if kind == "externalAccountRequired" || kind == "userActionRequired" =>
            {
                "administrators: set `eab` for this issuer in [acme], or agree to its terms anew"
            }
            Self::Refused { .. } => "administrators look at the issuer's words",
            Self::NotShown(_) => {
                "administrators: look whether all name servers and entries run and hear control; it is tried again"
            }
            Self::Machine(_) => "start the machine, with a current image; then `mashines certs check NAME`",
            Self::Ours(_) => "administrators look into the entry's log",
        };
        text.to_owned()
    }

    /// What the issuer wants to hear less of.
    pub fn limited(&self) -> Option<Limited> {
        match self {
            Self::Limited { until, all, .. } => Some(Limited { until: *until, all: *all }),
            Self::Unreachable(_)
            | Self::Invalid { .. }
            | Self::Refused { .. }
            | Self::NotShown(_)
            | Self::Machine(_)
            | Self::Ours(_) => None,
        }
    }

    /// Names whose validation failed.
    pub fn invalid(&self) -> Vec<DomainName> {
        match self {
            Self::Invalid { names, .. } => names.clone(),
            Self::Unreachable(_)
            | Self::Limited { .. }
            | Self::Refused { .. }
            | Self::NotShown(_)
            | Self::Machine(_)
            | Self::Ours(_) => Vec::new(),
        }
    }
}

/// An error with what caused it.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}
