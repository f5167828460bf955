//! From a commit to something that can run: the tree, its submodules, the build.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::phase::{Failure, shell};
use super::place::Place;
use super::plan::Kind;
use super::release::{Env, Release};
use super::report::Report;
use super::repository::{Commit, Submodule};
use super::run;
use super::watch::Watch;

/// Fetches one submodule, and those in it. The commit itself where the server gives it, else all there is. Nothing of git stays: the tree is
/// what is built.
const FETCH: &str = r#"
echo "$MODULE_PATH at $MODULE_COMMIT"
git init -q "./$MODULE_PATH"
cd "./$MODULE_PATH"
git remote add origin "$MODULE_URL"
git fetch -q --depth 1 origin "$MODULE_COMMIT" 2>/dev/null || git fetch -q origin '+refs/*:refs/fetched/*'
git checkout -q --detach "$MODULE_COMMIT"
git submodule --quiet update --init --recursive
find . -name .git -prune -exec rm -rf {} +
"#;

/// Writes the tree into the release's directory, submodules too.
pub fn fetch(
    place: &Place,
    release: &Release,
    commit: &Commit<'_>,
    report: &Report,
    watch: &mut Watch,
) -> Result<(), Failure> {
    let app = place.app(release.version);
    commit.check_out(&app)?;
    let submodules = commit.submodules()?;
    if submodules.is_empty() {
        return Ok(());
    }
    report.step(&format!("Fetching {} submodule(s)", submodules.len()));
    for submodule in submodules {
        let url = url_of(&app, &submodule)?;
        let env = Env::from(
            [
                ("MODULE_PATH", submodule.path.as_str()),
                ("MODULE_COMMIT", &submodule.commit),
                ("MODULE_URL", &url),
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new"),
                // git trusts no directory of another owner; a tree unpacked in a user namespace looks like one.
                ("GIT_CONFIG_COUNT", "1"),
                ("GIT_CONFIG_KEY_0", "safe.directory"),
                ("GIT_CONFIG_VALUE_0", "*"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        shell("Submodules", FETCH, &app, &env, report, watch)
            .map_err(|failure| unreachable(failure, &submodule, &url))?;
    }
    Ok(())
}

fn unreachable(failure: Failure, submodule: &Submodule, url: &str) -> Failure {
    match failure {
        Failure::Phase { phase, lines, .. } => Failure::Phase {
            phase,
            what: format!("{} could not be fetched from {url}", submodule.path),
            lines,
            hint: Some(
                "the machine fetches submodules itself: their URL must be one that it reaches without a password (https, public); \
                 or put the files into the repository"
                    .to_owned(),
            ),
        },
        other => other,
    }
}

/// Where `.gitmodules` says that a submodule comes from.
fn url_of(app: &Path, submodule: &Submodule) -> Result<String, Failure> {
    let text = fs::read_to_string(app.join(".gitmodules")).unwrap_or_default();
    let missing = |what: &str, hint: &str| {
        Failure::plain("Submodules", format!("{}: {what}", submodule.path), Some(hint))
    };
    let url = find_url(&text, &submodule.path).ok_or_else(|| {
        missing(
            ".gitmodules does not say where it comes from",
            "git submodule add URL PATH, commit, push; or git rm --cached PATH",
        )
    })?;
    if url.starts_with('.') {
        let hint = "a URL relative to where you cloned from means nothing in the machine: git submodule set-url PATH https://…";
        return Err(missing(&format!("its URL {url:?} is relative"), hint));
    }
    Ok(url)
}

/// `path` and `url` lines of one section of .gitmodules (gitmodules(5)), in either order.
fn find_url(text: &str, path: &str) -> Option<String> {
    text.split("[submodule").skip(1).find_map(|section| {
        let value = |name: &str| {
            section.lines().find_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        (value("path").as_deref() == Some(path)).then(|| value("url")).flatten()
    })
}

/// Builds it.
pub fn build(place: &Place, release: &Release, report: &Report, watch: &mut Watch) -> Result<(), Failure> {
    let app = place.app(release.build);
    let env = run::environment(place, release)?;
    let commands = [release.plan.build.clone(), run::build_command(release)];
    for line in commands.into_iter().flatten() {
        report.step(&format!("Building: {}", line.lines().next().unwrap_or_default()));
        shell("Build", &line, &app, &env, report, watch)?;
    }
    if release.plan.kind == Kind::Static && !app.join(&release.plan.folder).is_dir() {
        let what = format!("there is no folder {:?} after it", release.plan.folder);
        return Err(Failure::plain(
            "Build",
            what,
            Some("static in mashine.toml names the folder that the build makes"),
        ));
    }
    Ok(())
}

/// What comes before each start of a release of its own kind: `release` of mashine.toml or the Procfile.
pub fn before_start(
    place: &Place,
    release: &Release,
    report: &Report,
    watch: &mut Watch,
) -> Result<(), Failure> {
    let Some(line) = &release.plan.release else { return Ok(()) };
    report.step(&format!("Release command: {}", line.lines().next().unwrap_or_default()));
    let env = run::environment(place, release)?;
    let app = place.app(release.build);
    match release.plan.kind {
        Kind::Dockerfile => {
            let names: Vec<String> = env.keys().map(|name| format!("--env={name}")).collect();
            let inside = format!(
                "podman run --rm --network=host --cgroups=disabled {} {} sh -c \"$MASHINES_COMMAND\"",
                names.join(" "),
                release.image()
            );
            let mut env = env;
            env.insert("MASHINES_COMMAND".to_owned(), line.clone());
            shell("Release command", &inside, &app, &env, report, watch)
        }
        Kind::Compose | Kind::Run | Kind::Procfile | Kind::Static => {
            shell("Release command", line, &app, &env, report, watch)
        }
    }
}

/// Removes a tree; large ones take a while, so that it is renamed first and never half there.
pub fn remove_tree(place: &Place, version: u64) -> anyhow::Result<()> {
    let app = place.app(version);
    let gone = app.with_extension("gone");
    if app.exists() && !gone.exists() {
        fs::rename(&app, &gone).with_context(|| format!("removing {}", app.display()))?;
    }
    for directory in [gone, app] {
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submodules_url_is_found_by_its_path() {
        let text = "[submodule \"a\"]\n\tpath = lib/a\n\turl = https://x/a.git\n[submodule \"b\"]\n\turl = ../b\n\tpath = \"lib/b\"\n";
        assert_eq!(find_url(text, "lib/a").as_deref(), Some("https://x/a.git"));
        assert_eq!(find_url(text, "lib/b").as_deref(), Some("../b"));
        assert_eq!(find_url(text, "lib"), None);
        let b = Submodule { path: "lib/b".into(), commit: "1".into() };
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".gitmodules"), text).unwrap();
        assert!(url_of(directory.path(), &b).unwrap_err().summary().contains("relative"));
    }
}
