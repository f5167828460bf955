//! Where the tests run.

/// Whether an emulator interprets every guest: `scripts/lab` says so on its kernel's command line. Times are worth little there.
pub fn is_emulated() -> bool {
    std::fs::read_to_string("/proc/cmdline")
        .is_ok_and(|line| line.split_whitespace().any(|word| word == "mashines.emulated"))
}
