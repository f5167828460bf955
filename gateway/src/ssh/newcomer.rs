//! Somebody whose keys are in no account: what they are told, and how they make an account when the fleet lets them.
//!
//! ```text
//! client ── a key ──▶ declined; only keyboard-interactive may go on (RFC 4256)
//!        ── keyboard-interactive ──▶ nothing to ask yet: a partial success, which has OpenSSH's client show its next key
//!        ── a key that it showed before: those were all ──▶ declined
//!        ── keyboard-interactive ──▶ "name of your account?"
//!        ◀── partial success: show your keys again
//!        ── a key, with its signature ──▶ control makes the account with that very key
//! ```
//!
//! So an account is only ever made for a key that was proved, and a person needs no second connection. The way about
//! keyboard-interactive is there because OpenSSH's client never comes back to keys once it has shown the last one; it answers
//! keyboard-interactive three times, so this serves clients with one or two keys. One with more is declined in the usual way, so that
//! it comes to the key that is known, and is told to show a single one.

use std::borrow::Cow;
use std::time::Duration;

use mashines_fleet::record::SignUp;
use russh::keys::{HashAlg, PublicKey};
use russh::{MethodKind, MethodSet};
use tokio::time::timeout;
use tracing::info;

use super::Gateway;
use crate::arrival::Arrival;
use crate::control::NewAccount;
use crate::directory::Proof;

/// Until this gateway has heard of the new account.
const HEARD: Duration = Duration::from_secs(5);

/// Keys that are declined by way of keyboard-interactive: OpenSSH's client answers that three times, and the last is the question.
const BOUNCES: usize = 2;

/// What is remembered of a stranger.
#[derive(Debug, Default)]
pub struct Newcomer {
    /// Fingerprints of the keys that were shown and are unknown.
    unknown: Vec<String>,
    /// A key was shown for the second time.
    all_shown: bool,
    /// The client was asked nothing, to have it show its next key.
    bounced: bool,
    /// Why a certificate, or a sign-up, was not taken.
    why: Option<String>,
    wish: Option<Wish>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    name: String,
    invite: Option<String>,
}

/// Texts to ask for, and whether what is typed is shown.
type Prompts = Vec<(Cow<'static, str>, bool)>;

impl Newcomer {
    /// A key that no account lists; how the client may go on.
    pub fn showed(&mut self, key: &PublicKey, sign_up: SignUp) -> MethodSet {
        let print = key.fingerprint(HashAlg::Sha256).to_string();
        if self.unknown.contains(&print) {
            self.all_shown = true;
        } else if self.unknown.len() < 8 {
            self.unknown.push(print);
        }
        if sign_up == SignUp::Closed || self.unknown.len() > BOUNCES {
            return super::methods();
        }
        MethodSet::from([MethodKind::KeyboardInteractive].as_slice())
    }

    /// Something proved that leads nowhere, and why.
    pub fn refused(&mut self, proof: &Proof, why: String) {
        info!(%proof, %why, "ssh: refused");
        self.why = Some(why);
    }

    /// The keys are wanted, to be put into a new account.
    pub fn may_show_any_key(&self) -> bool {
        self.wish.is_some()
    }

    /// What a person is told, and asked, who got nowhere with their keys.
    pub fn greeting(&mut self, domain: &str, sign_up: SignUp) -> (String, Prompts) {
        let few = !self.unknown.is_empty() && self.unknown.len() <= BOUNCES;
        self.bounced = few && !self.all_shown && sign_up != SignUp::Closed;
        if self.bounced {
            return (String::new(), Vec::new());
        }
        let keys = match self.unknown.as_slice() {
            [] => "You showed no public key.".to_owned(),
            [key] => format!("The key you showed is in no account: {key}."),
            keys => format!("None of the keys you showed is in an account: {}.", keys.join(", ")),
        };
        let why = self.why.as_ref().map(|why| format!("\n{}.", capital(why))).unwrap_or_default();
        let told = format!("{domain} lets people in by public key only. {keys}{why}\n");
        let asked = |asked: &[&'static str]| asked.iter().map(|text| (Cow::Borrowed(*text), true)).collect();
        match sign_up {
            _ if self.unknown.is_empty() => (format!("{told}{}", make_one()), Vec::new()),
            SignUp::Closed => (format!("{told}{}", make_one()), Vec::new()),
            SignUp::Open | SignUp::Invite if !few => {
                let one = "To make an account, show one key: ssh -o IdentitiesOnly=yes -i KEYFILE";
                (format!("{told}{one} {domain}\n"), Vec::new())
            }
            SignUp::Open => (
                format!("{told}You can make an account with it here and now; or press Enter to leave.\n"),
                asked(&["Name of your account: "]),
            ),
            SignUp::Invite => (
                format!(
                    "{told}With an invite you can make an account with it now; or press Enter to leave.\n"
                ),
                asked(&["Name of your account: ", "Invite: "]),
            ),
        }
    }

    /// Takes what was answered; whether there is something to go on with.
    pub fn answered(&mut self, answers: Vec<String>) -> bool {
        if std::mem::take(&mut self.bounced) {
            return true;
        }
        let mut answers = answers.into_iter().filter(|answer| !answer.is_empty());
        self.why = None;
        self.wish = answers.next().map(|name| Wish { name, invite: answers.next() });
        self.wish.is_some()
    }

    /// Makes the account that was wished for, with a key that was proved; whether there is one now.
    pub async fn sign_up(&mut self, gateway: &Gateway, key: &PublicKey, arrival: Arrival) -> bool {
        let Some(wish) = self.wish.take() else { return false };
        match make(gateway, &wish, key, arrival).await {
            Ok(()) => true,
            Err(why) => {
                self.why = Some(why);
                false
            }
        }
    }
}

async fn make(gateway: &Gateway, wish: &Wish, key: &PublicKey, arrival: Arrival) -> Result<(), String> {
    let public_key = key.to_openssh().map_err(|error| format!("the key cannot be written down: {error}"))?;
    let new = NewAccount {
        public_key: &public_key,
        name: &wish.name,
        invite: wish.invite.as_deref(),
        source: arrival.peer.ip().to_canonical(),
    };
    gateway.control.sign_up(&new).await.map_err(|error| error.to_string())?;
    info!(target: "audit", peer = %arrival.peer, account = wish.name, key = %key.fingerprint(HashAlg::Sha256), "signed up");
    let mut directory = gateway.directory.clone();
    let known = async {
        let known = |directory: &std::sync::Arc<crate::directory::Directory>| directory.is_known(key);
        let _over = directory.wait_for(known).await;
    };
    timeout(HEARD, known).await.map_err(|_late| {
        "your account is made; this gateway has not heard of it yet: connect again".to_owned()
    })
}

fn make_one() -> &'static str {
    "Make one with `ssh-keygen -t ed25519`, and have its .pub added to your account.\n"
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR";

    #[test]
    fn a_stranger_is_asked_only_where_that_leads_somewhere() {
        let mut newcomer = Newcomer::default();
        let asked = |newcomer: &mut Newcomer, policy| newcomer.greeting("mashine.dev", policy).1.len();
        assert_eq!(asked(&mut newcomer, SignUp::Open), 0, "without a key there is nothing to sign up with");
        let key = PublicKey::from_openssh(KEY).unwrap();
        assert!(!newcomer.showed(&key, SignUp::Open).contains(&MethodKind::PublicKey));
        assert_eq!(asked(&mut newcomer, SignUp::Open), 0, "there may be another key");
        assert!(newcomer.answered(Vec::new()), "so it goes on");
        newcomer.showed(&key, SignUp::Open);
        let all = [SignUp::Closed, SignUp::Open, SignUp::Invite];
        assert_eq!(all.map(|policy| asked(&mut newcomer, policy)), [0, 1, 2]);
        let (told, _) = newcomer.greeting("mashine.dev", SignUp::Closed);
        assert!(
            told.contains("The key you showed is in no account: SHA256:") && told.contains("ssh-keygen"),
            "{told}"
        );
    }

    #[test]
    fn an_empty_answer_ends_it_and_a_name_goes_on() {
        let mut newcomer = Newcomer::default();
        for nothing in [vec![], vec![String::new()], vec![String::new(), String::new()]] {
            assert!(!newcomer.answered(nothing) && !newcomer.may_show_any_key());
        }
        assert!(newcomer.answered(vec!["dora".into(), "inv_1".into()]) && newcomer.may_show_any_key());
        assert_eq!(newcomer.wish, Some(Wish { name: "dora".into(), invite: Some("inv_1".into()) }));
    }
}
