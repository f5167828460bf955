//! "Did you mean …?" for names that are not there.

/// The known name nearest to what was asked for, as the end of a sentence; empty when none is near.
pub fn did_you_mean<'a>(asked: &str, known: impl Iterator<Item = &'a str>) -> String {
    let asked: Vec<char> = asked.chars().take(64).collect();
    let near = known.map(|name| (distance(&asked, &name.chars().collect::<Vec<_>>()), name));
    match near.min() {
        Some((far, name)) if far <= 1 + asked.len() / 4 => format!("; did you mean {name}?"),
        _ => String::new(),
    }
}

/// Levenshtein's.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        let known = ["hosta", "hostb", "entry160"];
        assert_eq!(did_you_mean("hsota", known.into_iter()), "; did you mean hosta?");
        assert_eq!(did_you_mean("entry16", known.into_iter()), "; did you mean entry160?");
        assert_eq!(did_you_mean("zebra", known.into_iter()), "");
        assert_eq!(did_you_mean("x", [].into_iter()), "");
    }
}
