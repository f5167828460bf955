//! git over `ssh://web@gateway/path`: plain repositories inside a machine.

use std::path::Path;

use crate::common::clients::{hurried, noise, succeed, tool};
use crate::common::{Output, Stage, finish};
use tokio::process::Command;

fn git(stage: &Stage, folder: &Path, arguments: &[&str]) -> Command {
    let mut git = tool("git", "git");
    git.current_dir(folder).env("GIT_SSH_COMMAND", stage.ssh_line("ann")).env("GIT_CONFIG_NOSYSTEM", "1");
    git.env("HOME", stage.directory.path()).env("GIT_TERMINAL_PROMPT", "0");
    git.args(["-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main"]);
    // Submodules by ssh are asked for in plain words.
    git.args(["-c", "protocol.allow=always", "-c", "gc.auto=0"]).args(arguments);
    git
}

async fn run(stage: &Stage, folder: &Path, arguments: &[&str]) -> Output {
    succeed(git(stage, folder, arguments), b"").await
}

fn url(stage: &Stage, path: &Path) -> String {
    format!("ssh://web@127.0.0.1:{}{}", stage.port(), path.display())
}

/// A repository inside the machine, and one here with a commit, which has it as its origin.
async fn repositories(stage: &Stage, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let (there, here) = (stage.path(&format!("{name}.git")), stage.path(name));
    run(stage, stage.directory.path(), &["init", "-q", "--bare", there.to_str().unwrap()]).await;
    run(stage, stage.directory.path(), &["init", "-q", here.to_str().unwrap()]).await;
    commit(stage, &here, "first").await;
    run(stage, &here, &["remote", "add", "origin", &url(stage, &there)]).await;
    (there, here)
}

async fn commit(stage: &Stage, here: &Path, word: &str) {
    std::fs::write(here.join(word), word).unwrap();
    run(stage, here, &["add", "-A"]).await;
    run(stage, here, &["commit", "-q", "-m", word]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn push_clone_fetch_tags_and_force() {
    let stage = Stage::with(hurried).await;
    let (there, here) = repositories(&stage, "app").await;
    let pushed = run(&stage, &here, &["push", "-u", "origin", "main"]).await;
    assert!(pushed.err.contains("main -> main"), "{pushed:?}");
    let clone = stage.path("clone");
    run(&stage, stage.directory.path(), &["clone", "-q", &url(&stage, &there), clone.to_str().unwrap()])
        .await;
    run(&stage, &here, &["tag", "-a", "v1", "-m", "one"]).await;
    commit(&stage, &here, "second").await;
    run(&stage, &here, &["push", "--atomic", "--follow-tags", "origin", "main"]).await;
    run(&stage, &clone, &["pull", "-q", "--tags"]).await;
    assert_eq!(run(&stage, &clone, &["describe", "--tags", "HEAD~1"]).await.text(), "v1\n");
    // Another history: refused, then forced.
    run(&stage, &here, &["commit", "-q", "--amend", "-m", "rewritten"]).await;
    let refused = finish(git(&stage, &here, &["push", "origin", "main"]), b"").await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("non-fast-forward"), "{refused:?}");
    run(&stage, &here, &["push", "-q", "--force-with-lease", "origin", "main"]).await;
    run(&stage, &here, &["push", "-q", "origin", ":refs/tags/v1", "main:refs/heads/other"]).await;
    let refs = run(&stage, &here, &["ls-remote", "origin"]).await.text();
    assert!(refs.contains("refs/heads/other") && !refs.contains("v1"), "{refs}");
    // What a hook inside the machine says, and that it refuses, arrives.
    use std::os::unix::fs::PermissionsExt as _;
    let hook = there.join("hooks/pre-receive");
    std::fs::write(&hook, "#!/bin/sh\necho told by a hook\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    commit(&stage, &here, "third").await;
    let refused = finish(git(&stage, &here, &["push", "origin", "main"]), b"").await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("remote: told by a hook"), "{refused:?}");
    let nothing = finish(git(&stage, &here, &["ls-remote", &url(&stage, &stage.path("no.git"))]), b"").await;
    assert!(nothing.err.contains("does not appear to be a git repository"), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_64_megabytes_goes_both_ways() {
    let stage = Stage::with(hurried).await;
    let (there, here) = repositories(&stage, "large").await;
    let data = noise(64 << 20);
    for (n, part) in data.chunks(4 << 20).enumerate() {
        std::fs::write(here.join(format!("part{n}")), part).unwrap();
    }
    commit(&stage, &here, "large").await;
    run(&stage, &here, &["-c", "pack.compression=0", "push", "origin", "main"]).await;
    let clone = stage.path("clone");
    run(&stage, stage.directory.path(), &["clone", "-q", &url(&stage, &there), clone.to_str().unwrap()])
        .await;
    assert!(std::fs::read(clone.join("part15")).unwrap() == data[60 << 20..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn shallow_and_partial_clones_and_submodules() {
    let stage = Stage::with(hurried).await;
    let (there, here) = repositories(&stage, "outer").await;
    let (inner_there, inner) = repositories(&stage, "inner").await;
    run(&stage, &inner, &["push", "-q", "origin", "main"]).await;
    run(&stage, &here, &["submodule", "--quiet", "add", &url(&stage, &inner_there), "inner"]).await;
    for word in ["one", "two", "three"] {
        commit(&stage, &here, word).await;
    }
    run(&stage, &here, &["push", "-q", "origin", "main"]).await;
    let root = stage.directory.path();
    let from = url(&stage, &there);
    let shallow = stage.path("shallow");
    let cloned = ["clone", "-q", "--depth=1", "--recurse-submodules", &from, shallow.to_str().unwrap()];
    run(&stage, root, &cloned).await;
    assert_eq!(run(&stage, &shallow, &["rev-list", "--count", "HEAD"]).await.text(), "1\n");
    assert_eq!(std::fs::read(shallow.join("inner/first")).unwrap(), b"first");
    run(&stage, &shallow, &["fetch", "-q", "--unshallow"]).await;
    assert_eq!(run(&stage, &shallow, &["rev-list", "--count", "HEAD"]).await.text(), "4\n");
    run(&stage, &there, &["config", "uploadpack.allowFilter", "true"]).await;
    let partial = stage.path("partial");
    run(&stage, root, &["clone", "-q", "--filter=blob:none", &from, partial.to_str().unwrap()]).await;
    assert_eq!(std::fs::read(partial.join("three")).unwrap(), b"three");
    // The second version of the protocol is asked for by a variable of the environment.
    let mut traced = git(&stage, root, &["ls-remote", &from]);
    traced.env("GIT_TRACE_PACKET", "1");
    let traced = succeed(traced, b"").await;
    assert!(traced.err.contains("version 2"), "{traced:?}");
}
