//! The bare repository of a machine, and what is read from it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::place::Place;
use super::plan::Tree;

/// How git finds this program again. Whoever became git named itself; a push from within the machine takes the agent.
const HOOK: &str = "#!/bin/sh\nexec \"${MASHINES_AGENT:-/run/mashines/agent}\" deploy ";

/// Force pushes are allowed: what is pushed is what shall run. A shallow clone may be pushed: a build needs no history. gc that went to the
/// background would have the turn as long as it takes.
const SETTINGS: [(&str, &str); 5] = [
    ("receive.advertisePushOptions", "true"),
    ("receive.shallowUpdate", "true"),
    ("receive.denyDeleteCurrent", "ignore"),
    ("gc.autoDetach", "false"),
    ("maintenance.autoDetach", "false"),
];

/// The repository.
#[derive(Clone, Debug)]
pub struct Repository {
    path: PathBuf,
}

/// A commit, as the tree that it holds.
pub struct Commit<'a> {
    repository: &'a Repository,
    name: String,
}

/// A submodule: where it belongs, and which commit of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submodule {
    /// Its directory in the tree.
    pub path: String,
    /// Its commit.
    pub commit: String,
}

impl Repository {
    /// Opens it, making it at first use; configuration and hooks are written each time, since they belong to this program.
    pub fn open(place: &Place) -> Result<Self> {
        place.make()?;
        let repository = Self { path: place.repository() };
        if !repository.path.join("HEAD").exists() {
            repository.make()?;
        }
        for (name, value) in SETTINGS {
            repository.git(&["config", name, value])?;
        }
        for hook in ["pre-receive", "post-receive"] {
            write_hook(&repository.path.join("hooks").join(hook), &format!("{HOOK}{hook}\n"))?;
        }
        Ok(repository)
    }

    /// The one that is there; for hooks, which run in it.
    pub fn existing(place: &Place) -> Self {
        Self { path: place.repository() }
    }

    fn make(&self) -> Result<()> {
        // By a rename: a repository cut short by a crash is made again.
        let new = self.path.with_extension("new");
        let _ = fs::remove_dir_all(&new);
        let made = Command::new("git")
            .args(["init", "--quiet", "--bare", "--template=", "--initial-branch=main"])
            .arg(&new)
            .stdin(Stdio::null())
            .output();
        let output = match made {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "git is not installed in this machine: apt-get install git, or launch it from the image container-os"
                )
            }
            Err(error) => return Err(error).context("starting git init"),
        };
        if !output.status.success() {
            bail!("git init: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::create_dir_all(new.join("hooks")).with_context(|| format!("making {}/hooks", new.display()))?;
        fs::rename(&new, &self.path).with_context(|| format!("making {}", self.path.display()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A git command on it. In a hook, git's variables lead it to the objects that are in quarantine.
    pub fn command(&self) -> Command {
        let mut command = Command::new("git");
        command.arg("--git-dir").arg(&self.path).stdin(Stdio::null());
        command
    }

    /// Runs one, and gives its stdout without the last newline.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        let what = || format!("git {}", arguments.join(" "));
        let output = self.command().args(arguments).output().with_context(what)?;
        if !output.status.success() {
            bail!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    }

    /// The branches that there are.
    pub fn branches(&self) -> Result<Vec<String>> {
        let text = self.git(&["for-each-ref", "--format=%(refname:strip=2)", "refs/heads/"])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The commit that a branch is at.
    pub fn head_of(&self, branch: &str) -> Option<String> {
        let name = format!("refs/heads/{branch}^{{commit}}");
        self.git(&["rev-parse", "--quiet", "--verify", "--end-of-options", &name]).ok()
    }

    /// The commit that an object is or points at.
    pub fn commit(&self, object: &str) -> Result<Commit<'_>> {
        let name =
            self.git(&["rev-parse", "--verify", "--end-of-options", &format!("{object}^{{commit}}")])?;
        Ok(Commit { repository: self, name })
    }
}

impl Commit<'_> {
    /// Its full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first line of its message.
    pub fn subject(&self) -> String {
        let text = self.repository.git(&["log", "-1", "--format=%s", &self.name]).unwrap_or_default();
        text.chars().filter(|character| !character.is_control()).take(100).collect()
    }

    /// The submodules it names.
    pub fn submodules(&self) -> Result<Vec<Submodule>> {
        let text = self.repository.git(&["ls-tree", "-r", "-z", &self.name])?;
        Ok(text.split('\0').filter_map(submodule).collect())
    }

    /// Writes its files into a directory. Not `git archive`: that leaves out what .gitattributes marks export-ignore.
    pub fn check_out(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let index = directory.with_extension("index");
        let git = |arguments: &[&str]| -> Result<()> {
            let output = self
                .repository
                .command()
                .arg("--work-tree")
                .arg(directory)
                .args(arguments)
                .env("GIT_INDEX_FILE", &index)
                .output()
                .context("starting git")?;
            match output.status.success() {
                true => Ok(()),
                false => bail!("git {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim()),
            }
        };
        let done =
            git(&["read-tree", &self.name]).and_then(|()| git(&["checkout-index", "--all", "--force"]));
        let _ = fs::remove_file(&index);
        done.with_context(|| format!("writing the tree of {} to {}", self.name, directory.display()))
    }
}

impl Tree for Commit<'_> {
    fn read(&self, path: &str) -> Option<String> {
        // The colon form takes any path of the tree, and never a file outside.
        self.repository.git(&["cat-file", "blob", &format!("{}:{path}", self.name)]).ok()
    }
}

/// `160000 commit OBJECT\tPATH` of ls-tree.
fn submodule(entry: &str) -> Option<Submodule> {
    let (head, path) = entry.split_once('\t')?;
    let commit = head.strip_prefix("160000 commit ")?;
    Some(Submodule { path: path.to_owned(), commit: commit.to_owned() })
}

fn write_hook(path: &Path, text: &str) -> Result<()> {
    let what = || format!("writing {}", path.display());
    if fs::read_to_string(path).is_ok_and(|existing| existing == text) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::create_dir_all(path.parent().unwrap_or(path)).with_context(what)?;
    fs::write(&new, text).with_context(what)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).with_context(what)?;
    fs::rename(&new, path).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_commits_are_submodules() {
        let link = submodule("160000 commit 0123\tlib/with space").unwrap();
        assert_eq!((link.path.as_str(), link.commit.as_str()), ("lib/with space", "0123"));
        assert_eq!(submodule("100644 blob 0123\tfile"), None);
        assert_eq!(submodule(""), None);
    }
}
