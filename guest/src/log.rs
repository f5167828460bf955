//! Where init and the agent speak: the console for what a person must see, the kernel's log for the rest.
//!
//! Every byte on the serial console is an exit of the virtual machine, so a boot that goes well prints nothing.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// To the kernel's log, from where journald takes it. Not shown on a quiet console.
pub fn note(text: impl Display) {
    write_to("/dev/kmsg", &format!("<6>mashines-guest: {text}\n"));
}

/// To the console: the machine cannot do what it was made for, or lacks a part of it.
pub fn console(text: impl Display) {
    write_to("/dev/console", &format!("mashines-guest: {text}\n"));
}

// There is nobody to tell when telling fails.
fn write_to(path: &str, line: &str) {
    if let Ok(mut file) = OpenOptions::new().write(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}
