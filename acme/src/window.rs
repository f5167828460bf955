//! When a certificate is to be renewed: the issuer's window (RFC 9773), else two thirds of its life; in both a random moment, so that
//! not all come at once.

use std::time::Duration;

use instant_acme::{CertificateIdentifier, RenewalInfo};
use mashines_fleet::chain::Chain;
use mashines_fleet::issuance::ms;
use mashines_fleet::record::UnixMs;

use crate::account::{Door, with_account};
use crate::past_nonces;
use crate::worker::Surroundings;

/// The issuer is asked again after what it says, but neither sooner nor later than this (RFC 9773 §4.3.2).
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_secs(24 * 3600);

/// After an issuer that did not answer.
const AFTER_SILENCE: Duration = Duration::from_secs(6 * 3600);

/// A certificate that was just issued is not renewed sooner, whatever the window: an issuer whose windows are always over would
/// have us order without end.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(3600);

/// What an issuer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has no windows.
    None,
    /// Between these, and when to ask again.
    Window {
        /// From when.
        start: UnixMs,
        /// Until when.
        end: UnixMs,
        /// When to ask again.
        ask_again: UnixMs,
    },
    /// It did not answer.
    Silent {
        /// When to ask again.
        ask_again: UnixMs,
    },
}

/// Asks for the window of a chain.
pub async fn ask(chain: &Chain, door: &Door, around: &Surroundings) -> Answer {
    let now = around.clock.now();
    let again = |after: Duration| now.saturating_add(ms(after));
    let leaf = chain.certificates.first().map(CertificateIdentifier::try_from);
    let Some(Ok(id)) = leaf else { return Answer::None };
    let id = id.into_owned();
    let secret = match around.secret() {
        Ok(secret) => secret,
        Err(_) => return Answer::Silent { ask_again: again(AFTER_SILENCE) },
    };
    let view = around.view();
    let with = (&*view, &around.control, &secret, &around.clock);
    let asked = with_account(door, with, |account| {
        let id = id.clone();
        async move {
            match past_nonces!(account.renewal_info(&id)) {
                Err(instant_acme::Error::Unsupported(_)) => Ok(None),
                outcome => outcome.map(Some),
            }
        }
    });
    match asked.await {
        Ok(None) => Answer::None,
        Ok(Some((info, after))) => window(&info, again(after.clamp(SOONEST, LATEST))),
        Err(fault) => {
            tracing::info!(issuer = %door.issuer.name, %fault, "no window");
            let least = again(AFTER_SILENCE);
            Answer::Silent { ask_again: fault.limited().map_or(0, |limited| limited.until).max(least) }
        }
    }
}

fn window(info: &RenewalInfo, ask_again: UnixMs) -> Answer {
    let unix = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let start = unix(info.suggested_window.start.unix_timestamp());
    let end = unix(info.suggested_window.end.unix_timestamp());
    if end <= start {
        // RFC 9773 §4.2: such an answer is no answer.
        return Answer::Silent { ask_again };
    }
    Answer::Window { start, end, ask_again }
}

/// A moment of the window: the one that was chosen before while it is in it, else a random one (`random`: 0 to 1).
pub fn moment((start, end): (UnixMs, UnixMs), chosen: Option<UnixMs>, random: f64) -> UnixMs {
    if let Some(chosen) = chosen.filter(|at| (start..=end).contains(at)) {
        return chosen;
    }
    let into = Duration::from_millis(end.saturating_sub(start)).mul_f64(random.clamp(0.0, 1.0));
    start.saturating_add(ms(into)).min(end)
}

/// Where an issuer has no windows: between 60 and 67 hundredths of the life.
pub fn by_life(chain: &Chain, random: f64) -> UnixMs {
    let life = chain.not_after.saturating_sub(chain.not_before);
    let share = 0.60 + 0.07 * random.clamp(0.0, 1.0);
    chain.not_before.saturating_add(ms(Duration::from_millis(life).mul_f64(share)))
}

/// When a chain that was just issued is renewed, and when its window is asked for again.
pub fn first_plan(chain: &Chain, answer: Answer, now: UnixMs, random: f64) -> (UnixMs, Option<UnixMs>) {
    let least = now.saturating_add(ms(SHORTEST_LIFE)).min(chain.not_after);
    match answer {
        Answer::None => (by_life(chain, random).max(least), None),
        Answer::Silent { ask_again } => (by_life(chain, random).max(least), Some(ask_again)),
        Answer::Window { start, end, ask_again } => {
            (moment((start, end), None, random).max(least), Some(ask_again))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(not_before: u64, not_after: u64) -> Chain {
        Chain { certificates: vec![], names: vec![], not_before, not_after, issuer: String::new() }
    }

    proptest! {
        #[test]
        fn a_moment_is_always_in_its_window_and_stays_while_the_window_holds_it(
            start in 0_u64..1_000_000, length in 1_u64..1_000_000, chosen in prop::option::of(0_u64..2_000_000), random in 0.0..1.0_f64,
        ) {
            let end = start + length;
            let at = moment((start, end), chosen, random);
            prop_assert!((start..=end).contains(&at));
            if let Some(chosen) = chosen.filter(|c| (start..=end).contains(c)) {
                prop_assert_eq!(at, chosen);
            }
        }

        #[test]
        fn a_new_chain_is_renewed_within_its_life_and_not_at_once(
            life_h in 2_u64..2000, start in 0_u64..4000, length in 1_u64..100, random in 0.0..1.0_f64,
        ) {
            let hour = 3_600_000;
            let now = 1_000_000 * hour;
            let chain = chain(now, now + life_h * hour);
            let from = now - 1000 * hour + start * hour;
            for answer in [
                Answer::None,
                Answer::Silent { ask_again: now + hour },
                Answer::Window { start: from, end: from + length * hour, ask_again: now + hour },
            ] {
                let (at, _) = first_plan(&chain, answer, now, random);
                prop_assert!(at >= now + hour.min(life_h * hour));
                if !matches!(answer, Answer::Window { .. }) {
                    prop_assert!(at < chain.not_after);
                }
            }
        }
    }
}
