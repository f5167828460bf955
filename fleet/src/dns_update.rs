//! A dynamic update (RFC 2136) of what an owner put at `_acme-challenge` below a machine's name, as a name server hands it to control.
//!
//! The name server reads the packet and verifies its signature; control holds the conditions against the record and changes it in the
//! same transaction. The scope is looked at on both sides: a name server that errs opens nothing.

use serde::{Deserialize, Serialize};

use crate::id::MachineId;
use crate::own_record::{self, LEAST_TTL, MOST_TTL};
use crate::record::OwnRecord;

/// Where the internal API takes it; answer: [`Updated`].
pub const PATH: &str = "/internal/v1/dns/update";

/// The name below which a key may change TXT records.
pub const SCOPE: &str = "_acme-challenge";

/// The most conditions and changes of one update, each.
pub const MOST: usize = 64;

/// One update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Whose records.
    pub machine: MachineId,
    /// What must be so before anything is changed (§2.4).
    pub conditions: Vec<Condition>,
    /// What is changed (§2.5), in this order.
    pub changes: Vec<Change>,
}

/// A prerequisite. Names are relative to the machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Condition {
    /// There is something (§2.4.4).
    NameInUse {
        /// At this name.
        name: String,
    },
    /// There is nothing (§2.4.5).
    NameNotInUse {
        /// At this name.
        name: String,
    },
    /// There are records of the type (§2.4.1).
    RrsetExists {
        /// At this name.
        name: String,
        /// `TXT`.
        kind: String,
    },
    /// There are none (§2.4.3).
    RrsetAbsent {
        /// At this name.
        name: String,
        /// `TXT`.
        kind: String,
    },
    /// There are exactly these TXT records (§2.4.2).
    TxtIs {
        /// At this name.
        name: String,
        /// As in a zone file.
        data: Vec<String>,
    },
}

/// A change. Names are relative to the machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Change {
    /// §2.5.1.
    Add {
        /// At this name.
        name: String,
        /// Seconds; brought into what owners may choose.
        ttl: u32,
        /// As in a zone file.
        data: String,
    },
    /// §2.5.2 and §2.5.3: all TXT records of a name; others are not the key's.
    RemoveAll {
        /// At this name.
        name: String,
    },
    /// §2.5.4.
    Remove {
        /// At this name.
        name: String,
        /// As in a zone file.
        data: String,
    },
}

impl Condition {
    fn name(&self) -> &str {
        match self {
            Self::NameInUse { name }
            | Self::NameNotInUse { name }
            | Self::RrsetExists { name, .. }
            | Self::RrsetAbsent { name, .. }
            | Self::TxtIs { name, .. } => name,
        }
    }
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Self::Add { name, .. } | Self::RemoveAll { name } | Self::Remove { name, .. } => name,
        }
    }
}

/// How it went: the response codes of RFC 2136 §2.2 that control can come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// NOERROR.
    Done,
    /// YXDOMAIN: a name is in use that should not be.
    NameInUse,
    /// NXDOMAIN: a name is not in use that should be.
    NameNotInUse,
    /// YXRRSET: records are there that should not be.
    RrsetExists,
    /// NXRRSET: records are not there that should be.
    RrsetAbsent,
    /// REFUSED: outside of the key's scope, or more than a machine may have.
    Refused,
}

/// Control's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updated {
    /// How it went.
    pub outcome: Outcome,
    /// A revision of the store that has it.
    pub revision: u64,
}

/// Whether a key may look at and change a name, relative to its machine's: `_acme-challenge` and what is below.
pub fn in_scope(name: &str) -> bool {
    name == SCOPE || name.strip_suffix(SCOPE).is_some_and(|below| below.ends_with('.'))
}

/// Holds the conditions against `records` and makes the changes. Unless the outcome is [`Outcome::Done`], nothing has changed.
pub fn apply(records: &mut Vec<OwnRecord>, update: &Update) -> Outcome {
    let mut names =
        update.conditions.iter().map(Condition::name).chain(update.changes.iter().map(Change::name));
    let too_long = update.conditions.len() > MOST || update.changes.len() > MOST;
    if too_long || !names.all(in_scope) {
        return Outcome::Refused;
    }
    if let Some(unmet) = update.conditions.iter().find_map(|condition| unmet(records, condition)) {
        return unmet;
    }
    let mut next = records.clone();
    for change in &update.changes {
        if !make(&mut next, change) {
            return Outcome::Refused;
        }
    }
    *records = next;
    Outcome::Done
}

fn unmet(records: &[OwnRecord], condition: &Condition) -> Option<Outcome> {
    let at = |name: &str| records.iter().filter(move |record| record.name == name).collect::<Vec<_>>();
    let of = |name: &str, kind: &str| at(name).iter().any(|record| record.kind == kind);
    let (holds, otherwise) = match condition {
        Condition::NameInUse { name } => (!at(name).is_empty(), Outcome::NameNotInUse),
        Condition::NameNotInUse { name } => (at(name).is_empty(), Outcome::NameInUse),
        Condition::RrsetExists { name, kind } => (of(name, kind), Outcome::RrsetAbsent),
        Condition::RrsetAbsent { name, kind } => (!of(name, kind), Outcome::RrsetExists),
        Condition::TxtIs { name, data } => (is_exactly(&at(name), data), Outcome::RrsetAbsent),
    };
    (!holds).then_some(otherwise)
}

fn txt(name: &str, data: &str) -> OwnRecord {
    OwnRecord { name: name.to_owned(), kind: "TXT".to_owned(), ttl: LEAST_TTL, data: data.to_owned() }
}

fn is_exactly(there: &[&OwnRecord], data: &[String]) -> bool {
    let bytes = |record: &OwnRecord| own_record::encode(record).ok().map(|encoded| encoded.bytes);
    let mut has: Vec<_> =
        there.iter().filter(|record| record.kind == "TXT").map(|record| bytes(record)).collect();
    let mut wanted: Vec<_> = data.iter().map(|data| bytes(&txt("", data))).collect();
    has.sort();
    wanted.sort();
    wanted.dedup();
    has == wanted
}

/// Whether it could be made.
fn make(records: &mut Vec<OwnRecord>, change: &Change) -> bool {
    match change {
        Change::Add { name, ttl, data } => {
            // §3.4.2.2: what is added beside an alias is passed over in silence.
            if records.iter().any(|record| record.name == *name && record.kind == "CNAME") {
                return true;
            }
            let record = OwnRecord { ttl: (*ttl).clamp(LEAST_TTL, MOST_TTL), ..txt(name, data) };
            own_record::add(records, &record).is_ok()
        }
        Change::RemoveAll { name } => own_record::remove(records, name, Some("TXT"), None).is_ok(),
        Change::Remove { name, data } => own_record::remove(records, name, Some("TXT"), Some(data)).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "_acme-challenge";

    fn update(conditions: Vec<Condition>, changes: Vec<Change>) -> Update {
        Update { machine: MachineId::random(), conditions, changes }
    }

    fn add(name: &str, data: &str) -> Change {
        Change::Add { name: name.into(), ttl: 1, data: data.into() }
    }

    #[test]
    fn the_scope_is_the_challenge_name_and_what_is_below() {
        for (name, inside) in [
            (AT, true),
            ("a._acme-challenge", true),
            ("", false),
            ("x_acme-challenge", false),
            ("_acme-challenge.www", false),
            ("www", false),
        ] {
            assert_eq!(in_scope(name), inside, "{name}");
            let mut records = vec![];
            let outcome = apply(&mut records, &update(vec![], vec![add(name, "x")]));
            assert_eq!(outcome == Outcome::Done, inside, "{name}");
            assert_eq!(records.len(), usize::from(inside));
        }
    }

    #[test]
    fn conditions_come_before_changes_and_an_update_is_whole_or_nothing() {
        let mut records = vec![];
        let name = || AT.to_owned();
        let kind = || "TXT".to_owned();
        let try_with =
            |records: &mut Vec<OwnRecord>, condition| apply(records, &update(vec![condition], vec![]));
        assert_eq!(try_with(&mut records, Condition::NameInUse { name: name() }), Outcome::NameNotInUse);
        assert_eq!(try_with(&mut records, Condition::NameNotInUse { name: name() }), Outcome::Done);
        assert_eq!(apply(&mut records, &update(vec![], vec![add(AT, "a"), add(AT, "\"b\"")])), Outcome::Done);
        assert!(records.iter().all(|record| record.ttl == LEAST_TTL));
        assert_eq!(try_with(&mut records, Condition::NameNotInUse { name: name() }), Outcome::NameInUse);
        assert_eq!(
            try_with(&mut records, Condition::RrsetExists { name: name(), kind: kind() }),
            Outcome::Done
        );
        assert_eq!(
            try_with(&mut records, Condition::RrsetExists { name: name(), kind: "A".into() }),
            Outcome::RrsetAbsent
        );
        assert_eq!(
            try_with(&mut records, Condition::RrsetAbsent { name: name(), kind: kind() }),
            Outcome::RrsetExists
        );
        let is = |data: &[&str]| Condition::TxtIs {
            name: name(),
            data: data.iter().map(|d| (*d).to_owned()).collect(),
        };
        assert_eq!(try_with(&mut records, is(&["b", "a"])), Outcome::Done);
        assert_eq!(try_with(&mut records, is(&["a"])), Outcome::RrsetAbsent);
        let before = records.clone();
        let half = update(vec![], vec![Change::RemoveAll { name: name() }, add("www", "x")]);
        assert_eq!(apply(&mut records, &half), Outcome::Refused);
        assert_eq!(records, before);
        let swap = update(vec![], vec![Change::Remove { name: name(), data: "a".into() }, add(AT, "c")]);
        assert_eq!(apply(&mut records, &swap), Outcome::Done);
        assert_eq!(records.iter().map(|r| r.data.as_str()).collect::<Vec<_>>(), ["\"b\"", "c"]);
        assert_eq!(
            apply(&mut records, &update(vec![], vec![Change::RemoveAll { name: name() }])),
            Outcome::Done
        );
        assert!(records.is_empty());
    }

    #[test]
    fn what_is_added_beside_an_alias_is_passed_over() {
        let alias = OwnRecord { kind: "CNAME".into(), ..txt(AT, "x.example.") };
        let mut records = vec![alias.clone()];
        assert_eq!(apply(&mut records, &update(vec![], vec![add(AT, "a")])), Outcome::Done);
        assert_eq!(records, [alias]);
    }

    #[test]
    fn more_than_a_machine_may_have_is_refused() {
        let mut records = vec![];
        let many = (0..MOST).map(|n| add(AT, &n.to_string())).collect();
        assert_eq!(apply(&mut records, &update(vec![], many)), Outcome::Done);
        assert_eq!(apply(&mut records, &update(vec![], vec![add(AT, "more")])), Outcome::Refused);
        let many = (0..=MOST).map(|_| Change::RemoveAll { name: AT.into() }).collect();
        assert_eq!(apply(&mut records, &update(vec![], many)), Outcome::Refused);
    }
}
