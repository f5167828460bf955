//! Where the tests run.

use std::time::Duration;

/// On an emulated CPU the guest's code is translated anew at each arrival (about 15 blocks a millisecond, thousands for the first
/// answer), and a few busy programs fill it: a round trip takes up to 2 s while a machine is copied. A stall longer than this means
/// all the same that something waited for a time-out.
const EMULATED_STALL: Duration = Duration::from_secs(5);

/// Whether an emulator interprets every guest: `scripts/lab` says so on its kernel's command line. Times are worth little there.
pub fn is_emulated() -> bool {
    let line = std::fs::read_to_string("/proc/cmdline");
    line.is_ok_and(|line| line.split_whitespace().any(|word| word == "mashines.emulated"))
}

/// What kernels of guests are told besides what their image says. An emulated CPU guesses nothing, so what guards against guesses (each return
/// goes by a thunk) only takes time: most of what is emulated is the guest's kernel.
pub fn kernel_arguments() -> &'static str {
    if is_emulated() { "mitigations=off" } else { "" }
}

/// How long a stream may stand still in a move with that blackout, in words too.
pub fn allowed_stall(blackout: Duration) -> (Duration, String) {
    let promised = "twice the blackout + 20 ms";
    if is_emulated() {
        let seconds = EMULATED_STALL.as_secs();
        return (EMULATED_STALL, format!("{seconds} s (emulated CPU; on a real one {promised} are claimed)"));
    }
    (blackout * 2 + Duration::from_millis(20), promised.to_owned())
}
