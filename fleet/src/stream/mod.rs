//! The change stream on the wire: `GET /internal/v1/changes?from=REV&store=ID`, one JSON [`Line`] a line, for members.
//!
//! ```text
//! begin snapshot → record* → ready ─┬→ batch*, heartbeat* …          (from unknown, compacted, or another store's)
//! resume ──────────────────────────-┘                                (from still in the change log)
//! ```
//!
//! A [`Follower`] is the pure receiving end: lines in, views out. A view is only given out when it is whole: never in
//! the middle of a snapshot, never in the middle of a transaction.

mod source;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use source::{Position, lines};

use crate::view::{Batch, Change, Skipped, View};

/// The path of the stream.
pub const PATH: &str = "/internal/v1/changes";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Line {
    /// Forget everything: all records follow.
    SnapshotBegin {
        /// Which store this is; revisions of another one mean nothing.
        store: String,
        /// The revision that the records are of.
        revision: u64,
    },
    /// One record of the snapshot.
    Put(Change),
    /// The snapshot is whole.
    SnapshotEnd,
    /// What is asked for can be continued: batches follow.
    Resume {
        /// Which store this is.
        store: String,
    },
    /// One transaction.
    Batch(Batch),
    /// The stream is alive. Sent after each [`HEARTBEAT_MS`] without a batch.
    Heartbeat {
        /// The store's revision, to see how far behind a replica is.
        revision: u64,
    },
}

/// How often a silent stream says that it is alive, milliseconds. Three times this without a line: the stream is dead.
pub const HEARTBEAT_MS: u64 = 5_000;

/// The receiving end.
#[derive(Debug, Clone, Default)]
pub struct Follower {
    /// The store that `view` is of.
    store: String,
    view: Arc<View>,
    /// The view before `view`: when nobody looks at it any more it becomes the next one, and a change costs no copy of a million entries.
    spare: Option<Arc<View>>,
    /// A snapshot that is being received.
    partial: Option<(String, View)>,
}

/// Lines in an order that the protocol does not know: the stream is to be opened anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the change stream made no sense: {0}")]
pub struct OutOfOrder(&'static str);

/// What a line brought.
#[derive(Debug, Default)]
pub struct Heard {
    /// The view changed: hand it out.
    pub changed: bool,
    /// Records that this version could not read.
    pub skipped: Vec<Skipped>,
}

impl Follower {
    /// Goes on from a view of the store named.
    pub fn resume(store: String, view: View) -> Self {
        Self { store, view: Arc::new(view), spare: None, partial: None }
    }

    /// The newest whole view.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The store that the view is of; empty before the first snapshot.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// The path to ask for, to go on from here.
    pub fn request_path(&self) -> String {
        format!("{PATH}?from={}&store={}", self.view.revision, self.store)
    }

    /// A new connection: what was half received is void.
    pub fn reconnected(&mut self) {
        self.partial = None;
    }

    /// Applies a batch to the spare view where that is free, else to a copy.
    fn advance(&mut self, batch: &Batch) -> Vec<Skipped> {
        let mut next = self.spare.take().unwrap_or_default();
        if !Arc::get_mut(&mut next).is_some_and(|next| next.catch_up(&self.view)) {
            next = Arc::new((*self.view).clone());
        }
        let skipped = Arc::make_mut(&mut next).apply(batch);
        self.spare = Some(std::mem::replace(&mut self.view, next));
        skipped
    }

    /// Takes one line.
    ///
    /// # Errors
    /// [`OutOfOrder`]; what was whole stays.
    pub fn hear(&mut self, line: Line) -> Result<Heard, OutOfOrder> {
        let mut heard = Heard::default();
        match (line, &mut self.partial) {
            (Line::SnapshotBegin { store, revision }, _) => {
                self.partial = Some((store, View { revision, ..View::default() }));
            }
            (Line::Put(change), Some((_, view))) => heard.skipped.extend(view.apply_change(&change).err()),
            (Line::SnapshotEnd, Some(_)) => {
                if let Some((store, view)) = self.partial.take() {
                    self.store = store;
                    self.view = Arc::new(view);
                    self.spare = None;
                    heard.changed = true;
                }
            }
            (Line::Resume { store }, None) if store == self.store => {}
            (Line::Batch(batch), None) => {
                heard.changed = batch.revision > self.view.revision;
                if heard.changed {
                    heard.skipped = self.advance(&batch);
                }
            }
            // It does not move the view: a batch of an older revision may still be on its way.
            (Line::Heartbeat { .. }, None) => {}
            (Line::Put(_), None) => return Err(OutOfOrder("a record outside a snapshot")),
            (Line::SnapshotEnd, None) => return Err(OutOfOrder("the end of a snapshot that never began")),
            (Line::Resume { .. }, _) => return Err(OutOfOrder("resumed another store's stream")),
            (Line::Batch(_) | Line::Heartbeat { .. }, Some(_)) => {
                return Err(OutOfOrder("a change in the middle of a snapshot"));
            }
        }
        Ok(heard)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(id: &str) -> Change {
        let value = json!({"id": id, "ssh_keys": [], "private_prefix": "fd00::"});
        Change { key: format!("accounts/{id}"), value: Some(value) }
    }

    fn begin(store: &str, revision: u64) -> Line {
        Line::SnapshotBegin { store: store.into(), revision }
    }

    #[test]
    fn a_snapshot_is_seen_only_when_it_is_whole_and_replaces_everything() {
        let mut follower = Follower::default();
        follower.hear(begin("s", 3)).unwrap();
        assert!(!follower.hear(Line::Put(put("ann"))).unwrap().changed);
        assert!(follower.view().accounts.is_empty());
        assert!(follower.hear(Line::SnapshotEnd).unwrap().changed);
        assert_eq!((follower.view().accounts.len(), follower.view().revision), (1, 3));
        follower.hear(begin("t", 1)).unwrap();
        follower.hear(Line::SnapshotEnd).unwrap();
        assert!(
            follower.view().accounts.is_empty(),
            "another store's snapshot, though its revision is lower"
        );
    }

    #[test]
    fn a_broken_snapshot_leaves_the_older_view() {
        let mut follower = Follower::default();
        for line in [begin("s", 3), Line::Put(put("ann")), Line::SnapshotEnd, begin("s", 9)] {
            follower.hear(line).unwrap();
        }
        follower.reconnected();
        assert!(follower.request_path().ends_with("?from=3&store=s"));
        follower.hear(Line::Resume { store: "s".into() }).unwrap();
        let batch = Batch { revision: 5, changes: vec![put("bob")] };
        assert!(follower.hear(Line::Batch(batch)).unwrap().changed);
        assert_eq!(follower.view().accounts.len(), 2);
    }

    #[test]
    fn a_view_that_nobody_looks_at_becomes_the_next_and_one_that_is_held_stays_as_it_is() {
        let mut follower = Follower::default();
        follower.hear(begin("s", 1)).unwrap();
        follower.hear(Line::SnapshotEnd).unwrap();
        let mut held = Vec::new();
        let mut model = (**follower.view()).clone();
        for revision in 2..40 {
            let id = format!("a{}", revision % 5);
            let change = if revision % 7 == 0 {
                Change { key: format!("accounts/{id}"), value: None }
            } else {
                put(&id)
            };
            let batch = Batch { revision, changes: vec![change, put(&format!("b{}", revision % 3))] };
            model.apply(&batch);
            follower.hear(Line::Batch(batch)).unwrap();
            assert_eq!(**follower.view(), model, "at revision {revision}");
            if revision % 4 == 0 {
                held.push((Arc::clone(follower.view()), model.clone()));
            }
        }
        assert!(held.iter().all(|(view, model)| **view == *model));
        let before = Arc::as_ptr(follower.view());
        for revision in 40..42 {
            follower.hear(Line::Batch(Batch { revision, changes: vec![put("c")] })).unwrap();
        }
        assert_eq!(Arc::as_ptr(follower.view()), before, "the two take turns");
    }

    #[test]
    fn lines_out_of_order_are_refused() {
        let mut follower = Follower::default();
        assert!(follower.hear(Line::Put(put("ann"))).is_err());
        assert!(follower.hear(Line::SnapshotEnd).is_err());
        assert!(follower.hear(Line::Resume { store: "x".into() }).is_err());
        follower.hear(begin("s", 1)).unwrap();
        assert!(follower.hear(Line::Heartbeat { revision: 2 }).is_err());
    }

    #[test]
    fn lines_keep_their_shape_on_the_wire() {
        let line =
            Line::Batch(Batch { revision: 7, changes: vec![Change { key: "hosts/a".into(), value: None }] });
        let text = r#"{"type":"batch","revision":7,"changes":[{"key":"hosts/a","value":null}]}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
        assert_eq!(serde_json::from_str::<Line>(text).unwrap(), line);
    }
}
