//! One host's work: starts monitors, volumes, images.
