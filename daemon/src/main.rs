//! `mashinesd`.

fn main() {}
