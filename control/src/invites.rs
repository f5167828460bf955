//! Invites: a secret that somebody was handed, good for a place in the fleet, in an account or at a machine.
//!
//! - The secret has 128 random bits, is shown once, and only its hash is in the store, under a private key.
//! - Using one is part of the transaction that grants what it gives: of two who come with the last use one gets it.
//! - It gives no more than whoever made it may still give: one made by an admin who is none any more is void.

use mashines_fleet::access::{Person, standing_in};
use mashines_fleet::api::{Code, Given, Invite};
use mashines_fleet::id::{AccountId, MachineId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Account, Machine, Role, Share, UnixMs};
use mashines_fleet::view::View;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Kind, Result};
use crate::found::hash;
use crate::records::{Edit, Private, Records};
use crate::time::{now, rfc3339};

/// The most members of an account.
pub const MOST_MEMBERS: usize = 500;
/// The most shares of a machine.
pub const MOST_SHARES: usize = 100;

/// An invite in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The short id.
    pub id: String,
    /// In whose list it is.
    pub account: AccountId,
    /// Who made it.
    pub by: AccountId,
    /// What it gives.
    pub to: To,
    /// When it was made.
    pub created_at: UnixMs,
    /// Until when it may be used.
    pub expires_at: UnixMs,
    /// How often it may still be used.
    pub uses: u32,
}

/// What an invite gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum To {
    /// Sign-up.
    Fleet,
    /// Membership of the account in whose list it is.
    Account(Role),
    /// A share.
    Machine {
        /// Of this machine.
        machine: MachineId,
        /// As what.
        role: Role,
        /// Until when; for good when there is none.
        until: Option<UnixMs>,
    },
}

/// A new secret and the short id of its invite, which tells nothing of it.
pub fn new_code() -> (Code, String) {
    let code = Code(format!("msi_{}", hex::encode(rand::random::<[u8; 16]>())));
    (code, hex::encode(rand::random::<[u8; 5]>()))
}

impl Record {
    /// As people see it.
    pub fn shown(&self, view: &View) -> Invite {
        Invite {
            id: self.id.clone(),
            gives: self.given(view),
            expires_at: rfc3339(self.expires_at),
            uses: self.uses,
            by: self.by.clone(),
        }
    }

    fn given(&self, view: &View) -> Given {
        match &self.to {
            To::Fleet => Given::Fleet,
            To::Account(role) => Given::Account { account: self.account.clone(), role: *role },
            To::Machine { machine, role, until } => Given::Machine {
                machine: machine.clone(),
                slug: view.machines.get(machine).map(|m| m.slug.to_string()).unwrap_or_default(),
                owner: self.account.clone(),
                role: *role,
                expires_at: until.map(rfc3339),
            },
        }
    }

    /// It may be used now, and its maker may still give what it gives.
    fn must_be_good(&self, view: &View) -> Result<()> {
        let void = |why: &str| {
            Failure::new(
                Kind::Forbidden,
                format!("the invite {why}: ask whoever gave it to you for a new one"),
            )
        };
        let over = match &self.to {
            To::Machine { until, .. } => until.is_some_and(|until| until <= now()),
            To::Fleet | To::Account(_) => false,
        };
        if self.expires_at <= now() || over {
            return Err(void("has expired"));
        }
        let account = view.accounts.get(&self.account);
        let standing = account.and_then(|account| standing_in(account, &Person::of(self.by.clone())));
        if !standing.is_some_and(|standing| standing.may_administer()) {
            return Err(void("is void, since who made it is no admin any more"));
        }
        Ok(())
    }
}

/// All invites of an account, those that expired too.
///
/// # Errors
/// The store's.
pub async fn of(records: &Records, account: &AccountId) -> Result<Vec<(String, Record)>> {
    let hashes: Vec<(String, String)> = records.private_below(&format!("invite-of/{account}/")).await?;
    let mut all = Vec::new();
    for (_, hash) in hashes {
        if let Some(record) = records.private(Private::Invite(&hash)).await? {
            all.push((hash, record));
        }
    }
    Ok(all)
}

/// Puts a new invite into the transaction.
///
/// # Errors
/// It cannot be encoded.
pub fn put(edit: &mut Edit<'_>, code: &Code, record: &Record) -> Result<()> {
    let hash = hash(&code.0);
    edit.claim(Private::Invite(&hash), record)?;
    edit.claim(Private::InviteOf(&record.account, &record.id), &hash)?;
    Ok(())
}

/// Removes an invite in the transaction.
pub fn remove(edit: &mut Edit<'_>, hash: &str, record: &Record) {
    edit.delete_private(Private::Invite(hash)).delete_private(Private::InviteOf(&record.account, &record.id));
}

/// Uses an invite for an account in the transaction: takes one use away and grants what it gives.
/// `newcomer` says that the account is made in the same transaction.
///
/// # Errors
/// It is unknown, expired or void; the account has what it gives. Nothing is used up then.
pub async fn redeem(
    edit: &mut Edit<'_>,
    view: &View,
    code: &Code,
    (account, newcomer): (&AccountId, bool),
) -> Result<Given> {
    let hash = hash(code.0.trim());
    let record: Option<Record> = edit.private(Private::Invite(&hash)).await?;
    let unknown = || {
        Failure::not_found(
            "the invite is unknown: it was mistyped, used up or withdrawn; ask whoever gave it to you for a new one",
        )
    };
    let mut record = record.ok_or_else(unknown)?;
    record.must_be_good(view)?;
    match &record.to {
        To::Fleet if newcomer => {}
        To::Fleet => {
            return Err(Failure::conflict(format!(
                "the invite is for a new account, and you have one: {account}; it is still good for somebody else"
            )));
        }
        To::Account(role) => join(edit, &record.account, account, *role).await?,
        To::Machine { machine, role, until } => {
            let share = Share { account: account.clone(), role: *role, expires_at: *until };
            let mut machine: Machine = edit.require(&Key::Machine(machine.clone())).await?;
            if machine.account != record.account
                || machine.desired == mashines_fleet::record::Desired::Destroyed
            {
                return Err(Failure::not_found("the machine of this invite is gone"));
            }
            put_share(&mut machine, share, Replace::WithMore)?;
            edit.put(&machine)?;
        }
    }
    record.uses = record.uses.saturating_sub(1);
    if record.uses == 0 {
        remove(edit, &hash, &record);
    } else {
        edit.put_private(Private::Invite(&hash), &record)?;
    }
    Ok(record.given(view))
}

async fn join(edit: &mut Edit<'_>, of: &AccountId, account: &AccountId, role: Role) -> Result<()> {
    let mut team: Account = edit.require(&Key::Account(of.clone())).await?;
    if of == account {
        return Err(Failure::conflict(format!("you are account {of} yourself")));
    }
    if let Some(has) = team.members.get(account).filter(|has| **has >= role) {
        return Err(Failure::conflict(format!("{account} is {has} in account {of} already")));
    }
    set_member(&mut team, account.clone(), role)?;
    edit.put(&team)?;
    Ok(())
}

/// Makes an account a member.
///
/// # Errors
/// There are too many.
pub fn set_member(team: &mut Account, account: AccountId, role: Role) -> Result<()> {
    if !team.members.contains_key(&account) && team.members.len() >= MOST_MEMBERS {
        return Err(Failure::conflict(format!(
            "account {} has {MOST_MEMBERS} members, which is the most",
            team.id
        )));
    }
    team.members.insert(account, role);
    Ok(())
}

/// What becomes of a share that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// It is set anew.
    Always,
    /// Only by one that gives more or longer.
    WithMore,
}

/// Shares a machine. Shares that are over go.
///
/// # Errors
/// With its own account, as admin, too many; there is one that gives as much.
pub fn put_share(machine: &mut Machine, share: Share, replace: Replace) -> Result<()> {
    if share.account == machine.account {
        return Err(Failure::conflict(format!(
            "machine {} is account {}'s own",
            machine.slug, share.account
        )));
    }
    if share.role > Role::Operator {
        return Err(Failure::invalid(format!(
            "a machine is shared with viewers and operators: a share makes no {}; `mashines members add` does",
            share.role
        )));
    }
    let now = now();
    machine.shares.retain(|known| known.gives(now).is_some());
    let end = |share: &Share| share.expires_at.unwrap_or(UnixMs::MAX);
    let known = machine.shares.iter().find(|known| known.account == share.account);
    let as_much = |known: &Share| known.role >= share.role && end(known) >= end(&share);
    if replace == Replace::WithMore && known.is_some_and(as_much) {
        return Err(Failure::conflict(format!(
            "machine {} is shared with {} already",
            machine.slug, share.account
        )));
    }
    if known.is_none() && machine.shares.len() >= MOST_SHARES {
        return Err(Failure::conflict(format!(
            "machine {} has {MOST_SHARES} shares, which is the most",
            machine.slug
        )));
    }
    machine.shares.retain(|known| known.account != share.account);
    machine.shares.push(share);
    machine.updated_at = now;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    fn share(account: &str, role: Role, expires_at: Option<UnixMs>) -> Share {
        Share { account: account.parse().unwrap(), role, expires_at }
    }

    #[test]
    fn a_share_is_replaced_by_its_owner_and_bettered_by_an_invite() {
        let mut web = machine(None);
        put_share(&mut web, share("bob", Role::Operator, None), Replace::Always).unwrap();
        assert!(put_share(&mut web, share("bob", Role::Viewer, None), Replace::WithMore).is_err());
        put_share(&mut web, share("bob", Role::Viewer, None), Replace::Always).unwrap();
        put_share(&mut web, share("bob", Role::Operator, None), Replace::WithMore).unwrap();
        assert_eq!(web.shares, [share("bob", Role::Operator, None)]);
    }

    #[test]
    fn shares_that_are_over_go_and_none_is_with_the_owner_or_for_admins() {
        let mut web = machine(None);
        web.shares = vec![share("old", Role::Viewer, Some(1))];
        put_share(&mut web, share("bob", Role::Viewer, None), Replace::Always).unwrap();
        assert_eq!(web.shares.len(), 1);
        assert!(put_share(&mut web, share("ann", Role::Viewer, None), Replace::Always).is_err());
        assert!(put_share(&mut web, share("bob", Role::Admin, None), Replace::Always).is_err());
    }

    #[test]
    fn codes_are_long_and_their_ids_tell_nothing_of_them() {
        let (code, id) = new_code();
        assert_eq!((code.0.len(), id.len()), (36, 10));
        assert!(!code.0.contains(&id) && !hash(&code.0).contains(&id));
        assert!(!format!("{code:?}").contains(&code.0));
    }
}
