//! Sign-up: a key that nobody knows becomes an account, as the fleet's policy says. One at a time, so that a key makes one account.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use mashines_fleet::api::{DEFAULT_APP, SignUpRequest, SignedUp};
use mashines_fleet::id::{AccountId, BadId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Account, SignUp, UnixMs};
use mashines_fleet::view::View;

use crate::addresses::{random_slug, random_ula};
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::invites;
use crate::records::{Private, retrying};
use crate::ssh_ca::normal_key;
use crate::time::now;

/// New accounts from one source (an IPv4 address, an IPv6 /64) within an hour.
const OF_A_SOURCE: usize = 5;
/// New accounts within a minute.
const IN_ALL: usize = 30;
const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;
/// The longest id of an account that people choose.
const LONGEST_NAME: usize = 32;
/// Ids that would be mistaken for something of the platform.
const RESERVED: [&str; 16] = [
    "admin", "api", "control", "default", "drain", "gateway", "git", "guest", "signup", "host", "lobby",
    "mashines", "personal", "root", "system", "user",
];

/// The accounts that were made lately.
#[derive(Debug, Default)]
pub struct Lately(VecDeque<(UnixMs, IpAddr)>);

impl Lately {
    /// Refuses more than the limits.
    fn check(&mut self, source: IpAddr, now: UnixMs) -> Result<()> {
        self.0.retain(|(at, _)| now.saturating_sub(*at) < HOUR_MS);
        let slow = |what: &str| {
            Failure::new(Kind::TooMany, format!("{what}: try again later, or ask for an invite"))
        };
        if self.0.iter().filter(|(_, from)| *from == network(source)).count() >= OF_A_SOURCE {
            return Err(slow(&format!(
                "{OF_A_SOURCE} accounts were made from {source} within an hour, which is the most"
            )));
        }
        if self.0.iter().filter(|(at, _)| now.saturating_sub(*at) < MINUTE_MS).count() >= IN_ALL {
            return Err(slow(&format!("{IN_ALL} accounts were made within a minute, which is the most")));
        }
        Ok(())
    }

    fn note(&mut self, source: IpAddr, now: UnixMs) {
        self.0.push_back((now, network(source)));
    }
}

/// Who has one IPv6 address has its /64.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Makes an account for a key that nobody knows.
///
/// # Errors
/// [`Kind::Forbidden`] by policy; too many; the key or the name is taken; the invite is no good.
pub async fn sign_up(control: &Control, body: &SignUpRequest) -> Result<SignedUp> {
    let key = normal_key(&body.public_key)?;
    // Held to the commit: of two requests with one key the second finds the first one's account.
    let mut lately = control.newcomers.lock().await;
    let view = control.view();
    if let Some(known) = view.accounts.values().find(|account| account.ssh_keys.contains(&key)) {
        return Err(Failure::conflict(format!("this key is of account {} already", known.id)));
    }
    let policy = view.config.as_ref().map(|config| config.sign_up).unwrap_or_default();
    let by_source = admit(policy, body)?;
    if let Some(source) = by_source {
        lately.check(source, now())?;
    }
    let made = retrying(|| make(control, &view, &key, body)).await?;
    if let Some(source) = by_source {
        lately.note(source, now());
    }
    tracing::info!(target: "audit", account = %made.account, %key, given = ?made.given, "a newcomer signed up");
    Ok(made)
}

/// What the policy says: refused, or let in; then the source whose count it goes to, unless an invite vouches.
fn admit(policy: SignUp, body: &SignUpRequest) -> Result<Option<IpAddr>> {
    let no = |why: &str| Err(Failure::new(Kind::Forbidden, why));
    match (policy, &body.invite) {
        (SignUp::Closed, _) => no(
            "this fleet takes no newcomers, and your key is in none of its accounts: ask somebody who has an account to add it with `mashines keys add`",
        ),
        (SignUp::Invite, None) => no(
            "this fleet takes newcomers by invite, and your key is in none of its accounts: ask somebody who has an account for `mashines invite`",
        ),
        (SignUp::Invite | SignUp::Open, Some(_)) => Ok(None),
        (SignUp::Open, None) => match body.source {
            Some(source) => Ok(Some(source)),
            None => Err(Failure::invalid("source is missing: the address that the newcomer came from")),
        },
    }
}

async fn make(control: &Control, view: &View, key: &str, body: &SignUpRequest) -> Result<SignedUp> {
    let mut edit = control.records.edit();
    let id = match &body.name {
        Some(name) => chosen(name)?,
        None => random_slug().parse().map_err(|error: BadId| Failure::internal(error.to_string()))?,
    };
    let taken: Option<Account> = edit.get(&Key::Account(id.clone())).await?;
    if taken.is_some() {
        return Err(Failure::conflict(format!(
            "the name {id} is taken: choose another, or none to get a free one"
        )));
    }
    let app = DEFAULT_APP.parse().map_err(|error: BadId| Failure::internal(error.to_string()))?;
    edit.put(&Account {
        id: id.clone(),
        ssh_keys: vec![key.to_owned()],
        private_prefix: random_ula(),
        admin: false,
        members: BTreeMap::new(),
        ssh_cas: Vec::new(),
    })?;
    edit.claim(Private::App(&id, &app), &now())?;
    let given = match &body.invite {
        Some(code) => Some(invites::redeem(&mut edit, view, code, (&id, true)).await?),
        None => None,
    };
    edit.commit().await?;
    Ok(SignedUp { account: id, given })
}

fn chosen(name: &str) -> Result<AccountId> {
    let id: AccountId = name.parse().map_err(|error: BadId| Failure::invalid(error.to_string()))?;
    if !(2..=LONGEST_NAME).contains(&name.len()) {
        return Err(Failure::invalid(format!("the name {id}: it has 2 to {LONGEST_NAME} characters")));
    }
    if RESERVED.contains(&name) {
        return Err(Failure::conflict(format!("the name {id} is the platform's own: choose another")));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use mashines_fleet::api::Code;

    use super::*;

    fn request(invite: Option<&str>, source: Option<&str>) -> SignUpRequest {
        SignUpRequest {
            public_key: String::new(),
            name: None,
            invite: invite.map(|code| Code(code.to_owned())),
            source: source.map(|source| source.parse().unwrap()),
        }
    }

    #[test]
    fn each_policy_says_who_is_let_in_and_who_may_help() {
        let says =
            |policy, invite, source| admit(policy, &request(invite, source)).map_err(|error| error.message);
        assert!(says(SignUp::Closed, Some("x"), None).unwrap_err().contains("keys add"));
        assert!(says(SignUp::Invite, None, Some("::1")).unwrap_err().contains("by invite"));
        assert_eq!(says(SignUp::Invite, Some("x"), None), Ok(None));
        assert_eq!(says(SignUp::Open, Some("x"), None), Ok(None));
        assert!(says(SignUp::Open, None, None).unwrap_err().contains("source"));
        assert!(says(SignUp::Open, None, Some("192.0.2.1")).unwrap().is_some());
    }

    #[test]
    fn a_source_makes_five_an_hour_and_all_thirty_a_minute() {
        let mut lately = Lately::default();
        let v6 = |n: u32| format!("2001:db8::{n:x}").parse::<IpAddr>().unwrap();
        for n in 0..5 {
            lately.check(v6(n), 1000).unwrap();
            lately.note(v6(n), 1000);
        }
        assert!(lately.check(v6(9), 1000).unwrap_err().message.contains("within an hour"), "one /64");
        assert!(lately.check(v6(9), 1000 + HOUR_MS).is_ok());
        for n in 0..30_u8 {
            lately.note(IpAddr::from([192, 0, 2, n]), 2000);
        }
        let other = IpAddr::from([198, 51, 100, 1]);
        assert!(lately.check(other, 3000).unwrap_err().message.contains("within a minute"));
        assert!(lately.check(other, 2000 + MINUTE_MS).is_ok());
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), IpAddr::from([192, 0, 2, 1]));
    }

    #[test]
    fn names_that_mislead_are_refused() {
        for bad in ["root", "drain", "a", "Bob", "a.b", &"a".repeat(33)] {
            assert!(chosen(bad).is_err(), "{bad}");
        }
        assert!(chosen("bob").is_ok());
    }
}
