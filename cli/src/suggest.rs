//! "Did you mean": the nearest known name to one that does not exist.

/// The candidate nearest to `wrong`, if one is near enough to be meant: a third of its length in edits, or one that it begins.
pub fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (wrong.chars().count() / 3).max(1);
    let rank = |candidate: &'a str| {
        let edits = distance(wrong, candidate);
        let begun = wrong.chars().count() >= 2 && candidate.starts_with(wrong);
        (begun || edits <= allowed).then_some((edits, candidate))
    };
    candidates.into_iter().filter_map(rank).min().map(|(_, candidate)| candidate)
}

/// Edits from `a` to `b`, where an edit inserts, removes or changes a character or swaps two neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let change = above[j] + usize::from(a[i] != b[j]);
            let mut best = change.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_finds_none() {
        let names = ["web", "worker", "database"];
        assert_eq!(nearest("wbe", names), Some("web"));
        assert_eq!(nearest("wokrer", names), Some("worker"));
        assert_eq!(nearest("data", names), Some("database"));
        assert_eq!(nearest("zzz", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(nearest("web", []), None);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_zero_only_for_equals(a in "[ab]{0,8}", b in "[ab]{0,8}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
