//! `mashines-vmm`.

fn main() {}
