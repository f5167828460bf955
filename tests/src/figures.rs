//! What a migration reported of itself, and how several are summed up.

use anyhow::{Context as _, Result};
use mashines_fleet::api;
use mashines_vmm::api::Figures;

/// The monitor's figures in a migration's record.
pub fn of(migration: &api::Migration) -> Result<Figures> {
    let figures = migration.figures.clone();
    let figures = figures.with_context(|| format!("no figures; the migration says {:?}", migration.error))?;
    Ok(serde_json::from_value(figures)?)
}

/// The middle of some values; of an even number the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get((values.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
