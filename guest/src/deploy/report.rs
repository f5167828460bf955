//! What the person at the other end reads: git shows it as `remote:` lines.
//!
//! The words go out by a thread: a client that reads slowly or not at all must not hold up the work, nor its end; of what a build writes
//! faster than that, lines are left out. What is read from a build is cleaned of control characters, which could steer a terminal.

use std::cell::Cell;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

/// How long the last words may take to get out.
const FLUSH: Duration = Duration::from_secs(5);
/// How many lines may wait for the reader.
const WAITING: usize = 4096;
/// How often, and at what distance, a line that matters is tried.
const TRIES: u32 = 200;
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// The longest line, in characters.
const LONGEST: usize = 400;

const DETAIL: &str = "       ";

/// One deployment's words.
pub struct Report {
    lines: SyncSender<String>,
    done: Receiver<()>,
    left_out: Cell<u64>,
}

impl Report {
    /// To stderr.
    pub fn new() -> Self {
        let (lines, to_write) = mpsc::sync_channel::<String>(WAITING);
        let (finished, done) = mpsc::channel();
        thread::spawn(move || {
            for line in to_write {
                // Nobody reads any more: the watch ends the work, not this.
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
            let _ = finished.send(());
        });
        Self { lines, done, left_out: Cell::new(0) }
    }

    /// One line without a report around it.
    pub fn say(text: &str) {
        // Nobody may be reading; eprintln! would panic then.
        let _ = std::io::stderr().write_all(framed(" !     ", text).as_bytes());
    }

    /// A phase begins, or something has come about.
    pub fn step(&self, text: &str) {
        self.insist("-----> ", text);
    }

    /// What went wrong.
    pub fn trouble(&self, text: &str) {
        self.insist(" !     ", text);
    }

    /// What a phase says.
    pub fn detail(&self, text: &str) {
        if self.left_out.get() > 0 {
            let told = format!("({} lines are left out here)", self.left_out.get());
            if self.lines.try_send(framed(DETAIL, &told)).is_ok() {
                self.left_out.set(0);
            }
        }
        if self.lines.try_send(framed(DETAIL, text)).is_err() {
            self.left_out.set(self.left_out.get() + 1);
        }
    }

    fn insist(&self, margin: &str, text: &str) {
        let mut line = framed(margin, text);
        for _ in 0..TRIES {
            match self.lines.try_send(line) {
                Err(mpsc::TrySendError::Full(again)) => line = again,
                Ok(()) | Err(mpsc::TrySendError::Disconnected(_)) => return,
            }
            thread::sleep(TRY_AGAIN);
        }
    }

    /// Waits until all is out; false when the reader does not take it.
    pub fn flush(self) -> bool {
        drop(self.lines);
        self.done.recv_timeout(FLUSH).is_ok()
    }
}

fn framed(margin: &str, text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{margin}{}\n", clean(line))).collect();
    if lines.is_empty() { format!("{margin}\n") } else { lines }
}

/// A line without what could steer a terminal, and not endless.
pub fn clean(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // ESC [ … letter: colours and cursor movements (ECMA-48).
            '\x1b' if characters.peek() == Some(&'[') => {
                characters.next();
                while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\t' => text.push_str("    "),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST).chain("…".chars()).collect();
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_cursors_are_taken_out() {
        assert_eq!(clean("\x1b[1;31mred\x1b[0m\tx\x07 "), "red    x");
        assert_eq!(clean("\x1b[2J\x1b[Hgone"), "gone");
        assert_eq!(clean("\x1b["), "");
        assert_eq!(clean(&"x".repeat(1000)).chars().count(), LONGEST + 1);
    }
}
