//! `mashines-guest`.

fn main() {}
