use proptest::prelude::*;
use serde_json::json;

use super::*;

fn account(id: &str, admin: bool) -> Change {
    let value = json!({"id": id, "ssh_keys": [], "private_prefix": "fd00::", "admin": admin});
    Change { key: format!("accounts/{id}"), value: Some(value) }
}

#[test]
fn an_old_batch_changes_nothing() {
    let mut view = View::default();
    view.apply(&Batch { revision: 5, changes: vec![account("ann", true)] });
    let before = view.clone();
    view.apply(&Batch { revision: 5, changes: vec![account("bob", true)] });
    view.apply(&Batch { revision: 4, changes: vec![account("ann", false)] });
    assert_eq!(view, before);
}

#[test]
fn a_record_that_does_not_decode_leaves_the_older_one_and_is_told() {
    let mut view = View::default();
    view.apply(&Batch { revision: 1, changes: vec![account("ann", true)] });
    let broken = Change { key: "accounts/ann".into(), value: Some(json!({"id": 7})) };
    let skipped = view.apply(&Batch { revision: 2, changes: vec![broken, account("bob", false)] });
    assert_eq!(skipped.len(), 1);
    assert!(view.accounts.values().any(|a| a.admin), "ann's older record stays");
    assert_eq!(view.accounts.len(), 2, "the rest of the batch is applied");
}

#[test]
fn kinds_of_a_newer_version_are_passed_over() {
    let mut view = View::default();
    let foreign = Change { key: "kinds-to-come/x".into(), value: Some(json!({})) };
    assert!(view.apply(&Batch { revision: 1, changes: vec![foreign] }).is_empty());
    assert_eq!(view.revision, 1);
}

fn machine(id: u64, state: &str) -> Change {
    let value = json!({
        "id": format!("{id:014x}"), "slug": format!("m{id}"), "account": "ann", "app": "web", "instance_id": "i",
        "config": {"image": "x", "guest": {"cpus": 1, "memory_mb": 256}}, "image_digest": "", "desired": "started", "state": state,
        "place": null, "created_at": 0, "updated_at": 0,
        "net": {"ipv6": "2001:db8::1", "private6": "fd00::9", "mac": "02:00:00:00:00:01", "ssh_port": null},
    });
    Change { key: format!("machines/{id:014x}"), value: Some(value) }
}

/// What changed, as a value: which objects before and after.
fn told<'a>(found: Vec<Difference<'a, Machine>>) -> Vec<(Option<*const Machine>, Option<*const Machine>)> {
    let place = |machine: Option<&'a Arc<Machine>>| machine.map(Arc::as_ptr);
    let mut all: Vec<_> = found.into_iter().map(|(old, new)| (place(old), place(new))).collect();
    all.sort_unstable();
    all
}

#[derive(Debug, Clone)]
enum Step {
    /// The newest view takes a batch: machines put or deleted, and an account.
    Batch(Vec<(u64, bool)>),
    /// A view of earlier takes a batch of its own, and is the newest from then on.
    Fork(usize, u64),
    /// Begun anew with the same records: a snapshot.
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec((0u64..6, any::<bool>()), 0..4).prop_map(Step::Batch),
        1 => (any::<prop::sample::Index>(), 0u64..6).prop_map(|(at, id)| Step::Fork(at.index(1000), id)),
        1 => Just(Step::Snapshot),
    ]
}

proptest! {
    #[test]
    fn what_is_remembered_of_changes_is_what_a_walk_over_all_finds(steps in prop::collection::vec(step(), 1..30)) {
        let mut views = vec![View::default()];
        for (at, step) in steps.into_iter().enumerate() {
            let mut next = views.last().unwrap().clone();
            let revision = u64::try_from(at).unwrap() + 1;
            match step {
                Step::Batch(machines) => {
                    let put = |(id, there): (u64, bool)| {
                        let mut change = machine(id, "started");
                        change.value = change.value.filter(|_| there);
                        change
                    };
                    let mut changes: Vec<Change> = machines.into_iter().map(put).collect();
                    changes.push(account("ann", at % 2 == 0));
                    next.apply(&Batch { revision, changes });
                }
                Step::Fork(from, id) => {
                    next = views[from % views.len()].clone();
                    next.apply(&Batch { revision, changes: vec![machine(id, "stopped")] });
                }
                Step::Snapshot => next.apply_change(&account("ann", true)).unwrap(),
            }
            for before in &views {
                prop_assert_eq!(told(next.changed_machines(before)), told(differences(&before.machines, &next.machines)));
                let mut behind = before.clone();
                if behind.catch_up(&next) {
                    prop_assert_eq!(&behind, &next);
                    prop_assert!(told(differences(&behind.machines, &next.machines)).is_empty(), "the very same records");
                }
            }
            views.push(next);
        }
    }
}

#[test]
fn who_looks_after_more_changes_than_are_remembered_compares_all() {
    let mut view = View::default();
    view.apply(&Batch { revision: 1, changes: vec![machine(1, "started")] });
    let before = view.clone();
    for revision in 2..2000 {
        view.apply(&Batch { revision, changes: vec![machine(revision % 7 + 2, "started")] });
    }
    assert!(!before.clone().catch_up(&view));
    assert_eq!(view.changed_machines(&before).len(), 7);
    let (near, mut behind) = (view.clone(), view.clone());
    view.apply(&Batch { revision: 2000, changes: vec![machine(3, "stopped")] });
    assert!(behind.catch_up(&view));
    assert_eq!((behind, view.changed_machines(&near).len()), (view.clone(), 1));
}
