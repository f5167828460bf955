//! The account that asks, who asks for it, and the fleet's way with newcomers.

use axum::Json;
use axum::extract::State;
use mashines_fleet::api::{
    Account, CurrentToken, Member, SignUpPolicy, SignUpRequest, SignedUp, TokenInfo, Usage, WhoAmI,
};
use mashines_fleet::key::Key;
use mashines_fleet::record::{FleetConfig, MachineState};

use super::answer::Answer;
use super::auth::{Caller, Entry};
use super::render;
use super::request::Payload;
use crate::control::Control;
use crate::newcomers;

pub async fn show(State(control): State<Control>, caller: Caller) -> Answer<Account> {
    Ok(Json(render::account(&control.view(), &caller.account)))
}

pub async fn whoami(State(control): State<Control>, caller: Caller) -> Answer<WhoAmI> {
    let view = control.view();
    let me = &caller.me.id;
    // A lesser token acts for its own account only.
    let whole = caller.limits().is_none();
    let acts_for = view.accounts.values().filter(|_| whole).filter_map(|account| {
        let role = account.members.get(me)?;
        Some(Member { account: account.id.clone(), role: *role })
    });
    Ok(Json(WhoAmI {
        me: me.clone(),
        account: caller.account.id.clone(),
        standing: caller.standing,
        admin: caller.sees_fleet(),
        domain: view.config.as_ref().map(|config| config.domain.clone()).unwrap_or_default(),
        acts_for: acts_for.collect(),
        token: caller.limits(),
    }))
}

pub async fn token(caller: Caller) -> Answer<CurrentToken> {
    let (id, admin) = (caller.account.id.clone(), caller.account.admin);
    Ok(Json(CurrentToken { tokens: vec![TokenInfo { org_slug: id.clone(), organization: id, admin }] }))
}

/// What the machines that the caller sees use, as their hosts reported it last.
pub async fn usage(State(control): State<Control>, caller: Caller) -> Answer<Vec<Usage>> {
    let view = control.view();
    let running = view.machines.values().filter(|m| m.state != MachineState::Destroyed);
    let seen = running.filter(|machine| caller.standing_at(machine).is_some());
    let used = seen.filter_map(|machine| {
        let (cpu_percent, local) = control.hosts.usage(&machine.place.as_ref()?.host, &machine.id)?;
        Some(Usage {
            machine: machine.id.clone(),
            slug: machine.slug.clone(),
            cpu_percent,
            cpu_time_us: local.cpu_time_us,
            resident_bytes: local.resident_bytes,
        })
    });
    Ok(Json(used.collect()))
}

pub async fn policy(State(control): State<Control>, caller: Caller) -> Answer<SignUpPolicy> {
    caller.must_see_fleet("see how the fleet takes newcomers")?;
    let sign_up = control.view().config.as_ref().map(|config| config.sign_up).unwrap_or_default();
    Ok(Json(SignUpPolicy { sign_up }))
}

pub async fn set_policy(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<SignUpPolicy>,
) -> Answer<SignUpPolicy> {
    caller.must_be_admin("change how the fleet takes newcomers")?;
    let update = control.records.update(&Key::Config, |config: &mut FleetConfig| {
        let change = config.sign_up != body.sign_up;
        config.sign_up = body.sign_up;
        Ok(change)
    });
    Ok(Json(SignUpPolicy { sign_up: update.await?.sign_up }))
}

/// A newcomer, as an entry saw them.
pub async fn sign_up(
    State(control): State<Control>,
    _: Entry,
    Payload(body): Payload<SignUpRequest>,
) -> Answer<SignedUp> {
    Ok(Json(newcomers::sign_up(&control, &body).await?))
}
