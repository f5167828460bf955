//! Operations: what the command line asks for by `exec`, which must return soon. See [`mashines_guest::deployment`].
//!
//! ```text
//! operations/ID/  order.json   what is asked for (0600; removed when it is read)
//!                 log          what is said; flock(2) held by who works, so that its end is seen whatever ended it
//!                 lease        touched by each follow
//!                 cancel       asks to stop
//!                 ended.json   how it ended
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use mashines_guest::deployment::{Ask, Begun, Ended, MAX_TEXT, Order, Progress, check_name};

use super::phase::Failure;
use super::place::{Place, now_ms, read_json, write_json};
use super::release::{Release, State};
use super::repository::Repository;
use super::watch::Watch;
use super::work::{Cause, Work};

/// Operations are forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// How long `cancel` waits for the end.
const CANCEL: Duration = Duration::from_secs(20);

/// `deploy begin`: starts it, and returns.
pub fn begin(place: &Place, order: &Order) -> Result<Begun> {
    place.make()?;
    forget(place);
    let operation = format!("{}-{}", now_ms(), std::process::id());
    let directory = directory(place, &operation)?;
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    write_json(&directory.join("order.json"), order, 0o600)?;
    fs::write(directory.join("lease"), "").context("making the lease")?;
    let log = File::create(directory.join("log")).context("making the log")?;
    // The child's stderr is this open file: the lock is the child's as soon as ours is closed.
    log.try_lock().context("locking the log")?;
    Command::new(std::env::current_exe().context("finding this program")?)
        .args(["deploy", "operate", &operation])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context("starting the operation")?;
    Ok(Begun { operation })
}

/// `deploy operate`: does it.
pub fn operate(place: &Place, operation: &str) -> Result<()> {
    let directory = directory(place, operation)?;
    let path = directory.join("order.json");
    let Some(order) = read_json::<Order>(&path)? else { bail!("operation {operation} has no order") };
    fs::remove_file(&path).context("removing the order")?;
    let ended = carry_out(place, order, Watch::lease(directory.clone()));
    write_json(&directory.join("ended.json"), &ended, 0o600)
}

/// Does what is asked, telling stderr, and says how it ended.
pub fn carry_out(place: &Place, order: Order, watch: Watch) -> Ended {
    let done = Repository::open(place).map_err(Failure::from).and_then(|repository| {
        let mut work = Work::new(place.clone(), repository, watch);
        let done = ask(&mut work, order);
        if let Err(failure) = &done {
            failure.tell(&work.report);
        }
        work.report.flush();
        done
    });
    match done {
        Ok(live) => Ended { live, error: None },
        Err(failure) => Ended { live: None, error: Some(failure.summary()) },
    }
}

fn ask(work: &mut Work, order: Order) -> Result<Option<u64>, Failure> {
    let by = order.by;
    let who = |what: &str| {
        format!("a newer {what}{}", by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default())
    };
    match order.ask {
        Ask::Rollback { to } => {
            let _turn = work.turn(&who("rollback"))?;
            work.rollback(to).map(Some)
        }
        Ask::Config { set, unset } => {
            for name in set.keys().chain(&unset) {
                check_name(name).map_err(|why| Failure::plain("Config", why, None))?;
            }
            let _turn = work.turn(&who("change of variables"))?;
            work.config(set, &unset, by)
        }
        Ask::Redeploy => {
            let repository = work.repository.clone();
            let state = State::load(&work.place)?;
            let live = state.live.map(|live| Release::load(&work.place, live)).transpose()?.flatten();
            let wanted = live.map(|live| live.branch);
            let branch = wanted
                .iter()
                .map(String::as_str)
                .chain(["main", "master"])
                .find(|name| repository.head_of(name).is_some());
            let Some(branch) = branch.map(str::to_owned) else {
                return Err(Failure::plain(
                    "Redeploy",
                    "nothing has been pushed yet",
                    Some("git push mashine main"),
                ));
            };
            let head = repository.head_of(&branch).unwrap_or_default();
            let plan = work.recognise(&repository.commit(&head)?)?;
            let _turn = work.turn(&who("redeployment"))?;
            let cause = Cause { branch, by, cause: Some("redeploy".to_owned()), ..Cause::default() };
            work.deploy(&head, plan, cause).map(Some)
        }
    }
}

/// `deploy follow`: what it has said since `offset`.
pub fn follow(place: &Place, operation: &str, offset: u64) -> Result<Progress> {
    let directory = directory(place, operation)?;
    let mut log =
        File::open(directory.join("log")).with_context(|| format!("there is no operation {operation}"))?;
    fs::write(directory.join("lease"), "").context("renewing the lease")?;
    // Asked before the log is read: what ends in between has its last words read.
    let works = log.try_lock_shared().is_err();
    log.seek(SeekFrom::Start(offset)).context("reading the log")?;
    let mut bytes = Vec::new();
    log.take(u64::try_from(MAX_TEXT)?).read_to_end(&mut bytes).context("reading the log")?;
    let is_cut = bytes.len() == MAX_TEXT;
    if works || is_cut {
        // Whole lines: a character may be cut in two.
        bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let ended = match works || is_cut {
        true => None,
        false => Some(read_json(&directory.join("ended.json"))?.unwrap_or_else(|| Ended {
            live: None,
            error: Some("it was killed, or the machine was started anew".to_owned()),
        })),
    };
    Ok(Progress { text, offset: offset + u64::try_from(bytes.len())?, ended })
}

/// `deploy cancel`: asks it to stop, and waits until it has.
pub fn cancel(place: &Place, operation: &str) -> Result<Progress> {
    let directory = directory(place, operation)?;
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("cancel"))
        .context("asking it to stop")?;
    let started = Instant::now();
    let mut last = follow(place, operation, 0)?;
    while last.ended.is_none() && started.elapsed() < CANCEL {
        sleep(Duration::from_millis(50));
        last = follow(place, operation, last.offset)?;
    }
    Ok(Progress { text: String::new(), ..last })
}

fn directory(place: &Place, operation: &str) -> Result<PathBuf> {
    if operation.is_empty() || !operation.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        bail!("{operation:?} names no operation");
    }
    Ok(place.base().join("operations").join(operation))
}

fn forget(place: &Place) {
    let Ok(entries) = fs::read_dir(place.base().join("operations")) else { return };
    for entry in entries.flatten() {
        let touched = fs::metadata(entry.path().join("lease")).and_then(|lease| lease.modified());
        if touched.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > FORGOTTEN)) {
            // A record that stays costs nothing but its room.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
