//! Who asks: a person by a bearer token, or an entry on a person's behalf; for which account, and as what.
//!
//! ```text
//!   msh_… (kept)   ──▶ its account, as owner                      ┐             header mashines-act-for?
//!   mss_… (signed) ──▶ the key's account, at most the token's role ├─▶ Person ──▶ the account that the request is for,
//!   entry's header ──▶ that account, at most the header's role     ┘             and what the person is in it: Caller
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use mashines_fleet::access::{Person, Standing, standing_in};
use mashines_fleet::api::{ACCOUNT_HEADER, ACT_FOR_HEADER, ROLE_HEADER, SIGNED_TOKEN, TokenLimits};
use mashines_fleet::id::{AccountId, BadId, HostId};
use mashines_fleet::record::{Account, Host, HostRole, Machine, Role, UnixMs};
use mashines_fleet::rpc::Peer;
use mashines_fleet::view::View;

use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::found::{RevokedRecord, TokenRecord, hash};
use crate::records::Private;
use crate::signed::{self, Signed};
use crate::time::{now, rfc3339};

/// Who asks, and what they may.
pub struct Caller {
    /// The account that the request is for.
    pub account: Arc<Account>,
    /// What the asker is there.
    pub standing: Standing,
    /// The account that the asker is of.
    pub me: Arc<Account>,
    /// As what they come from there.
    came: Standing,
    /// A signed token's limits.
    limits: Option<Limits>,
    /// The hash of a token that is kept.
    pub token: Option<String>,
}

struct Limits {
    expires_at: UnixMs,
    /// Names or ids; all when empty.
    machines: BTreeSet<String>,
}

/// Somebody proved who they are; for which account they ask is not known yet.
struct Proven {
    person: Person,
    me: AccountId,
    came: Standing,
    /// The account that the request is for unless it says otherwise.
    default: AccountId,
    /// It may not be for another.
    only_default: bool,
    limits: Option<Limits>,
    token: Option<String>,
}

impl Caller {
    /// Refuses whoever is less than `need` in the account, and tokens that are for some machines only.
    ///
    /// # Errors
    /// [`Kind::Forbidden`]: who may.
    pub fn must(&self, need: impl Into<Standing>, what: &str) -> Result<()> {
        if let Some(limits) = self.limits.as_ref().filter(|limits| !limits.machines.is_empty()) {
            let names: Vec<&str> = limits.machines.iter().map(String::as_str).collect();
            let text = format!("the token is for {} only: it may not {what}", names.join(", "));
            return Err(Failure::new(Kind::Forbidden, text));
        }
        let need = need.into();
        if self.standing >= need {
            return Ok(());
        }
        Err(self.refusal(self.standing, need, &format!("{what} in account {}", self.account.id)))
    }

    /// The same for one machine that is seen.
    ///
    /// # Errors
    /// [`Kind::Forbidden`]: who may.
    pub fn must_at(&self, machine: &Machine, need: impl Into<Standing>, what: &str) -> Result<()> {
        let (need, has) = (need.into(), self.standing_at(machine));
        match has {
            Some(has) if has >= need => Ok(()),
            has => {
                let has = has.unwrap_or(Standing::As(Role::Viewer));
                Err(self.refusal(has, need, &format!("{what} machine {}", machine.slug)))
            }
        }
    }

    /// Notes who changed who may enter.
    pub fn audit(&self, what: &str) {
        tracing::info!(target: "audit", me = %self.me.id, account = %self.account.id, standing = %self.standing, "{what}");
    }

    fn refusal(&self, has: Standing, need: Standing, what: &str) -> Failure {
        let may = match need {
            Standing::As(Role::Viewer) => "viewers may",
            Standing::As(Role::Operator) => "operators, admins and the owner may",
            Standing::As(Role::Admin) => "admins and the owner may",
            Standing::Owner => "the owner may",
        };
        Failure::new(Kind::Forbidden, format!("{} is {has} here and may not {what}: {may}", self.me.id))
    }

    /// What the asker is at a machine: in its account, when the request is for that one, or by a share. None: it is not there for them.
    pub fn standing_at(&self, machine: &Machine) -> Option<Standing> {
        let permitted = |limits: &Limits| {
            limits.machines.is_empty()
                || limits.machines.contains(machine.slug.as_str())
                || limits.machines.contains(machine.id.as_str())
        };
        if !self.limits.as_ref().is_none_or(permitted) {
            return None;
        }
        if machine.account == self.account.id {
            return Some(self.standing);
        }
        let (role, _) = machine.share_with(&self.account.id, now())?;
        Some(self.standing.at_most(Standing::As(role)))
    }

    /// What the asker is in an account of the fleet's administrators; none for people of other accounts.
    fn fleet_standing(&self) -> Option<Standing> {
        if self.limits.as_ref().is_some_and(|limits| !limits.machines.is_empty()) {
            return None;
        }
        // A signed token is for its account and nothing that its key's owner is besides.
        let mine = (self.me.admin && self.limits.is_none()).then_some(self.came);
        let theirs = self.account.admin.then_some(self.standing);
        mine.max(theirs)
    }

    /// The account that asks, and not merely somebody with a part of what it may: may change what it is elsewhere.
    pub fn is_themselves(&self) -> bool {
        self.limits.is_none() && self.came.may_administer()
    }

    /// May look at the fleet: hosts, everybody's moves.
    pub fn sees_fleet(&self) -> bool {
        self.fleet_standing().is_some()
    }

    /// Refuses all but administrators of the fleet and those who look over their shoulders.
    ///
    /// # Errors
    /// [`Kind::Forbidden`].
    pub fn must_see_fleet(&self, what: &str) -> Result<()> {
        if self.sees_fleet() {
            return Ok(());
        }
        let id = &self.account.id;
        Err(Failure::new(Kind::Forbidden, format!("account {id} may not {what}: administrators may")))
    }

    /// Refuses all but administrators of the fleet.
    ///
    /// # Errors
    /// [`Kind::Forbidden`].
    pub fn must_be_admin(&self, what: &str) -> Result<()> {
        self.must_see_fleet(what)?;
        match self.fleet_standing() {
            Some(standing) if standing.may_administer() => Ok(()),
            has => {
                let has = has.unwrap_or(Standing::As(Role::Viewer));
                Err(self.refusal(has, Standing::As(Role::Admin), what))
            }
        }
    }

    /// What a signed token is limited to.
    pub fn limits(&self) -> Option<TokenLimits> {
        let limits = self.limits.as_ref()?;
        let machines = limits.machines.iter().cloned().collect();
        Some(TokenLimits { expires_at: rfc3339(limits.expires_at), machines })
    }
}

impl FromRequestParts<Control> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self> {
        let proven = match parts.headers.get(AUTHORIZATION) {
            Some(value) => by_token(control, value.as_bytes()).await?,
            None => by_entry(control, parts)?,
        };
        let asked: Option<AccountId> = header(parts, ACT_FOR_HEADER)?;
        proven.acting_for(&control.view(), asked)
    }
}

impl Proven {
    /// The owner of an account.
    fn owner(account: AccountId) -> Self {
        Self::vouched(account, Standing::Owner)
    }

    /// Who comes from an account as that.
    fn vouched(account: AccountId, came: Standing) -> Self {
        Self {
            person: Person::with(account.clone(), came),
            me: account.clone(),
            came,
            default: account,
            only_default: false,
            limits: None,
            token: None,
        }
    }

    fn acting_for(self, view: &View, asked: Option<AccountId>) -> Result<Caller> {
        let Self { person, me, came, default, only_default, limits, token } = self;
        let gone = |id: &AccountId| {
            Failure::new(Kind::Unauthorized, format!("account {id} is not there (any more)"))
        };
        let me = view.accounts.get(&me).cloned().ok_or_else(|| gone(&me))?;
        let id = asked.unwrap_or_else(|| default.clone());
        if only_default && id != default {
            let text = format!("the token is for account {default} only, not for {id}");
            return Err(Failure::new(Kind::Forbidden, text));
        }
        // Whether an account exists is nobody's business who is not in it.
        let there =
            view.accounts.get(&id).and_then(|account| Some((account, standing_in(account, &person)?)));
        let Some((account, standing)) = there else {
            return Err(Failure::new(
                Kind::Forbidden,
                format!(
                    "{} is no member of account {id}: its owner adds you with `mashines members add {}`",
                    me.id, me.id
                ),
            ));
        };
        Ok(Caller { account: Arc::clone(account), standing, me, came, limits, token })
    }
}

/// A header of ours; the account that it names, and the like.
fn header<T: std::str::FromStr<Err: std::fmt::Display>>(parts: &Parts, name: &str) -> Result<Option<T>> {
    let Some(value) = parts.headers.get(name) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    text.parse().map(Some).map_err(|error| Failure::invalid(format!("header {name}: {error}")))
}

async fn by_token(control: &Control, header: &[u8]) -> Result<Proven> {
    let text = std::str::from_utf8(header).unwrap_or_default();
    let (scheme, token) = text.split_once(' ').unwrap_or_default();
    // `FlyV1` is what Fly's own clients send.
    if !scheme.eq_ignore_ascii_case("bearer") && !scheme.eq_ignore_ascii_case("flyv1") {
        return Err(Failure::new(Kind::Unauthorized, "the header must be `Authorization: Bearer TOKEN`"));
    }
    if token.trim().starts_with(SIGNED_TOKEN) {
        return by_signature(control, token.trim()).await;
    }
    let hash = hash(token.trim());
    let record: Option<TokenRecord> = control.records.private(Private::Token(&hash)).await?;
    let unknown =
        || Failure::new(Kind::Unauthorized, "the token is not known here: it was mistyped or revoked");
    Ok(Proven { token: Some(hash), ..Proven::owner(record.ok_or_else(unknown)?.account) })
}

/// A token that was signed by a key: the key must be in the account that it is for, or in one of that account's members.
async fn by_signature(control: &Control, token: &str) -> Result<Proven> {
    let view = control.view();
    let domain = view.config.as_ref().map(|config| config.domain.clone()).unwrap_or_default();
    let Signed { claims, key } = signed::check(token, &domain, now())?;
    let refused = |why: &str| Failure::new(Kind::Unauthorized, format!("the signed token is refused: {why}"));
    let account = view.accounts.get(&claims.account);
    let stranger =
        || refused(&format!("its key is not in account {} nor in a member of it (any more)", claims.account));
    let account = account.ok_or_else(stranger)?;
    let has_key =
        |id: &&AccountId| view.accounts.get(*id).is_some_and(|account| account.ssh_keys.contains(&key));
    let known: Vec<&AccountId> =
        std::iter::once(&account.id).chain(account.members.keys()).filter(has_key).collect();
    let nonce = hash(&claims.nonce);
    for of in std::iter::once(&account.id).chain(known.iter().copied()) {
        let revoked: Option<RevokedRecord> = control.records.private(Private::Revoked(of, &nonce)).await?;
        if revoked.is_some() {
            return Err(refused("it was revoked"));
        }
    }
    let person = known.iter().fold(Person::default(), |person, id| person.and((*id).clone(), claims.role));
    let standing = |id: &&&AccountId| standing_in(account, &Person::with((**id).clone(), claims.role));
    let me = known.iter().max_by_key(standing).ok_or_else(stranger)?;
    Ok(Proven {
        person,
        me: (*me).clone(),
        came: claims.role,
        default: claims.account.clone(),
        only_default: true,
        limits: Some(Limits {
            expires_at: claims.exp.saturating_mul(1000),
            machines: claims.machines.into_iter().collect(),
        }),
        token: None,
    })
}

fn by_entry(control: &Control, parts: &Parts) -> Result<Proven> {
    let nobody = || {
        Failure::new(
            Kind::Unauthorized,
            "send a token: `Authorization: Bearer TOKEN` (`mashines login` keeps it)",
        )
    };
    let account = parts.headers.get(ACCOUNT_HEADER).and_then(|value| value.to_str().ok());
    let (Some(account), Some(Member(host))) = (account, member(parts)) else { return Err(nobody()) };
    if !is_entry(control, &host) {
        return Err(Failure::new(Kind::Forbidden, format!("{host} is no entry: it speaks for no account")));
    }
    let account: AccountId = account.parse().map_err(|error: BadId| Failure::invalid(error.to_string()))?;
    let role: Option<Standing> = header(parts, ROLE_HEADER)?;
    Ok(Proven::vouched(account, role.unwrap_or(Standing::Owner)))
}

fn is_entry(control: &Control, host: &HostId) -> bool {
    let entry = |host: &Arc<Host>| host.roles.contains(&HostRole::Entry);
    control.view().hosts.get(host).is_some_and(entry)
}

/// A host or entry of the fleet, by its certificate.
pub struct Member(pub HostId);

fn member(parts: &Parts) -> Option<Member> {
    let peer = parts.extensions.get::<Peer>()?;
    peer.name.as_ref()?.as_host().map(Member)
}

impl FromRequestParts<Control> for Member {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Control) -> Result<Self> {
        let none = || {
            Failure::new(Kind::Unauthorized, "this is for members of the fleet: show a certificate of its CA")
        };
        member(parts).ok_or_else(none)
    }
}

/// An entry of the fleet, by its certificate.
pub struct Entry(pub HostId);

impl FromRequestParts<Control> for Entry {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self> {
        let Member(host) = Member::from_request_parts(parts, control).await?;
        if is_entry(control, &host) {
            return Ok(Self(host));
        }
        Err(Failure::new(Kind::Forbidden, format!("{host} is no entry")))
    }
}

/// Any member of the fleet, control itself included: for the change stream.
pub struct Follower;

impl FromRequestParts<Control> for Follower {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Control) -> Result<Self> {
        let peer = parts.extensions.get::<Peer>();
        if peer.is_some_and(|peer| peer.name.is_some()) {
            return Ok(Self);
        }
        Err(Failure::new(
            Kind::Unauthorized,
            "this is for members of the fleet: show a certificate of its CA",
        ))
    }
}
