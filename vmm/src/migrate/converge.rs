//! When to stop pre-copying: a pure decision over the rounds so far.
//!
//! The rule is `fixed + left / bandwidth ≤ budget`. Once it holds, rounds go on as long as each leaves markedly less
//! than the one before, since a further round costs nothing while the guest runs; the stop is at a local minimum. While
//! it does not hold and nothing is gained, twice the budget will do; beyond that the vCPUs are slowed down step by step if that is
//! allowed; else, or when time is up, the migration is given up with the figures that explain it.

use std::time::Duration;

/// One round of pre-copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Bytes of pages and blocks that were sent.
    pub sent: u64,
    /// From the first byte to the destination's word that all is applied.
    pub took: Duration,
    /// Bytes that were written meanwhile and are left to send.
    pub left: u64,
}

/// What the decision is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The blackout to aim for.
    pub budget: Duration,
    /// The part of the blackout that does not depend on what is left.
    pub fixed: Duration,
    /// The whole time allowed for pre-copy.
    pub timeout: Duration,
    /// The vCPUs may be slowed down.
    pub may_throttle: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Continue,
    /// Pause the guest; what is left goes in the blackout.
    StopNow,
    /// Take this percentage of the vCPUs' time away, then another round.
    Throttle(u8),
    /// It will not converge; the reason is for the person who asked.
    GiveUp(String),
}

/// Below this, a further round gains nothing that could be felt.
pub const FLOOR: u64 = 128 << 10;
/// A round that leaves less than this share of the round before is progress.
const PROGRESS_PERCENT: u64 = 75;
/// Rounds in a row without progress before something is done about it.
const PATIENCE: usize = 3;
/// So many budgets are near enough when rounds stop shrinking: the guest is not slowed down for the rest.
const NEAR: u32 = 2;
/// The most rounds spent on shrinking what would fit the budget already.
const POLISH: usize = 12;
/// The steps of throttling, in percent.
const STEPS: [u8; 8] = [20, 35, 50, 65, 80, 90, 95, 99];

/// Decides after each round. `history` is not empty; `throttle` is what is applied now, `since` how many rounds ago it
/// was last changed, `elapsed` the time since pre-copy began.
#[must_use]
pub fn decide(rule: &Rule, history: &[Round], throttle: u8, since: usize, elapsed: Duration) -> Decision {
    let Some(last) = history.last() else { return Decision::Continue };
    if fits(rule, history, last.left) {
        return if gains(rule, history) { Decision::Continue } else { Decision::StopNow };
    }
    if elapsed >= rule.timeout {
        return Decision::GiveUp(reason(rule, history, throttle, "the time allowed is over"));
    }
    if !stuck(history, since) {
        return Decision::Continue;
    }
    // Nothing is gained any more. A little more blackout beats a guest that is slowed down for seconds.
    if predicted(rule, history, last.left).is_some_and(|blackout| blackout <= rule.budget * NEAR) {
        return Decision::StopNow;
    }
    let next = STEPS.iter().copied().find(|&step| step > throttle);
    match next.filter(|_| rule.may_throttle) {
        Some(step) => Decision::Throttle(step),
        None if rule.may_throttle => Decision::GiveUp(reason(
            rule,
            history,
            throttle,
            "even the slowest guest writes faster than it can be sent",
        )),
        None if since >= PATIENCE * 4 => Decision::GiveUp(reason(
            rule,
            history,
            throttle,
            "rounds stopped shrinking and throttling is not allowed",
        )),
        None => Decision::Continue,
    }
}

/// The blackout that stopping with `left` bytes would cost, if it is known.
#[must_use]
pub fn predicted(rule: &Rule, history: &[Round], left: u64) -> Option<Duration> {
    if left == 0 {
        return Some(rule.fixed);
    }
    let nanos = u128::from(left) * 1_000_000_000 / u128::from(bandwidth(history)?);
    Some(rule.fixed + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

/// Bytes a second: the best of the last rounds that carried enough to tell, else the best of all.
#[must_use]
pub fn bandwidth(history: &[Round]) -> Option<u64> {
    let rate = |round: &Round| {
        let rate = u128::from(round.sent) * 1_000_000_000 / round.took.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    let telling = history.iter().rev().filter(|round| round.sent >= 1 << 20).take(3).map(rate).max();
    telling.or_else(|| history.iter().map(rate).max()).filter(|&rate| rate > 0)
}

fn fits(rule: &Rule, history: &[Round], left: u64) -> bool {
    predicted(rule, history, left).is_some_and(|blackout| blackout <= rule.budget)
}

/// It fits already: is another round likely to leave less still?
fn gains(rule: &Rule, history: &[Round]) -> bool {
    let Some(last) = history.last() else { return false };
    let before = history.iter().rev().nth(1).map(|round| round.left);
    let polished = history.iter().filter(|round| fits(rule, history, round.left)).count();
    last.left > FLOOR
        && polished < POLISH
        && before.is_none_or(|before| last.left <= before / 100 * PROGRESS_PERCENT)
}

/// No round of the last few left markedly less than the best before them. `since` rounds ago the throttle changed: what
/// was before does not count.
fn stuck(history: &[Round], since: usize) -> bool {
    let window = history.len().min(since + 1);
    let recent = &history[history.len() - window..];
    if window <= PATIENCE {
        return false;
    }
    let (early, late) = recent.split_at(window - PATIENCE);
    let best = |rounds: &[Round]| rounds.iter().map(|round| round.left).min().unwrap_or(u64::MAX);
    best(late) > best(early) / 100 * PROGRESS_PERCENT
}

fn reason(rule: &Rule, history: &[Round], throttle: u8, why: &str) -> String {
    let Some(last) = history.last() else { return why.to_owned() };
    let mib = |bytes: u64| bytes >> 20;
    let written = u128::from(last.left) * 1_000_000_000 / last.took.as_nanos().max(1);
    let predicted = predicted(rule, history, last.left).unwrap_or(Duration::MAX).as_millis();
    format!(
        "the machine did not converge: {why}. After {} rounds {} MiB are left, which would stop the guest for {predicted} ms \
         where {} ms are allowed; it writes {} MiB/s, the link carries {} MiB/s, throttle {throttle} %. It goes on unharmed \
         at the source. Try again when it writes less, with a larger budget, with throttling, or over a faster link",
        history.len(),
        mib(last.left),
        rule.budget.as_millis(),
        written >> 20,
        mib(bandwidth(history).unwrap_or(0)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule {
        budget: Duration::from_millis(50),
        fixed: Duration::from_millis(20),
        timeout: Duration::from_secs(60),
        may_throttle: true,
    };

    /// A guest that writes `writes` bytes a second over `working` bytes at most, on a link of `link` bytes a second.
    fn simulate(rule: &Rule, ram: u64, working: u64, writes: u64, link: u64) -> (Decision, Vec<Round>, u8) {
        let (mut history, mut throttle, mut since, mut elapsed) = (Vec::new(), 0u8, 0, Duration::ZERO);
        let mut sending = ram;
        loop {
            let micros = sending.saturating_mul(1_000_000) / link + 3000;
            let took = Duration::from_micros(micros);
            let written =
                u128::from(writes) * u128::from(100 - throttle) / 100 * u128::from(micros) / 1_000_000;
            let left = u64::try_from(written).unwrap_or(u64::MAX).min(working);
            history.push(Round { sent: sending, took, left });
            elapsed += took;
            since += 1;
            match decide(rule, &history, throttle, since, elapsed) {
                Decision::Continue => {}
                Decision::Throttle(percent) => (throttle, since) = (percent, 0),
                end => return (end, history, throttle),
            }
            assert!(history.len() < 10_000, "never decides");
            sending = left;
        }
    }

    #[test]
    fn an_idle_guest_stops_after_a_round_or_two() {
        let (end, history, throttle) = simulate(&RULE, 256 << 20, 64 << 10, 1 << 20, 200 << 20);
        assert_eq!(end, Decision::StopNow);
        assert_eq!(throttle, 0);
        assert!(history.len() <= 2, "{history:?}");
    }

    #[test]
    fn a_writer_slower_than_the_link_shrinks_to_a_local_minimum_without_throttle() {
        let (end, history, throttle) = simulate(&RULE, 256 << 20, 64 << 20, 20 << 20, 200 << 20);
        assert_eq!(end, Decision::StopNow);
        assert_eq!(throttle, 0);
        assert!(history.last().unwrap().left < 1 << 20, "{history:?}");
    }

    #[test]
    fn a_writer_faster_than_the_link_is_throttled() {
        let (end, _, throttle) = simulate(&RULE, 256 << 20, 128 << 20, 400 << 20, 200 << 20);
        assert_eq!(end, Decision::StopNow);
        assert!(throttle > 0);
    }

    #[test]
    fn a_writer_faster_than_the_link_that_may_not_be_throttled_gets_a_reason() {
        let rule = Rule { may_throttle: false, ..RULE };
        let (end, _, _) = simulate(&rule, 256 << 20, 128 << 20, 400 << 20, 200 << 20);
        let Decision::GiveUp(why) = end else { panic!("{end:?}") };
        assert!(why.contains("did not converge") && why.contains("MiB/s"), "{why}");
    }

    proptest! {
        #[test]
        fn every_history_ends_and_a_stop_fits_the_budget(
            ram in 1u64 << 20..1 << 34, working in 0u64..1 << 30, writes in 0u64..1 << 32, link in 1u64 << 20..1 << 34,
            may_throttle: bool,
        ) {
            let rule = Rule { may_throttle, ..RULE };
            let (end, history, throttle) = simulate(&rule, ram, working.min(ram), writes, link);
            prop_assert!(may_throttle || throttle == 0);
            match end {
                Decision::StopNow => {
                    let left = history.last().unwrap().left;
                    prop_assert!(predicted(&rule, &history, left).unwrap() <= rule.budget * NEAR);
                }
                Decision::GiveUp(why) => prop_assert!(!why.is_empty()),
                Decision::Continue | Decision::Throttle(_) => prop_assert!(false),
            }
        }

        #[test]
        fn throttle_only_ever_rises(lefts in proptest::collection::vec(1u64 << 24..1 << 30, 1..60)) {
            let (mut history, mut throttle, mut since) = (Vec::new(), 0, 0);
            for left in lefts {
                history.push(Round { sent: 64 << 20, took: Duration::from_millis(300), left });
                since += 1;
                if let Decision::Throttle(next) = decide(&RULE, &history, throttle, since, Duration::ZERO) {
                    prop_assert!(next > throttle && next < 100);
                    (throttle, since) = (next, 0);
                }
            }
        }
    }
}
