//! A CA in the test: what Debian's pebble lacks.
