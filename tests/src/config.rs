//! The daemons' configuration in each place of the lab.

use std::path::Path;

use crate::netns::Place;

/// The configuration file of a place.
pub fn toml(place: Place, state: &Path, bin: &Path) -> String {
    format!("{place:?} {} {}", state.display(), bin.display())
}
