//! The keys that the fleet's zones are signed with: made at the first start, kept for ever, rolled over on request.
//!
//! Control makes them, looks what their parents have of them, and decides about them; name servers sign with them. A zone that leaves the configuration keeps its keys: its parent
//! may still have the DS.

mod decide;
mod parent;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mashines_fleet::id::DomainName;
use mashines_fleet::key::Key;
use mashines_fleet::record::{ZoneKey, ZoneKeyState, ZoneKeys};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::zone_key::{dnskey_rdata, key_tag};
use mashines_fleet::zones;

pub use decide::{Timing, next_step};
pub use parent::{Parents, watch as watch_parents};

use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::retrying;
use crate::time::now;

impl From<decide::Refused> for Failure {
    fn from(refused: decide::Refused) -> Self {
        Self::conflict(refused.to_string())
    }
}

/// Makes what is missing, and does what time brings. A step that fails is told and tried at the next look.
pub async fn tick(control: &Control) {
    let view = control.view();
    let Some(config) = &view.config else { return };
    for zone in zones::names(config) {
        if view.zone_keys.contains_key(&zone) {
            continue;
        }
        match make_first(control, &zone).await {
            Ok(()) => tracing::info!(%zone, "the zone has a key now"),
            Err(failure) => tracing::error!(%zone, %failure, "the zone has no key: it is served unsigned"),
        }
    }
    let timing = &control.config.zone_keys;
    for (zone, keys) in &view.zone_keys {
        if !decide::advance(&mut keys.keys.clone(), timing, now()) {
            continue;
        }
        let key = Key::ZoneKeys(zone.clone());
        let update = control
            .records
            .update(&key, |keys: &mut ZoneKeys| Ok(decide::advance(&mut keys.keys, timing, now())));
        match update.await {
            Ok(keys) => {
                tracing::info!(%zone, next = next_step(zone.as_str(), &keys.keys, timing), "the zone's keys went on");
            }
            Err(failure) => tracing::warn!(%zone, %failure, "the zone's keys wait"),
        }
    }
}

async fn make_first(control: &Control, zone: &DomainName) -> Result<()> {
    retrying(|| async {
        let mut edit = control.records.edit();
        let known: Option<ZoneKeys> = edit.get(&Key::ZoneKeys(zone.clone())).await?;
        if known.is_some() {
            return Ok(());
        }
        let key = new_key(&control.secret, zone, ZoneKeyState::Active, &[])?;
        edit.put(&ZoneKeys { id: zone.clone(), keys: vec![key] })?;
        edit.commit().await
    })
    .await
}

/// A key pair whose tag none of `others` has: signatures name keys by their tags.
fn new_key(
    secret: &EntrySecret,
    zone: &DomainName,
    state: ZoneKeyState,
    others: &[ZoneKey],
) -> Result<ZoneKey> {
    let failed = |_| Failure::internal(format!("no key pair could be made for {zone}"));
    loop {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
        // An uncompressed point: 0x04, then what a DNSKEY holds (RFC 6605 §4).
        let point = pair.public_key().as_ref();
        let public = point.get(1..).filter(|public| public.len() == 64);
        let public = public.ok_or_else(|| failed(aws_lc_rs::error::Unspecified))?;
        let tag = key_tag(&dnskey_rdata(public));
        if others.iter().any(|other| other.tag == tag) {
            continue;
        }
        let pkcs8 = pair.to_pkcs8v1().map_err(failed)?;
        let sealed = secret.seal(&Key::ZoneKeys(zone.clone()), pkcs8.as_ref());
        let secret = sealed.map_err(|error| Failure::internal(error.to_string()))?;
        return Ok(ZoneKey { tag, public: STANDARD.encode(public), secret, state, since: now() });
    }
}

/// Begins a rollover.
///
/// # Errors
/// One is under way; the zone has no keys.
pub async fn begin(control: &Control, zone: &DomainName) -> Result<ZoneKeys> {
    let key = Key::ZoneKeys(zone.clone());
    let update = control.records.update(&key, |keys: &mut ZoneKeys| {
        decide::may_begin(&keys.keys)?;
        let new = new_key(&control.secret, zone, ZoneKeyState::Published, &keys.keys)?;
        keys.keys.push(new);
        Ok(true)
    });
    update.await
}

/// A person says that the parent has the new DS. Control looks for itself, unless it is to go on `anyway`.
///
/// # Errors
/// No key waits for that, or not yet; the parent does not have it.
pub async fn ds_seen(control: &Control, zone: &DomainName, anyway: bool) -> Result<ZoneKeys> {
    let seen = parent::look_now(control, zone).await;
    if let (false, Some(keys)) = (anyway, control.view().zone_keys.get(zone)) {
        parent::may_go_on(keys, &seen)?;
    }
    activate(control, zone).await
}

/// The announced key signs from now on.
async fn activate(control: &Control, zone: &DomainName) -> Result<ZoneKeys> {
    let timing = &control.config.zone_keys;
    let key = Key::ZoneKeys(zone.clone());
    let update = control.records.update(&key, |keys: &mut ZoneKeys| {
        decide::ds_seen(&mut keys.keys, timing, now())?;
        Ok(true)
    });
    update.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_opens_with_the_fleets_secret_and_is_the_one_that_is_published() {
        let secret = EntrySecret::random();
        let zone: DomainName = "mashine.test".parse().unwrap();
        let key = new_key(&secret, &zone, ZoneKeyState::Active, &[]).unwrap();
        let pkcs8 = secret.open(&Key::ZoneKeys(zone.clone()), &key.secret).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).unwrap();
        assert_eq!(STANDARD.encode(&pair.public_key().as_ref()[1..]), key.public);
        assert_eq!(key_tag(&key.dnskey().unwrap()), key.tag);
        assert!(!format!("{key:?}").contains(&STANDARD.encode(&pkcs8)));
    }
}
