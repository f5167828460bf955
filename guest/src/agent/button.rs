//! The power button: pressed by the host, it shuts the machine down, whatever the image is.
//!
//! ACPI's button comes as an input device (`Documentation/input/event-codes.rst`); an event is a `struct input_event` of 24
//! bytes: time (16), type (2), code (2), value (4).

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use super::shutdown;
use crate::log;

const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: u32 = 1;

/// Watches each power button in a thread of its own; without one there is nothing to do.
pub fn watch() {
    for device in buttons() {
        let watching =
            std::thread::Builder::new().name("button".to_owned()).spawn(move || match File::open(&device) {
                Ok(events) => watch_one(events),
                Err(error) => log::note(format_args!("agent: power button {}: {error}", device.display())),
            });
        if let Err(error) = watching {
            log::note(format_args!("agent: no thread for the power button: {error}"));
        }
    }
}

fn watch_one(mut events: impl Read) {
    let mut event = [0; EVENT];
    while events.read_exact(&mut event).is_ok() {
        if is_press(&event) {
            log::note("agent: the power button was pressed");
            shutdown::prepare();
            shutdown::begin_if_prepared();
        }
    }
}

fn is_press(event: &[u8; EVENT]) -> bool {
    let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let value = u32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    word(16) == EV_KEY && word(18) == KEY_POWER && value == PRESSED
}

fn buttons() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/class/input") else { return Vec::new() };
    let events = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("event"));
    let buttons = events.filter(|entry| {
        fs::read_to_string(entry.path().join("device/name")).is_ok_and(|name| name.trim() == "Power Button")
    });
    buttons.map(|entry| PathBuf::from("/dev/input").join(entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: u32) -> [u8; EVENT] {
        let mut event = [0; EVENT];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        assert!(is_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_press(&event(EV_KEY, 30, 1)));
        assert!(!is_press(&event(0, 0, 0)));
    }
}
