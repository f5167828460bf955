//! A browser: Chromium without a screen, which trusts one root as NSS keeps it and asks the fleet's name server.
//!
//! The page it opens is `tests/clients/browser.html`, from `mashines-web`. What the page sees goes to the browser's console, and from there to
//! the browser's error output: the word of a page that lost its server arrives all the same.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::netns::{Place, Topology};
use crate::run::{run, wait_for};
use crate::web::Told;

/// Its first start reads 300 MB from the lab's disk, beside machines that are busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// The lines of its error output that a failure shows.
const SHOWN: usize = 30;

/// What the page has seen so far: one connection of each kind.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    /// What the page itself came over: `h2`.
    pub protocol: String,
    /// A connection that ended, or brought something else than it should.
    pub error: Option<String>,
    /// A WebSocket's messages, each sent and come back.
    pub socket: Told,
    /// Server-sent events.
    pub events: Told,
    /// Pieces of a download.
    pub download: Told,
}

impl Seen {
    /// Each kind of connection with what has come by it.
    pub fn kinds(&self) -> [(&'static str, &Told); 3] {
        [("socket", &self.socket), ("events", &self.events), ("download", &self.download)]
    }
}

/// A browser with one page open. It ends with this value.
pub struct Browser {
    process: Child,
    said: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    seen: Option<Seen>,
    last_lines: VecDeque<String>,
}

impl Said {
    fn words(&self) -> String {
        self.last_lines.iter().fold("the browser said last:".to_owned(), |words, line| words + "\n" + line)
    }
}

impl Browser {
    /// Opens a page, in the client's place. Nothing has come yet.
    pub fn open(topology: &Topology, root: &Path, url: &str) -> Result<Self> {
        let home = root.with_file_name("browser");
        trust(&home, root)?;
        let mut chromium = topology.command(Place::Client, "chromium-headless-shell");
        chromium.env("HOME", &home).args([
            // It runs as root here, in a machine that is thrown away.
            "--no-sandbox",
            "--no-zygote",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--enable-logging=stderr",
        ]);
        chromium.arg(format!("--user-data-dir={}", home.join("profile").display())).arg(url);
        chromium.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own: it has many processes, which end together.
        let mut process =
            chromium.process_group(0).spawn().context("cannot start chromium-headless-shell")?;
        let errors = process.stderr.take().context("no error output")?;
        let said = Arc::<Mutex<Said>>::default();
        let listener = said.clone();
        std::thread::spawn(move || listen(errors, &listener));
        Ok(Self { process, said })
    }

    /// Waits until so many more of each kind have come than had at the time of the call.
    pub fn receive(&mut self, more: u64) -> Result<Seen> {
        let before = self.look()?.map_or([0; 3], |seen| seen.kinds().map(|(_, told)| told.count));
        wait_for("the browser's page", PATIENCE, Duration::from_millis(200), || {
            // What failed does not come back: no reason to wait for it.
            let seen = match self.look() {
                Ok(seen) => seen.context("the page has not said anything yet")?,
                Err(failure) => return Ok(Err(failure)),
            };
            for ((what, told), before) in seen.kinds().into_iter().zip(before) {
                ensure!(told.count >= before + more, "{what}: {} messages, {before} before", told.count);
            }
            Ok(Ok(seen))
        })
        .with_context(|| lock(&self.said).words())?
    }

    /// What the page said last. The error of a page or a browser that failed has the browser's last words.
    pub fn look(&mut self) -> Result<Option<Seen>> {
        let ended = self.process.try_wait()?;
        let said = lock(&self.said);
        if let Some(status) = ended {
            bail!("the browser ended with {status}; {}", said.words());
        }
        let seen = said.seen.clone();
        if let Some(error) = seen.as_ref().and_then(|seen| seen.error.as_ref()) {
            bail!("the page's {error}; {}", said.words());
        }
        Ok(seen)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = i32::try_from(self.process.id()).map(|id| killpg(Pid::from_raw(id), Signal::SIGKILL));
        let _ = self.process.wait();
    }
}

/// Has whoever's home that is trust the root, as NSS keeps it and Chromium reads it.
fn trust(home: &Path, root: &Path) -> Result<()> {
    let store = home.join(".pki/nssdb");
    std::fs::create_dir_all(&store)?;
    let database = format!("sql:{}", store.display());
    let certutil = |words: &[&str]| run(Command::new("certutil").args(["-d", &database]).args(words));
    certutil(&["-N", "--empty-password"])?;
    certutil(&["-A", "-t", "C,,", "-n", "issuer", "-i", &root.to_string_lossy()]).map(drop)
}

/// Sorts what the browser says, until it ends.
fn listen(errors: impl Read, said: &Mutex<Said>) {
    for line in BufReader::new(errors).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line);
        let mut said = lock(said);
        if let Some(seen) = of_console(&line) {
            said.seen = Some(seen);
            continue;
        }
        if said.last_lines.len() == SHOWN {
            said.last_lines.pop_front();
        }
        said.last_lines.push_back(line.into_owned());
    }
}

/// What the page wrote: `[…:INFO:CONSOLE:66] "{…}", source: https://… (66)`.
fn of_console(line: &str) -> Option<Seen> {
    let (_, said) = line.split_once(":CONSOLE")?.1.split_once('"')?;
    serde_json::from_str(said.rsplit_once("\", source: ")?.0).ok()
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_page_is_told_from_the_words_of_its_browser() {
        let told = r#"{"count":7,"largest_gap_ms":120}"#;
        let word =
            format!(r#"{{"protocol":"h2","error":null,"socket":{told},"events":{told},"download":{told}}}"#);
        let page = format!(
            r#"[1123/004455.080040:INFO:CONSOLE:66] "{word}", source: https://web.mashine.dev/browser (66)"#
        );
        let seen = of_console(&page).unwrap();
        assert_eq!((seen.protocol.as_str(), seen.error, seen.events.count), ("h2", None, 7));
        for other in
            ["[1123/004455.080040:ERROR:dbus/bus.cc:405] Failed to connect to the bus: \"none\"", &word, ""]
        {
            assert!(of_console(other).is_none(), "{other}");
        }
    }
}
