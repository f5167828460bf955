//! `mashines`.

fn main() {}
