//! Who may do what: pure decisions of records and the clock, for control and for the gateway alike.
//!
//! ```text
//!   key, token ──▶ Person ──┬─ standing_in(account) ── their own: owner; listed in `members`: that role
//!   certificate ─▶ (accounts │
//!                  and how   └─ standing_at(machine) ── standing in its account, or a share of it, whichever is more
//!                  far)
//! ```
//!
//! Invariants, held by a property test:
//! - Nobody gets more than what the records grant, and never more than how far they themselves came: each step takes the lesser.
//! - Membership does not pass on: who acts for `team` is not thereby a member of what `team` is a member of.
//! - A share gives at most [`Role::Operator`], and from the millisecond it ends nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::AccountId;
use crate::record::{Account, Machine, Role, Share, UnixMs};

/// What somebody is in an account. The greater may all that the lesser may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Standing {
    /// Acts for it: a member, a guest of one machine, the bearer of a certificate or of a lesser token.
    As(Role),
    /// The account itself, by its own key or token.
    Owner,
}

impl Standing {
    /// The lesser of the two.
    pub fn at_most(self, limit: Self) -> Self {
        self.min(limit)
    }

    /// Sees everything: everybody who stands in the account at all.
    pub fn may_see(self) -> bool {
        self >= Self::As(Role::Viewer)
    }

    /// Enters machines, starts, stops, moves and deploys them.
    pub fn may_operate(self) -> bool {
        self >= Self::As(Role::Operator)
    }

    /// Creates and removes, has the say over members, shares, keys and certificate authorities.
    pub fn may_administer(self) -> bool {
        self >= Self::As(Role::Admin)
    }
}

impl From<Role> for Standing {
    fn from(role: Role) -> Self {
        Self::As(role)
    }
}

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: {1}")]
pub struct BadRole(String, &'static str);

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = BadRole;

    fn from_str(word: &str) -> Result<Self, BadRole> {
        match word {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            other => Err(BadRole(other.chars().take(40).collect(), "it is viewer, operator or admin")),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As(role) => role.fmt(f),
            Self::Owner => f.write_str("owner"),
        }
    }
}

impl FromStr for Standing {
    type Err = BadRole;

    fn from_str(word: &str) -> Result<Self, BadRole> {
        match word {
            "owner" => Ok(Self::Owner),
            word => {
                let words = "it is viewer, operator, admin or owner";
                word.parse().map(Self::As).map_err(|BadRole(word, _)| BadRole(word, words))
            }
        }
    }
}

impl TryFrom<String> for Standing {
    type Error = BadRole;

    fn try_from(word: String) -> Result<Self, BadRole> {
        word.parse()
    }
}

impl From<Standing> for String {
    fn from(standing: Standing) -> Self {
        standing.to_string()
    }
}

/// Somebody as they came: the accounts that know them, and how far each vouches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Person(BTreeMap<AccountId, Standing>);

impl Person {
    /// Whose key or token is in that account.
    pub fn of(account: AccountId) -> Self {
        Self::with(account, Standing::Owner)
    }

    /// Who acts with that standing: [`Standing::As`] the role of the certificate authority that signed their key.
    pub fn with(account: AccountId, standing: Standing) -> Self {
        Self(BTreeMap::from([(account, standing)]))
    }

    /// One key may be in several accounts: this one knows them too.
    pub fn and(mut self, account: AccountId, standing: Standing) -> Self {
        let known = self.0.entry(account).or_insert(standing);
        *known = (*known).max(standing);
        self
    }

    /// The accounts and how far each vouches.
    pub fn accounts(&self) -> impl Iterator<Item = (&AccountId, Standing)> {
        self.0.iter().map(|(account, standing)| (account, *standing))
    }

    /// No account knows them.
    pub fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a person is in an account; none for a stranger.
pub fn standing_in(account: &Account, person: &Person) -> Option<Standing> {
    let each = person.accounts().filter_map(|(id, came)| {
        if *id == account.id {
            return Some(came);
        }
        account.members.get(id).map(|role| came.at_most(Standing::As(*role)))
    });
    each.max()
}

/// What a person is at a machine: what they are in its account, or what it is shared with them as, whichever is more.
/// `accounts` are the fleet's (`View::accounts`).
pub fn standing_at(
    machine: &Machine,
    accounts: &BTreeMap<AccountId, Arc<Account>>,
    person: &Person,
    now: UnixMs,
) -> Option<Standing> {
    let there = |id: &AccountId| accounts.get(id).and_then(|account| standing_in(account, person));
    let shared = machine.shares.iter().filter_map(|share| {
        let given = share.gives(now)?;
        Some(there(&share.account)?.at_most(Standing::As(given)))
    });
    shared.chain(there(&machine.account)).max()
}

impl Machine {
    /// As what it is shared with that account now, and until when.
    pub fn share_with(&self, account: &AccountId, now: UnixMs) -> Option<(Role, Option<UnixMs>)> {
        let of = self.shares.iter().filter(|share| share.account == *account);
        let live = of.filter_map(|share| Some((share.gives(now)?, share.expires_at)));
        live.max_by_key(|(role, _)| *role)
    }
}

impl Share {
    /// What it gives now; nothing once it is over. No share makes anybody an administrator, whatever is written in it.
    pub fn gives(&self, now: UnixMs) -> Option<Role> {
        let live = self.expires_at.is_none_or(|end| now < end);
        live.then(|| self.role.min(Role::Operator))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLES: [Role; 3] = [Role::Viewer, Role::Operator, Role::Admin];

    fn id(text: &str) -> AccountId {
        text.parse().unwrap()
    }

    fn account(name: &str, members: &[(&str, Role)]) -> Arc<Account> {
        Arc::new(Account {
            id: id(name),
            ssh_keys: Vec::new(),
            private_prefix: "fd00::".parse().unwrap(),
            admin: false,
            members: members.iter().map(|(who, role)| (id(who), *role)).collect(),
            ssh_cas: Vec::new(),
        })
    }

    fn fleet(accounts: &[Arc<Account>]) -> BTreeMap<AccountId, Arc<Account>> {
        accounts.iter().map(|account| (account.id.clone(), Arc::clone(account))).collect()
    }

    fn machine(owner: &str, shares: Vec<Share>) -> Machine {
        let value = serde_json::json!({
            "id": "0123456789abcd", "slug": "web", "account": owner, "app": "default", "instance_id": "",
            "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}},
            "image_digest": "", "desired": "started", "state": "started", "place": null,
            "net": {"ipv6": "2001:db8::1", "private6": "fd00::1", "mac": "", "ssh_port": null},
            "created_at": 0, "updated_at": 0,
        });
        let mut machine: Machine = serde_json::from_value(value).unwrap();
        machine.shares = shares;
        machine
    }

    fn share(with: &str, role: Role, expires_at: Option<UnixMs>) -> Share {
        Share { account: id(with), role, expires_at }
    }

    #[test]
    fn an_account_owns_itself_a_member_has_its_role_and_a_stranger_nothing() {
        let team = account("team", &[("ann", Role::Operator)]);
        assert_eq!(standing_in(&team, &Person::of(id("team"))), Some(Standing::Owner));
        assert_eq!(standing_in(&team, &Person::of(id("ann"))), Some(Role::Operator.into()));
        assert_eq!(standing_in(&team, &Person::of(id("bob"))), None);
        assert_eq!(standing_in(&team, &Person::default()), None);
    }

    #[test]
    fn who_came_with_less_has_less_wherever_they_are_a_member() {
        let team = account("team", &[("ann", Role::Admin)]);
        let certified = Person::with(id("ann"), Role::Viewer.into());
        assert_eq!(standing_in(&team, &certified), Some(Role::Viewer.into()));
        let also = certified.and(id("team"), Role::Operator.into());
        assert_eq!(standing_in(&team, &also), Some(Role::Operator.into()));
    }

    #[test]
    fn membership_does_not_pass_on() {
        let (team, corp) =
            (account("team", &[("ann", Role::Admin)]), account("corp", &[("team", Role::Admin)]));
        assert!(standing_in(&team, &Person::of(id("ann"))).is_some());
        assert_eq!(standing_in(&corp, &Person::of(id("ann"))), None);
    }

    #[test]
    fn a_share_ends_at_its_millisecond_and_makes_no_administrator() {
        let all = fleet(&[account("ann", &[]), account("bob", &[("carl", Role::Viewer)])]);
        let web = machine("ann", vec![share("bob", Role::Admin, Some(1000))]);
        let at = |who: &str, now| standing_at(&web, &all, &Person::of(id(who)), now);
        assert_eq!(at("bob", 999), Some(Role::Operator.into()));
        assert_eq!(at("carl", 999), Some(Role::Viewer.into()), "as what he is in bob's account");
        assert_eq!(at("bob", 1000), None);
        assert_eq!(at("ann", 2000), Some(Standing::Owner));
        let gone = machine("ann", vec![share("nobody", Role::Operator, None)]);
        assert_eq!(standing_at(&gone, &all, &Person::of(id("nobody")), 0), None, "an account that is gone");
    }

    #[test]
    fn words_of_roles_survive_and_others_are_refused() {
        for standing in ROLES.map(Standing::As).into_iter().chain([Standing::Owner]) {
            assert_eq!(standing.to_string().parse(), Ok(standing));
            let json = serde_json::to_string(&standing).unwrap();
            assert_eq!(serde_json::from_str::<Standing>(&json).unwrap(), standing);
        }
        for role in ROLES {
            assert_eq!(serde_json::to_value(role).unwrap(), role.to_string(), "as the record writes it");
        }
        assert!("owner".parse::<Role>().is_err());
        let error = "root".parse::<Standing>().unwrap_err().to_string();
        assert!(error.contains("viewer, operator, admin or owner"), "{error}");
    }

    fn roles() -> impl Strategy<Value = Role> {
        prop::sample::select(&ROLES[..])
    }

    fn names() -> impl Strategy<Value = &'static str> {
        prop::sample::select(&["a", "b", "c", "d"][..])
    }

    fn standings() -> impl Strategy<Value = Standing> {
        prop_oneof![roles().prop_map(Standing::As), Just(Standing::Owner)]
    }

    proptest! {
        #[test]
        fn nobody_ever_gets_more_than_granted(
            members in prop::collection::vec(prop::collection::vec((names(), roles()), 0..4), 4),
            shares in prop::collection::vec((names(), roles(), prop::option::of(0_u64..20)), 0..5),
            came in prop::collection::vec((names(), standings()), 0..3),
            owner in names(), now in 0_u64..20,
        ) {
            let accounts: Vec<_> =
                ["a", "b", "c", "d"].iter().zip(&members).map(|(name, of)| account(name, of)).collect();
            let all = fleet(&accounts);
            let shares: Vec<Share> = shares.into_iter().map(|(who, role, end)| share(who, role, end)).collect();
            let web = machine(owner, shares.clone());
            let person = came.iter().fold(Person::default(), |p, (who, s)| p.and(id(who), *s));
            let got = standing_at(&web, &all, &person, now);

            // Not more than how far they came, and nothing for nobody.
            let furthest = person.accounts().map(|(_, came)| came).max();
            prop_assert!(got <= furthest);
            // Beyond operator only in the machine's own account.
            let home = standing_in(&all[&id(owner)], &person);
            if got.is_some_and(Standing::may_administer) {
                prop_assert_eq!(got, home);
            }
            // Expired shares are as if they were not there.
            let live = shares.iter().filter(|s| s.expires_at.is_none_or(|end| now < end)).cloned().collect();
            prop_assert_eq!(got, standing_at(&machine(owner, live), &all, &person, now));
            for account in &accounts {
                let role = web.share_with(&account.id, now).map(|(role, _)| role);
                prop_assert_eq!(role, shares.iter().filter(|s| s.account == account.id).filter_map(|s| s.gives(now)).max());
                let whole = standing_at(&web, &all, &Person::of(account.id.clone()), now);
                prop_assert!(role.map(Standing::As) <= whole);
            }
            // Time and the removal of shares only take away.
            prop_assert!(standing_at(&web, &all, &person, now + 1) <= got);
            prop_assert!(home <= got);
            // Who came with less has not more.
            let lesser = came.iter().fold(Person::default(), |p, (who, s)| p.and(id(who), s.at_most(Role::Viewer.into())));
            prop_assert!(standing_at(&web, &all, &lesser, now) <= got.map(|s| s.at_most(Role::Viewer.into())));
        }
    }
}
