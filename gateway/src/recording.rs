//! Recordings of sessions at terminals, as asciicast v2 files (`asciinema play` shows them; the format is asciinema's
//! `doc/asciicast-v2.md`).
//!
//! Only what a terminal shows is recorded: what a person types is seen there as far as it is echoed, and a password is not. A session
//! without a terminal (scp, rsync, git) is never recorded. A disk that is slow or full loses events, and the file says how many; no
//! session waits for it. How long they are kept is [`prune`]'s affair.

pub mod prune;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use serde_json::json;
use tracing::warn;

/// Events that wait for the disk.
const QUEUE: usize = 1024;

/// A recording is over at this many bytes.
const LONGEST: u64 = 64 << 20;

/// Where recordings are kept: `DIRECTORY/MACHINE/TIME-NUMBER.cast`.
#[derive(Debug, Clone)]
pub struct Recordings {
    directory: PathBuf,
}

/// What was said of a terminal when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Its kind: `xterm-256color`.
    pub kind: String,
    /// Columns and rows.
    pub size: (u32, u32),
}

/// A recording that is under way.
#[derive(Debug)]
pub struct Tape {
    events: SyncSender<Event>,
    begun: Instant,
    lost: u64,
}

#[derive(Debug)]
enum Event {
    Shown(f64, Bytes),
    Resized(f64, u32, u32),
    Lost(f64, u64),
}

impl Recordings {
    /// In `directory`, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Begins a recording of a session in `machine`; `title` says whose it is.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin(&self, machine: &str, title: &str, terminal: &Terminal) -> io::Result<Tape> {
        let directory = self.directory.join(machine);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = directory.join(format!("{}-{:06}.cast", now.as_secs(), now.subsec_micros()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let header = json!({
            "version": 2, "width": terminal.size.0, "height": terminal.size.1, "timestamp": now.as_secs(),
            "title": title, "env": {"TERM": terminal.kind},
        });
        let (events, queue) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("recording".to_owned())
            .spawn(move || report(&path, write(file, &header, &queue)))?;
        Ok(Tape { events, begun: Instant::now(), lost: 0 })
    }
}

impl Tape {
    /// The terminal was sent that.
    pub fn shown(&mut self, data: &Bytes) {
        self.put(Event::Shown(self.now(), data.clone()));
    }

    /// The window has another size now.
    pub fn resized(&mut self, columns: u32, rows: u32) {
        self.put(Event::Resized(self.now(), columns, rows));
    }

    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn put(&mut self, event: Event) {
        if self.lost > 0 && self.events.try_send(Event::Lost(self.now(), self.lost)).is_ok() {
            self.lost = 0;
        }
        match self.events.try_send(event) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => (),
            Err(TrySendError::Full(_)) => self.lost += 1,
        }
    }
}

fn report(path: &Path, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        warn!(file = %path.display(), %error, "a recording ends early");
    }
}

fn write(file: File, header: &serde_json::Value, events: &Receiver<Event>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    let mut written = line(&mut file, header)?;
    let mut text = Utf8::default();
    loop {
        // While nothing comes, what there is shall be readable.
        let event = match events.try_recv() {
            Ok(event) => event,
            Err(_none) => {
                file.flush()?;
                let Ok(event) = events.recv() else { return Ok(()) };
                event
            }
        };
        written += match event {
            Event::Shown(at, data) => line(&mut file, &json!([at, "o", text.push(&data)]))?,
            Event::Resized(at, columns, rows) => {
                line(&mut file, &json!([at, "r", format!("{columns}x{rows}")]))?
            }
            Event::Lost(at, lost) => line(&mut file, &json!([at, "m", format!("{lost} events lost")]))?,
        };
        if written > LONGEST {
            line(&mut file, &json!([0, "m", "the recording is full"]))?;
            return file.flush();
        }
    }
}

fn line(file: &mut impl io::Write, value: &serde_json::Value) -> io::Result<u64> {
    let mut text = value.to_string();
    text.push('\n');
    file.write_all(text.as_bytes())?;
    Ok(u64::try_from(text.len()).unwrap_or(u64::MAX))
}

/// Text out of pieces of a stream that are cut anywhere.
#[derive(Debug, Default)]
struct Utf8 {
    begun: Vec<u8>,
}

impl Utf8 {
    /// All whole characters so far. What is none is shown as U+FFFD.
    fn push(&mut self, data: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(data);
        self.begun = bytes.split_off(bytes.len() - unfinished(&bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Bytes at the end that begin a character and do not end it.
fn unfinished(bytes: &[u8]) -> usize {
    let begin = bytes.iter().rev().take(3).position(|byte| byte & 0xc0 == 0xc0);
    let Some(back) = begin.map(|back| back + 1) else { return 0 };
    let tail = &bytes[bytes.len() - back..];
    match std::str::from_utf8(tail) {
        Err(error) if error.error_len().is_none() => back,
        Ok(_) | Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_recording_is_a_header_and_an_event_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let recordings = Recordings::new(directory.path().join("deep"));
        let terminal = Terminal { kind: "xterm".into(), size: (80, 24) };
        let mut tape = recordings.begin("web", "ann", &terminal).unwrap();
        tape.shown(&Bytes::from_static(b"h\xc3"));
        tape.shown(&Bytes::from_static(b"\xa9\r\n"));
        tape.resized(100, 30);
        drop(tape);
        let entries = || std::fs::read_dir(directory.path().join("deep/web")).unwrap();
        let path = entries().next().unwrap().unwrap().path();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut lines = Vec::new();
        for _ in 0..100 {
            let text = std::fs::read_to_string(&path).unwrap();
            lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()).collect();
            if lines.len() == 4 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!((&lines[0]["version"], &lines[0]["width"]), (&json!(2), &json!(80)));
        let events: Vec<_> = lines[1..].iter().map(|event| (&event[1], &event[2])).collect();
        assert_eq!(
            events,
            [(&json!("o"), &json!("h")), (&json!("o"), &json!("é\r\n")), (&json!("r"), &json!("100x30"))]
        );
    }

    proptest! {
        #[test]
        fn text_survives_any_cut(text in "\\PC{0,40}", cuts in prop::collection::vec(0usize..200, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let (mut utf8, mut from, mut whole) = (Utf8::default(), 0, String::new());
            for to in cuts.into_iter().chain([bytes.len()]) {
                whole += &utf8.push(&bytes[from..to]);
                from = to;
            }
            prop_assert_eq!(whole, text);
        }

        #[test]
        fn any_bytes_become_text_and_little_is_kept_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9)) {
            let mut utf8 = Utf8::default();
            for piece in pieces {
                let _ = utf8.push(&piece);
                prop_assert!(utf8.begun.len() < 4);
            }
        }
    }
}
