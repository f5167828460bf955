//! The table of [`next`] by example, and a fleet in miniature for what must never happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mashines_fleet::id::DomainName;
use mashines_fleet::issuance::{FAILURES_SPAN, LEASE, MOST_FAILURES, MOST_ORDERS, ORDERS_SPAN};
use mashines_fleet::key::Key;
use mashines_fleet::record::{AcmeAccount, CertificateLease, FleetConfig};
use mashines_fleet::sealed::EntrySecret;
use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn certificate(name: &str) -> Certificate {
    serde_json::from_value(serde_json::json!({
        "id": name, "names": [name], "source": "acme", "created_at": 0,
    }))
    .unwrap()
}

fn issued(name: &str, from: u64, to: u64) -> Certificate {
    Certificate {
        chain_pem: Some(String::new()),
        issuer: Some("one".to_owned()),
        not_before: Some(from),
        not_after: Some(to),
        ..certificate(name)
    }
}

fn account(issuer: &str) -> AcmeAccount {
    let id: IssuerName = issuer.parse().unwrap();
    let credentials = EntrySecret::random().seal(&Key::AcmeAccount(id.clone()), b"").unwrap();
    AcmeAccount {
        id,
        directory: String::new(),
        credentials,
        orders: vec![],
        failures: BTreeMap::new(),
        paused_until: None,
        paused: BTreeMap::new(),
        rollover: None,
        key_since: None,
        created_at: 0,
    }
}

fn view() -> View {
    let config: FleetConfig = serde_json::from_value(serde_json::json!({
        "domain": "mashine.test", "prefix": "2001:db8::/32", "name_servers": [], "ssh_ports": [1, 2], "ssh_ca": null,
    }))
    .unwrap();
    View { config: Some(Arc::new(config)), ..View::default() }
}

fn issuers() -> Vec<IssuerName> {
    ["one", "two"].map(|name| name.parse().unwrap()).to_vec()
}

fn step(certificate: &Certificate, view: &View, now: u64) -> Step {
    let issuers = issuers();
    next(
        certificate,
        view,
        Policy { issuers: &issuers, failures_before_next: 3 },
        &"me".parse().unwrap(),
        now,
    )
}

#[test]
fn a_certificate_that_is_wanted_is_ordered_and_one_that_is_good_rests_until_it_is_due() {
    assert_eq!(step(&certificate("*.mashine.test"), &view(), 5), Step::Order(0));
    let good = issued("*.mashine.test", 0, 90 * DAY);
    assert_eq!(step(&good, &view(), 5), Step::Until(60 * DAY));
    assert_eq!(step(&good, &view(), 60 * DAY), Step::Order(0));
    let planned = Certificate { renew_at: Some(9 * DAY), ask_window_at: Some(DAY), ..good.clone() };
    assert_eq!(step(&planned, &view(), 5), Step::Until(DAY));
    assert_eq!(step(&planned, &view(), DAY), Step::AskWindow);
    assert_eq!(step(&planned, &view(), 9 * DAY), Step::Order(0));
    let never = Certificate { renew_at: Some(u64::MAX), ..good };
    assert_eq!(
        step(&never, &view(), 90 * DAY),
        Step::Order(0),
        "whatever was written down, its end is its end"
    );
}

#[test]
fn failures_lead_to_the_next_issuer_and_back_and_a_pause_to_another() {
    let failed = |failures| Certificate { failures, ..certificate("*.mashine.test") };
    for (failures, issuer) in [(0, 0), (2, 0), (3, 1), (5, 1), (6, 0)] {
        assert_eq!(step(&failed(failures), &view(), 0), Step::Order(issuer), "{failures}");
    }
    let mut view = view();
    let paused = AcmeAccount { paused_until: Some(7 * HOUR), ..account("one") };
    view.acme_accounts.insert(paused.id.clone(), Arc::new(paused));
    assert_eq!(step(&failed(0), &view, 0), Step::Order(1));
    let paused = AcmeAccount { paused_until: Some(3 * HOUR), ..account("two") };
    view.acme_accounts.insert(paused.id.clone(), Arc::new(paused));
    assert_eq!(step(&failed(0), &view, 0), Step::Until(3 * HOUR));
    // A limit of one certificate stops no other.
    let mut limited = account("one");
    limited.note_pause(Some(&"*.mashine.test".parse().unwrap()), 5 * HOUR, 0);
    view.acme_accounts.insert(limited.id.clone(), Arc::new(limited));
    assert_eq!(step(&failed(0), &view, 0), Step::Until(3 * HOUR));
    assert_eq!(step(&certificate("mashine.test"), &view, 0), Step::Order(0));
}

#[test]
fn nothing_is_done_for_what_is_anothers_to_do() {
    let held = |holder: &str| Certificate {
        lease: Some(CertificateLease { holder: holder.parse().unwrap(), until: 50 }),
        ..certificate("*.mashine.test")
    };
    assert_eq!(step(&held("other"), &view(), 49), Step::Until(50));
    assert_eq!(step(&held("other"), &view(), 50), Step::Order(0), "it died");
    assert_eq!(step(&held("me"), &view(), 49), Step::Order(0), "we died and are back");
    let brought = Certificate { source: CertificateSource::Imported, ..issued("*.mashine.test", 0, 1) };
    assert_eq!(step(&brought, &view(), 9), Step::Nothing);
    let tenants =
        Certificate { account: Some("ann".parse().unwrap()), ..certificate("www.customer.example") };
    assert_eq!(step(&tenants, &view(), 9), Step::Nothing, "no machine, no proof");
}

#[test]
fn pauses_grow_and_are_shorter_for_what_serves_and_must_go_on() {
    let failed = |failures| Certificate { failures, ..certificate("*.mashine.test") };
    let invalid = Fault::Invalid { names: vec![], what: String::new() };
    let gone = Fault::Unreachable(String::new());
    let after = |failures, fault: &Fault| try_again(&failed(failures), fault, 0, 0.0);
    assert_eq!([0, 1, 2].map(|n| after(n, &invalid)), [5 * 60_000, 10 * 60_000, 20 * 60_000]);
    assert_eq!([0, 1, 2].map(|n| after(n, &gone)), [60_000, 120_000, 240_000]);
    assert_eq!(after(60, &gone), DAY);
    let serving = Certificate { failures: 60, ..issued("*.mashine.test", 0, DAY) };
    assert_eq!(try_again(&serving, &gone, 0, 0.0), 6 * HOUR);
    assert!(try_again(&failed(0), &gone, 0, 1.0) <= 75_000);
}

/// A fleet in miniature: the records, an issuer that fails when it is told to, and entries that work, die and come back.
struct World {
    view: View,
    now: u64,
    /// What each entry believes to be at work on, until when its work takes, and how it ends.
    at_work: BTreeMap<HostId, (DomainName, usize, u64, bool)>,
    /// Orders that an issuer saw, and failures of names.
    orders: BTreeMap<usize, Vec<u64>>,
    failures: BTreeMap<(usize, DomainName), Vec<u64>>,
    life: u64,
}

impl World {
    fn put(&mut self, certificate: Certificate) {
        self.view.certificates.insert(certificate.id.clone(), Arc::new(certificate));
    }

    fn record(&self, name: &DomainName) -> Certificate {
        (*self.view.certificates[name]).clone()
    }

    /// What `work` does: lease, look again under it, count the order, in control's transactions.
    fn begin(&mut self, me: &HostId, name: &DomainName, takes: u64, succeeds: bool) {
        let issuers = issuers();
        let policy = Policy { issuers: &issuers, failures_before_next: 3 };
        let mut record = self.record(name);
        if record.take(me, self.now).is_err() {
            return;
        }
        self.put(record.clone());
        match next(&record, &self.view, policy, me, self.now) {
            Step::Order(n) => {
                let mut account = (*self.view.acme_accounts[&issuers[n]]).clone();
                if account.admit(&record, self.now).is_ok() {
                    account.note_order(self.now);
                    self.orders.entry(n).or_default().push(self.now);
                    self.view.acme_accounts.insert(account.id.clone(), Arc::new(account));
                    self.at_work.insert(me.clone(), (name.clone(), n, self.now + takes, succeeds));
                    return;
                }
            }
            Step::AskWindow => record.ask_window_at = Some(self.now + DAY),
            Step::Nothing | Step::Until(_) => {}
        }
        record.lease = None;
        self.put(record);
    }

    /// Its work is done: the outcome is written, if the lease is still its own.
    fn finish(&mut self, me: &HostId) {
        let Some((name, n, _, succeeds)) = self.at_work.remove(me) else { return };
        let mut record = self.record(&name);
        if !record.is_held(me, self.now) {
            return;
        }
        record.lease = None;
        if succeeds {
            record.chain_pem = Some(String::new());
            record.issuer = Some(issuers()[n].to_string());
            (record.not_before, record.not_after) = (Some(self.now), Some(self.now + self.life));
            record.renew_at = Some(self.now + self.life / 100 * 63);
            (record.failures, record.next_try_at) = (0, None);
        } else {
            let fault = Fault::Invalid { names: vec![name.clone()], what: String::new() };
            let mut account = (*self.view.acme_accounts[&issuers()[n]]).clone();
            account.note_failure(&name, self.now);
            self.failures.entry((n, name.base())).or_default().push(self.now);
            self.view.acme_accounts.insert(account.id.clone(), Arc::new(account));
            record.next_try_at = Some(try_again(&record, &fault, self.now, 0.5));
            record.failures += 1;
        }
        self.put(record);
    }
}

/// The most of these within a span.
fn most_within(times: &[u64], span: u64) -> usize {
    times
        .iter()
        .map(|from| times.iter().filter(|at| (*from..from + span).contains(at)).count())
        .max()
        .unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn never_two_at_work_never_over_a_limit_and_always_renewed_before_the_end(
        seed in prop::collection::vec((0_usize..3, 0_u64..90_000, 0_u32..100, any::<bool>()), 64),
        failing in 0_u32..60, hours in prop::sample::select(vec![160_u64, 1080, 2160]),
    ) {
        let entries: Vec<HostId> = ["a", "b", "c"].map(|id| id.parse().unwrap()).to_vec();
        let names: Vec<DomainName> =
            ["*.mashine.test", "mashine.test", "x.mashine.test"].map(|name| name.parse().unwrap()).to_vec();
        let mut world = World {
            view: view(), now: 1000 * DAY, at_work: BTreeMap::new(), orders: BTreeMap::new(),
            failures: BTreeMap::new(), life: hours * HOUR,
        };
        for name in &names {
            world.put(certificate(name.as_str()));
        }
        for issuer in issuers() {
            world.view.acme_accounts.insert(issuer.clone(), Arc::new(account(issuer.as_str())));
        }
        let issuers = issuers();
        let policy = Policy { issuers: &issuers, failures_before_next: 3 };
        let mut first: BTreeSet<DomainName> = BTreeSet::new();
        for round in 0..2500_usize {
            let (who, takes, dice, dies) = seed[round % seed.len()];
            let me = &entries[(who + round) % entries.len()];
            // Work that is done is told, by whoever lives.
            for entry in &entries {
                if world.at_work.get(entry).is_some_and(|(_, _, until, _)| *until <= world.now) {
                    world.finish(entry);
                }
            }
            if dies && dice < 20 {
                world.at_work.remove(me);
            }
            if !world.at_work.contains_key(me) {
                let due = names.iter().find(|name| {
                    matches!(next(&world.record(name), &world.view, policy, me, world.now), Step::Order(_))
                });
                if let Some(name) = due.cloned() {
                    world.begin(me, &name, takes, (dice + u32::try_from(round % 7).unwrap() * 13) % 100 >= failing);
                }
            }
            // Who works keeps the lease.
            for (entry, (name, ..)) in world.at_work.clone() {
                let mut record = world.record(&name);
                if record.is_held(&entry, world.now) {
                    record.take(&entry, world.now).unwrap();
                    world.put(record);
                }
            }
            let holders: Vec<&DomainName> = world
                .at_work
                .iter()
                .filter(|(entry, (name, ..))| world.record(name).is_held(entry, world.now))
                .map(|(_, (name, ..))| name)
                .collect();
            prop_assert_eq!(holders.iter().collect::<BTreeSet<_>>().len(), holders.len(), "two at one certificate");
            for name in &names {
                let record = world.record(name);
                if record.chain_pem.is_some() {
                    first.insert(name.clone());
                }
                // An issuer that refuses most of the time may do so for as long as a short life lasts: nobody can renew then.
                let served = !first.contains(name) || record.is_good(world.now);
                prop_assert!(served || failing >= 10, "{name} ended without a successor");
                // And it was not for want of trying.
                prop_assert!(served || record.failures >= 4, "{name} ended after {} tries", record.failures);
            }
            // Work goes by seconds; while all rest, the time goes by hours.
            world.now += if world.at_work.is_empty() { HOUR } else { u64::try_from(LEASE.as_millis()).unwrap() / 4 };
        }
        prop_assert_eq!(first.len(), names.len(), "each was had some time");
        for times in world.orders.values() {
            prop_assert!(most_within(times, u64::try_from(ORDERS_SPAN.as_millis()).unwrap()) <= MOST_ORDERS);
        }
        for ((_, name), times) in &world.failures {
            let most = most_within(times, u64::try_from(FAILURES_SPAN.as_millis()).unwrap());
            prop_assert!(most <= MOST_FAILURES, "{name}: {most} failures in an hour");
        }
    }
}
