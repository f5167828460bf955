//! Keeps an SSH server running in a machine whose image is a single process (the program is `mashines-guest-ssh`, guest/ssh).
//!
//! Init leaves the program here only in such a machine; in every other the image's own sshd serves.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use mashines_guest::Config;
use mashines_guest::config::ssh_is_off;

use super::shutdown;
use crate::log;

/// The program.
pub const SSH_PROGRAM: &str = "/run/mashines/ssh";
/// The machine's configuration with its host key.
pub const SSH_CONFIG: &str = "/run/mashines/ssh.json";

/// Pauses before it is started again: short after a long life, longer each time after a short one.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const LONG_LIFE: Duration = Duration::from_secs(60);

/// Starts it in a thread of its own, when it is there, and again when it ends.
pub fn keep(config: &Config) {
    if !wanted(config, Path::new(SSH_PROGRAM)) {
        return;
    }
    let thread = thread::Builder::new().name("ssh".to_owned()).spawn(|| {
        let mut pause = PAUSE.0;
        while !shutdown::has_begun() {
            let begun = Instant::now();
            let how = run_once();
            if shutdown::has_begun() {
                return;
            }
            pause = next_pause(pause, begun.elapsed());
            log::note(format_args!("the SSH server {how}; it is started again in {} s", pause.as_secs()));
            sleep(pause);
        }
    });
    if let Err(error) = thread {
        log::console(format_args!("no SSH server: no thread for it: {error}"));
    }
}

fn wanted(config: &Config, program: &Path) -> bool {
    program.exists() && !ssh_is_off(&config.env)
}

fn next_pause(last: Duration, life: Duration) -> Duration {
    if life >= LONG_LIFE { PAUSE.0 } else { (last * 2).min(PAUSE.1) }
}

fn run_once() -> String {
    // Each of its lines is one write, and so one record of the kernel's log.
    let words = OpenOptions::new().write(true).open("/dev/kmsg").map_or_else(|_| Stdio::null(), Stdio::from);
    let ended = Command::new(SSH_PROGRAM)
        .args(["serve", SSH_CONFIG])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .status();
    match ended {
        Ok(status) => format!("ended ({status})"),
        Err(error) => format!("does not start ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_where_init_left_it_unless_the_machine_says_no() {
        let mut config = Config::new("m", "h");
        let here = std::env::current_exe().unwrap();
        assert!(wanted(&config, &here));
        assert!(!wanted(&config, Path::new("/no/such/program")));
        config.env.insert("MASHINES_SSH".into(), "off".into());
        assert!(!wanted(&config, &here));
    }

    #[test]
    fn a_server_that_dies_at_once_is_started_less_and_less_often() {
        let mut pause = PAUSE.0;
        for _ in 0..10 {
            pause = next_pause(pause, Duration::ZERO);
        }
        assert_eq!(pause, PAUSE.1);
        assert_eq!(next_pause(pause, LONG_LIFE), PAUSE.0);
    }
}
