//! git's hooks: `pre-receive` deploys before any ref is updated, so that a build that fails rejects the push and git forgets its objects.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getppid;

use super::manifest::{self, Manifest};
use super::options::Options;
use super::phase::Failure;
use super::place::Place;
use super::plan::Tree;
use super::release::{Release, State, short};
use super::repository::Repository;
use super::verdict::{Update, Verdict, is_null, judge};
use super::watch::{Stopped, Watch};
use super::work::{Cause, Work};

/// The most that is read of refs, in bytes: some hundred thousand.
const MAX_INPUT: u64 = 16 << 20;

/// `pre-receive`: exit code 0 takes the push, 1 rejects it.
pub fn pre_receive(place: &Place) -> Result<i32> {
    let watch = Watch::git();
    let updates = read_updates()?;
    let mut work = Work::new(place.clone(), Repository::existing(place), watch);
    let outcome = receive(&mut work, &updates);
    let code = match outcome {
        Ok(()) => 0,
        Err(refusal) => {
            refusal.tell(&work.report);
            standing(place, &work);
            if matches!(refusal, Failure::Stopped(Stopped::ClientGone)) {
                forget_objects(&work.repository);
            }
            1
        }
    };
    let parent = getppid();
    if !work.report.flush() && code != 0 {
        // The client takes nothing any more and git would wait for it, with the turn in its hands.
        let _ = kill(parent, Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(code)
}

/// `post-receive`: the repository's HEAD follows the branch that deploys, so that a clone has files.
pub fn post_receive(place: &Place) -> Result<i32> {
    let updates = read_updates()?;
    let repository = Repository::existing(place);
    let head = repository.git(&["symbolic-ref", "--short", "HEAD"]).unwrap_or_default();
    if repository.head_of(&head).is_none()
        && let Some(update) = updates.iter().find(|update| update.branch().is_some() && !is_null(&update.new))
    {
        repository.git(&["symbolic-ref", "HEAD", &update.name])?;
    }
    Ok(0)
}

fn read_updates() -> Result<Vec<Update>> {
    let mut text = String::new();
    std::io::stdin().take(MAX_INPUT).read_to_string(&mut text).context("reading what is pushed")?;
    text.lines()
        .map(|line| match Update::parse(line) {
            Some(update) => Ok(update),
            None => bail!("git says {line:?}, which is no OLD NEW REF"),
        })
        .collect()
}

fn push_options() -> Vec<String> {
    let count: usize =
        std::env::var("GIT_PUSH_OPTION_COUNT").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    (0..count).filter_map(|n| std::env::var(format!("GIT_PUSH_OPTION_{n}")).ok()).collect()
}

fn receive(work: &mut Work, updates: &[Update]) -> Result<(), Failure> {
    let options = Options::parse(push_options().iter().map(String::as_str))
        .map_err(|why| Failure::plain("Push", why, None))?;
    let repository = work.repository.clone();
    let state = State::load(&work.place)?;
    let live = state.live.map(|live| Release::load(&work.place, live)).transpose()?.flatten();
    let named_by = |update: &Update| {
        let text = repository.commit(&update.new).ok()?.read(manifest::FILE)?;
        Manifest::parse(&text).ok()?.branch
    };
    let serving = live.as_ref().map(|live| live.branch.as_str());
    let update = match judge(updates, &options, &repository.branches()?, serving, named_by) {
        Verdict::Store(said) => {
            work.report.step(&said);
            return Ok(());
        }
        Verdict::Refuse { why, hint } => return Err(Failure::plain("Push", why, Some(&hint))),
        Verdict::Deploy(update) => update,
    };
    let branch = update.branch().unwrap_or_default().to_owned();
    let by = std::env::var("MASHINES_BY").ok().filter(|by| !by.is_empty());
    // What is no deployment at all supersedes none.
    let plan = work.recognise(&repository.commit(&update.new)?)?;
    let who = format!(
        "a newer push of {}{}",
        short(&update.new),
        by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default()
    );
    // Held by git too, until it has updated the ref.
    let _turn = work.turn(&who)?;
    unmoved(&repository, &update, &branch)?;
    let cause = Cause {
        branch,
        by,
        cause: None,
        options: options.recorded(),
        env: options.env,
        skip_health: options.skip_health,
    };
    work.deploy(&update.new, plan, cause).map(drop)
}

/// git compares again when it updates the ref; by then the release would serve.
fn unmoved(repository: &Repository, update: &Update, branch: &str) -> Result<(), Failure> {
    let now = repository.git(&["rev-parse", "--quiet", "--verify", &update.name]).ok();
    let expected = (!is_null(&update.old)).then(|| update.old.clone());
    if now == expected {
        return Ok(());
    }
    let at = now.as_deref().map_or("gone", short).to_owned();
    Err(Failure::plain(
        "Push",
        format!("{branch} has moved meanwhile: it is at {at}"),
        Some("another push was first. git fetch, look, and push again (with --force to replace it)"),
    ))
}

/// git removes the objects of a push that was refused, but not when it dies of its client's end. Nobody will take them now.
fn forget_objects(repository: &Repository) {
    let Some(path) = std::env::var_os("GIT_QUARANTINE_PATH").map(PathBuf::from) else { return };
    if path.starts_with(repository.path().join("objects")) && path.to_string_lossy().contains("incoming-") {
        // What stays is swept by a later push.
        let _ = std::fs::remove_dir_all(path);
    }
}

/// After a refusal: what goes on as before.
fn standing(place: &Place, work: &Work) {
    let live = State::load(place).ok().and_then(|state| state.live);
    work.report.trouble(&match live {
        Some(live) => format!("nothing was changed: v{live} serves on"),
        None => "nothing was changed: no release serves yet".to_owned(),
    });
}
