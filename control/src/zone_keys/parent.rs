//! What a zone's parent has of its keys: a look at DNS, and pure judgements of what was seen.
//!
//! Control looks at each zone every [`parent_look_s`](crate::Config::parent_look_s) and tells people what it means. A rollover goes on by itself once the DS of
//! the announced key is there. That one server of the parent shows it is enough: until every other does, and no cache has the old DS, the old key
//! stays and signs the key set ([`Timing::slack_s`](super::Timing)).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::proto::rr::{RData, RecordType};
use mashines_fleet::api::{AtParent, Delegation};
use mashines_fleet::id::DomainName;
use mashines_fleet::record::{ZoneKey, ZoneKeyState, ZoneKeys};
use mashines_fleet::zone_key::wire_name;
use sha2::{Digest, Sha256, Sha384};

use super::decide::Refused;
use crate::control::Control;
use crate::resolver::{Dns, Found};

/// The RDATA of the DS records at a parent (RFC 4034 §5.1).
pub type AtTheParent = Found<Vec<Vec<u8>>>;

/// What was seen last of each zone's parent.
#[derive(Debug, Default)]
pub struct Parents(Mutex<BTreeMap<DomainName, AtTheParent>>);

impl Parents {
    /// What it means for the zone with these keys.
    pub fn judge(&self, keys: &ZoneKeys) -> AtParent {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&keys.id).map_or_else(not_yet, |seen| judge(keys, seen))
    }

    fn note(&self, zone: &DomainName, seen: AtTheParent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(zone.clone(), seen);
    }
}

fn not_yet() -> AtParent {
    AtParent { state: Delegation::Unknown, says: "the parent was not looked at yet".to_owned() }
}

/// Looks at the parents of all zones, again and again; a rollover goes on when its DS is there.
pub async fn watch(control: &Control) {
    let pause = Duration::from_secs(control.config.parent_look_s.max(1));
    loop {
        for (zone, keys) in &control.view().zone_keys {
            let seen = look(control, zone).await;
            let goes_on = waits_for_ds(keys) && shows_the_announced(keys, &seen);
            control.parents.note(zone, seen);
            if !goes_on {
                continue;
            }
            match super::activate(control, zone).await {
                Ok(_) => tracing::info!(%zone, "the parent has the DS of the new key: it signs from now on"),
                Err(failure) => tracing::warn!(%zone, %failure, "the rollover waits"),
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Looks at one zone's parent now, and keeps what was seen.
pub async fn look_now(control: &Control, zone: &DomainName) -> AtTheParent {
    let seen = look(control, zone).await;
    control.parents.note(zone, seen.clone());
    seen
}

async fn look(control: &Control, zone: &DomainName) -> AtTheParent {
    let dns = match Dns::new(&control.config.resolvers) {
        Ok(dns) => dns,
        Err(failure) => return Found::Unknown(failure.to_string()),
    };
    match dns.ask(zone.as_str(), RecordType::DS).await {
        Found::There(data) => {
            let ds = data.into_iter().filter_map(|data| match data {
                // As bytes: the resolver's own DNSSEC, which knows the type, is not built in.
                RData::Unknown { code: RecordType::DS, rdata } => Some(rdata.anything),
                _ => None,
            });
            let ds: Vec<_> = ds.collect();
            if ds.is_empty() { Found::Absent } else { Found::There(ds) }
        }
        Found::Absent => Found::Absent,
        Found::Unknown(why) => Found::Unknown(why),
    }
}

/// What is at the parent, in words.
fn judge(keys: &ZoneKeys, seen: &AtTheParent) -> AtParent {
    let zone = &keys.id;
    let wanted = || {
        let lines = keys.for_parent().filter_map(|key| key.ds_text(zone));
        lines.map(|ds| format!("{zone}. IN DS {ds}")).collect::<Vec<_>>().join("; ")
    };
    let (state, says) = match seen {
        Found::Unknown(why) => (Delegation::Unknown, format!("what the parent has could not be seen: {why}")),
        Found::Absent => (
            Delegation::Insecure,
            format!(
                "no DS at the parent, so nobody checks signatures; give your registrar this line: {}",
                wanted()
            ),
        ),
        Found::There(ds) => {
            let ours = keys.keys.iter().filter(|key| ds.iter().any(|ds| is_of(ds, key, zone)));
            let ours: Vec<String> = ours.map(|key| key.tag.to_string()).collect();
            if ours.is_empty() {
                let says = format!(
                    "the parent's DS ({}) matches none of our keys, so who checks signatures takes no answer; give your registrar this line in its place: {}",
                    tags(ds),
                    wanted()
                );
                (Delegation::Broken, says)
            } else {
                (Delegation::Secure, format!("the parent has the DS of key {}", ours.join(", ")))
            }
        }
    };
    AtParent { state, says }
}

/// Whether the announced key may sign, when a person says that its DS is at the parent.
///
/// # Errors
/// [`Refused::NotAtParent`], [`Refused::Unseen`]. A parent without any DS is no obstacle: nobody checks, so nothing can break.
pub fn may_go_on(keys: &ZoneKeys, seen: &AtTheParent) -> Result<(), Refused> {
    // What else is wrong is told by the decision itself.
    if !waits_for_ds(keys) || shows_the_announced(keys, seen) {
        return Ok(());
    }
    match seen {
        Found::Absent => Ok(()),
        Found::There(ds) => Err(Refused::NotAtParent { zone: keys.id.clone(), shown: tags(ds) }),
        Found::Unknown(why) => Err(Refused::Unseen { zone: keys.id.clone(), why: why.clone() }),
    }
}

fn waits_for_ds(keys: &ZoneKeys) -> bool {
    keys.keys.iter().any(|key| key.state == ZoneKeyState::Announced)
}

fn shows_the_announced(keys: &ZoneKeys, seen: &AtTheParent) -> bool {
    let Found::There(ds) = seen else { return false };
    let mut announced = keys.keys.iter().filter(|key| key.state == ZoneKeyState::Announced);
    announced.any(|key| ds.iter().any(|ds| is_of(ds, key, &keys.id)))
}

/// Whether the DS is of this key: SHA-256 or SHA-384 (RFC 8624 §3.3; SHA-1 is not to be relied on).
fn is_of(ds: &[u8], key: &ZoneKey, zone: &DomainName) -> bool {
    let Some(dnskey) = key.dnskey() else { return false };
    let [high, low, algorithm, kind, digest @ ..] = ds else { return false };
    let signed = [wire_name(zone), dnskey].concat();
    let is_same = match kind {
        2 => Sha256::digest(&signed).as_slice() == digest,
        4 => Sha384::digest(&signed).as_slice() == digest,
        _ => false,
    };
    is_same
        && u16::from_be_bytes([*high, *low]) == key.tag
        && *algorithm == mashines_fleet::zone_key::ALGORITHM
}

fn tags(ds: &[Vec<u8>]) -> String {
    let tags = ds.iter().filter_map(|ds| Some(u16::from_be_bytes([*ds.first()?, *ds.get(1)?]).to_string()));
    format!("key {}", tags.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use mashines_fleet::sealed::EntrySecret;

    use super::*;
    use crate::zone_keys::new_key;

    fn zone() -> DomainName {
        "mashine.test".parse().unwrap()
    }

    fn key(state: ZoneKeyState) -> ZoneKey {
        new_key(&EntrySecret::random(), &zone(), state, &[]).unwrap()
    }

    fn keys(states: &[ZoneKeyState]) -> ZoneKeys {
        ZoneKeys { id: zone(), keys: states.iter().map(|state| key(*state)).collect() }
    }

    fn shows(keys: &[&ZoneKey]) -> AtTheParent {
        Found::There(keys.iter().map(|key| key.ds(&zone()).unwrap()).collect())
    }

    #[test]
    fn a_zone_is_secure_insecure_or_broken_by_what_its_parent_has() {
        let one = keys(&[ZoneKeyState::Active]);
        assert_eq!(judge(&one, &shows(&[&one.keys[0]])).state, Delegation::Secure);
        let line = format!("mashine.test. IN DS {}", one.keys[0].ds_text(&zone()).unwrap());
        let insecure = judge(&one, &Found::Absent);
        assert!(insecure.state == Delegation::Insecure && insecure.says.contains(&line), "{insecure:?}");
        let stranger = key(ZoneKeyState::Active);
        let broken = judge(&one, &shows(&[&stranger]));
        assert!(broken.state == Delegation::Broken && broken.says.contains(&line), "{broken:?}");
        assert!(broken.says.contains(&stranger.tag.to_string()), "{broken:?}");
        assert_eq!(judge(&one, &shows(&[&stranger, &one.keys[0]])).state, Delegation::Secure);
        assert_eq!(judge(&one, &Found::Unknown("silence".into())).state, Delegation::Unknown);
    }

    #[test]
    fn another_digest_of_our_key_counts_and_a_wrong_one_does_not() {
        let one = keys(&[ZoneKeyState::Active]);
        let key = &one.keys[0];
        let mut ds = key.ds(&zone()).unwrap();
        let digest = Sha384::digest([wire_name(&zone()), key.dnskey().unwrap()].concat());
        let longer = [&ds[..3], &[4], digest.as_slice()].concat();
        assert_eq!(judge(&one, &Found::There(vec![longer])).state, Delegation::Secure);
        *ds.last_mut().unwrap() ^= 1;
        assert_eq!(judge(&one, &Found::There(vec![ds, vec![], vec![1, 2, 3, 4]])).state, Delegation::Broken);
    }

    #[test]
    fn a_rollover_goes_on_only_with_the_new_ds_or_where_nobody_checks() {
        let two = keys(&[ZoneKeyState::Active, ZoneKeyState::Announced]);
        assert_eq!(may_go_on(&two, &shows(&[&two.keys[1]])), Ok(()));
        assert_eq!(may_go_on(&two, &shows(&[&two.keys[0], &two.keys[1]])), Ok(()));
        assert!(matches!(may_go_on(&two, &shows(&[&two.keys[0]])), Err(Refused::NotAtParent { .. })));
        assert!(matches!(may_go_on(&two, &Found::Unknown("silence".into())), Err(Refused::Unseen { .. })));
        assert_eq!(may_go_on(&two, &Found::Absent), Ok(()));
        // Whether a key waits at all is not this question.
        assert_eq!(may_go_on(&keys(&[ZoneKeyState::Active]), &Found::Unknown("silence".into())), Ok(()));
        assert!(
            !shows_the_announced(&two, &Found::Absent) && !shows_the_announced(&two, &shows(&[&two.keys[0]]))
        );
    }
}
