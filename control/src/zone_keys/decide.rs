//! The life of a zone's keys, as pure functions of the record and the clock.
//!
//! ```text
//!            time            the parent has its DS            time
//! Published ─────▶ Announced ─────────────────────▶ Active
//!                                      the old one: Retired ─────▶ gone
//! ```
//!
//! | step | when | why then |
//! | --- | --- | --- |
//! | → Announced | the DNSKEY set without it is in no cache | a resolver with the new DS must find the key in whichever set it holds |
//! | → Active | an operator, or control, saw its DS at the parent | data may be signed by it alone: every cached set has it |
//! | Retired → gone | no cache has the old DS, nor an answer signed by the old key | each of them still leads to a key of the set |
//!
//! All keys of the set sign the set ([`mashines_fleet::zone_key`]), so the order in which caches forget does not matter.

use std::time::Duration;

use mashines_fleet::id::DomainName;
use mashines_fleet::record::{UnixMs, ZoneKey, ZoneKeyState};
use serde::{Deserialize, Serialize};

use crate::time::{ms, rfc3339};

/// For how long caches may keep what they have heard of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// TTL of the DNSKEY set, seconds; at least what the name servers give it.
    pub dnskey_ttl_s: u64,
    /// TTL of the DS at the parent, seconds: a day at most registries.
    pub ds_ttl_s: u64,
    /// The longest TTL of any record of ours, seconds: owners choose up to a day.
    pub longest_ttl_s: u64,
    /// Until a change is at every name server and secondary, and clocks that differ, seconds.
    pub slack_s: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { dnskey_ttl_s: 3600, ds_ttl_s: 86_400, longest_ttl_s: 86_400, slack_s: 3600 }
    }
}

impl Timing {
    /// From a key's publication until no cache holds the set without it.
    fn published(&self) -> u64 {
        ms(Duration::from_secs(self.dnskey_ttl_s.saturating_add(self.slack_s)))
    }

    /// From a key's retirement until nothing leads to it.
    fn retired(&self) -> u64 {
        ms(Duration::from_secs(self.ds_ttl_s.max(self.longest_ttl_s).saturating_add(self.slack_s)))
    }
}

/// Why something about a rollover was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// One at a time.
    #[error("a rollover of this zone is under way ({0}): it ends by itself once the parent has the new DS")]
    UnderWay(String),
    /// Too early: some resolver could hold a DNSKEY set without the key.
    #[error(
        "key {tag} may go to the parent from {at} on: until then some resolvers hold the key set without it, and could not validate"
    )]
    TooEarly {
        /// The key.
        tag: u16,
        /// When, RFC 3339.
        at: String,
    },
    /// There is no key that waits for its DS.
    #[error(
        "no key of this zone waits for its DS at the parent: `mashines dns rollover ZONE` begins a rollover"
    )]
    NothingWaits,
    /// The parent has other DS.
    #[error(
        "the parent of {zone} has not got the new DS: it shows {shown}. `mashines dns ds {zone}` prints what it is to have; if every one of its servers \
         has it and only control does not see that: `mashines dns rollover {zone} --ds-seen --anyway`"
    )]
    NotAtParent {
        /// The zone.
        zone: DomainName,
        /// Whose DS it has.
        shown: String,
    },
    /// What it has is not known.
    #[error(
        "whether the parent of {zone} has the new DS could not be seen ({why}): look at `resolvers` in [control]; if every one of its servers has it: \
         `mashines dns rollover {zone} --ds-seen --anyway`"
    )]
    Unseen {
        /// The zone.
        zone: DomainName,
        /// What the resolver said.
        why: String,
    },
}

/// Does what time alone brings. Whether something changed.
pub fn advance(keys: &mut Vec<ZoneKey>, timing: &Timing, now: UnixMs) -> bool {
    let before = keys.len();
    keys.retain(|key| key.state != ZoneKeyState::Retired || now < key.since.saturating_add(timing.retired()));
    let mut changed = keys.len() != before;
    for key in keys.iter_mut() {
        if key.state == ZoneKeyState::Published && now >= key.since.saturating_add(timing.published()) {
            key.state = ZoneKeyState::Announced;
            key.since = now;
            changed = true;
        }
    }
    changed
}

/// Whether a rollover may begin.
///
/// # Errors
/// [`Refused::UnderWay`].
pub fn may_begin(keys: &[ZoneKey]) -> Result<(), Refused> {
    let other = keys.iter().find(|key| key.state != ZoneKeyState::Active);
    other.map_or(Ok(()), |key| Err(Refused::UnderWay(format!("key {} is {}", key.tag, word(key.state)))))
}

/// The parent has the DS of the announced key: it signs from now on.
///
/// # Errors
/// [`Refused::TooEarly`], [`Refused::NothingWaits`].
pub fn ds_seen(keys: &mut [ZoneKey], timing: &Timing, now: UnixMs) -> Result<(), Refused> {
    if !keys.iter().any(|key| key.state == ZoneKeyState::Announced) {
        let early = keys.iter().find(|key| key.state == ZoneKeyState::Published);
        return Err(early.map_or(Refused::NothingWaits, |key| Refused::TooEarly {
            tag: key.tag,
            at: rfc3339(key.since.saturating_add(timing.published())),
        }));
    }
    for key in keys {
        key.state = match key.state {
            ZoneKeyState::Announced => ZoneKeyState::Active,
            ZoneKeyState::Active => ZoneKeyState::Retired,
            ZoneKeyState::Published | ZoneKeyState::Retired => continue,
        };
        key.since = now;
    }
    Ok(())
}

/// What a person does next, if anything.
pub fn next_step(zone: &str, keys: &[ZoneKey], timing: &Timing) -> String {
    let of = |state| keys.iter().find(|key| key.state == state);
    if let Some(key) = of(ZoneKeyState::Published) {
        let at = rfc3339(key.since.saturating_add(timing.published()));
        return format!("wait until {at}: then the DS of key {} goes to the parent", key.tag);
    }
    if let Some(key) = of(ZoneKeyState::Announced) {
        return format!(
            "give the parent the DS of key {} in place of the old (`mashines dns ds {zone}`); control looks for it and goes on once it is there",
            key.tag
        );
    }
    if let Some(key) = of(ZoneKeyState::Retired) {
        let at = rfc3339(key.since.saturating_add(timing.retired()));
        return format!("nothing: key {} goes at {at}", key.tag);
    }
    "nothing; `mashines dns ds` prints what the parent is to have".to_owned()
}

/// The state as the API writes it.
pub fn word(state: ZoneKeyState) -> &'static str {
    match state {
        ZoneKeyState::Published => "published",
        ZoneKeyState::Announced => "announced",
        ZoneKeyState::Active => "active",
        ZoneKeyState::Retired => "retired",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mashines_fleet::key::Key;
    use mashines_fleet::record::ZoneKeys;
    use mashines_fleet::sealed::EntrySecret;
    use proptest::prelude::*;

    use super::*;

    const TIMING: Timing = Timing { dnskey_ttl_s: 10, ds_ttl_s: 30, longest_ttl_s: 20, slack_s: 5 };

    fn key(tag: u16, state: ZoneKeyState, since: UnixMs) -> ZoneKey {
        let zone = Key::ZoneKeys("mashine.test".parse().unwrap());
        let secret = EntrySecret::random().seal(&zone, b"").unwrap();
        ZoneKey { tag, public: String::new(), secret, state, since }
    }

    #[test]
    fn a_rollover_goes_its_way_and_no_other() {
        let mut keys = vec![key(1, ZoneKeyState::Active, 0)];
        may_begin(&keys).unwrap();
        assert_eq!(ds_seen(&mut keys, &TIMING, 1), Err(Refused::NothingWaits));
        keys.push(key(2, ZoneKeyState::Published, 1000));
        assert!(matches!(may_begin(&keys), Err(Refused::UnderWay(_))));
        assert!(matches!(ds_seen(&mut keys, &TIMING, 2000), Err(Refused::TooEarly { tag: 2, .. })));
        assert!(!advance(&mut keys, &TIMING, 15_999));
        assert!(advance(&mut keys, &TIMING, 16_000));
        ds_seen(&mut keys, &TIMING, 40_000).unwrap();
        assert_eq!(
            keys.iter().map(|k| (k.tag, k.state)).collect::<Vec<_>>(),
            [(1, ZoneKeyState::Retired), (2, ZoneKeyState::Active)]
        );
        assert!(matches!(may_begin(&keys), Err(Refused::UnderWay(_))));
        assert!(!advance(&mut keys, &TIMING, 74_999));
        assert!(advance(&mut keys, &TIMING, 75_000));
        assert_eq!(keys.len(), 1);
        may_begin(&keys).unwrap();
    }

    /// The DNSKEY set with who signed it, and who signed the data: what a resolver can have fetched at a moment.
    #[derive(Clone)]
    struct Shown {
        set: BTreeSet<u16>,
        signs_data: BTreeSet<u16>,
        /// At the parent.
        ds: BTreeSet<u16>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Begin,
        /// The parent takes what CDS says, or an operator hands it over.
        Parent,
        Confirm,
        /// Control does not run for so many seconds.
        Down(u64),
        Nothing,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => Just(Event::Begin), 2 => Just(Event::Parent), 2 => Just(Event::Confirm),
            1 => (1u64..60).prop_map(Event::Down), 6 => Just(Event::Nothing)
        ]
    }

    proptest! {
        /// At every second, a resolver may hold a DS set, a DNSKEY set and a signed answer, each from any moment within its TTL.
        /// Whatever the combination, the DS leads to a key that signed the set, and the set has the key that signed the answer.
        #[test]
        fn whatever_a_cache_still_holds_validates(events in proptest::collection::vec((1u64..12, event()), 1..40)) {
            let zone: mashines_fleet::id::DomainName = "mashine.test".parse().unwrap();
            let mut keys = vec![key(1, ZoneKeyState::Active, 0)];
            let mut parent: BTreeSet<u16> = [1].into();
            let mut history: Vec<Shown> = Vec::new();
            let (mut tag, mut down_until) = (1, 0);
            let mut wait = events.iter().flat_map(|(gap, event)| {
                std::iter::repeat_n(Event::Nothing, usize::try_from(*gap).unwrap()).chain([*event])
            });
            for second in 0u64.. {
                let Some(event) = wait.next() else { break };
                let now = second * 1000;
                match event {
                    Event::Begin if may_begin(&keys).is_ok() && second >= down_until => {
                        tag += 1;
                        keys.push(key(tag, ZoneKeyState::Published, now));
                    }
                    Event::Parent => {
                        let records = ZoneKeys { id: zone.clone(), keys: keys.clone() };
                        parent = records.for_parent().map(|key| key.tag).collect();
                    }
                    Event::Confirm => {
                        // An operator confirms what is so.
                        let announced = keys.iter().find(|k| k.state == ZoneKeyState::Announced);
                        if announced.is_none_or(|k| parent.contains(&k.tag)) {
                            let _ = ds_seen(&mut keys, &TIMING, now);
                        }
                    }
                    Event::Down(seconds) => down_until = second + seconds,
                    Event::Begin | Event::Nothing => {}
                }
                if second >= down_until {
                    advance(&mut keys, &TIMING, now);
                }
                let records = ZoneKeys { id: zone.clone(), keys: keys.clone() };
                let signs_data: BTreeSet<u16> = records.signing().map(|key| key.tag).collect();
                prop_assert_eq!(signs_data.len(), 1);
                history.push(Shown { set: keys.iter().map(|k| k.tag).collect(), signs_data, ds: parent.clone() });
                let within = |ttl: u64| history.iter().rev().take(usize::try_from(ttl).unwrap() + 1);
                let sets: Vec<&BTreeSet<u16>> = within(TIMING.dnskey_ttl_s).map(|shown| &shown.set).collect();
                for ds in within(TIMING.ds_ttl_s).map(|shown| &shown.ds) {
                    prop_assert!(sets.iter().all(|set| ds.intersection(set).next().is_some()), "at {}: DS {:?}, sets {:?}", second, ds, sets);
                }
                // A validator behind a forwarder gets cached answers together with a set of any age, and the other way round.
                for signer in within(TIMING.longest_ttl_s).flat_map(|shown| &shown.signs_data) {
                    prop_assert!(keys.iter().any(|key| key.tag == *signer), "at {}: key {} is gone", second, signer);
                }
                for signer in history.last().iter().flat_map(|shown| &shown.signs_data) {
                    prop_assert!(sets.iter().all(|set| set.contains(signer)), "at {}: key {} is unknown to a cache", second, signer);
                }
            }
        }
    }
}
