//! Makes new copies of the zones when they have changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use super::copy::{ZoneCopy, period_of};
use super::journal::Published;
use crate::answer::Moment;
use crate::name::Name;
use crate::zone::Zones;

/// Every zone's copy, by apex.
pub type Board = BTreeMap<Name, Arc<Published>>;

/// Between two looks at the clock, for signatures that are to be made anew.
const LOOK: Duration = Duration::from_secs(60);

/// Making copies takes at most about this part of the time.
const SHARE: u32 = 10;

/// After a change, before a copy is made: changes come in groups.
const GATHER: Duration = Duration::from_millis(50);

/// Makes copies for ever: of the newest names, when they change and when their signatures get old.
pub async fn publish(
    mut moments: watch::Receiver<Arc<Moment>>,
    board: watch::Sender<Arc<Board>>,
    now: impl Fn() -> u64,
) {
    loop {
        let begun = Instant::now();
        let (moment, old, period) =
            (Arc::clone(&moments.borrow_and_update()), Arc::clone(&board.borrow()), period_of(now()));
        let made = tokio::task::spawn_blocking(move || made(&moment.zones, &old, period)).await;
        match made {
            Ok(Some(new)) => {
                board.send_replace(Arc::new(new));
            }
            Ok(None) => {}
            Err(error) => error!(%error, "making copies of the zones for secondaries"),
        }
        tokio::time::sleep(begun.elapsed() * SHARE).await;
        tokio::select! {
            changed = moments.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// The new board; none when nothing changed.
fn made(zones: &Zones, old: &Board, period: u64) -> Option<Board> {
    let mut new = Board::new();
    let mut changed = false;
    for zone in zones.iter() {
        let known = old.get(zone.apex());
        let serial = |published: &Published| published.copy().serial();
        if zone.is_locked() {
            // Unsigned it must not be given away; what secondaries have is better than nothing.
            new.extend(known.map(|known| (zone.apex().clone(), Arc::clone(known))));
            continue;
        }
        let copy = match ZoneCopy::of(zones, zone, period, known.map(|known| known.copy().as_ref())) {
            Ok(copy) => copy,
            Err(error) => {
                error!(zone = %zone.apex(), %error, "the zone's copy for secondaries stays as it was");
                new.extend(known.map(|known| (zone.apex().clone(), Arc::clone(known))));
                continue;
            }
        };
        let published = match known {
            Some(known) if serial(known) == copy.serial() => Arc::clone(known),
            Some(known) => {
                changed = true;
                Arc::new(known.then(Arc::new(copy)))
            }
            None => {
                changed = true;
                Arc::new(Published::first(Arc::new(copy)))
            }
        };
        if changed {
            info!(zone = %zone.apex(), serial = serial(&published), records = published.copy().len(), "copy for secondaries");
        }
        new.insert(zone.apex().clone(), published);
    }
    (changed || new.len() != old.len()).then_some(new)
}
