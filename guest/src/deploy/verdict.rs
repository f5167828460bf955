//! What becomes of a push: which of its refs deploys, if any. Pure.

use super::options::Options;

const MAIN: &str = "main";
const MASTER: &str = "master";
const HEADS: &str = "refs/heads/";

/// One line of what git's pre-receive hook reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// What the client takes the ref to be now; zeros for none.
    pub old: String,
    /// What it shall be; zeros to delete it.
    pub new: String,
    /// The ref's full name.
    pub name: String,
}

impl Update {
    /// Reads `OLD NEW REF`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim_end().splitn(3, ' ').map(str::to_owned);
        Some(Self { old: words.next()?, new: words.next()?, name: words.next()? })
    }

    /// The branch; `None` for a tag or another ref.
    pub fn branch(&self) -> Option<&str> {
        self.name.strip_prefix(HEADS)
    }

    fn deletes(&self) -> bool {
        is_null(&self.new)
    }
}

/// Whether it is git's name for no object.
pub fn is_null(object: &str) -> bool {
    object.bytes().all(|byte| byte == b'0')
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take it, deploy nothing, say this.
    Store(String),
    /// Take nothing, and say why and what to type.
    Refuse {
        /// Why.
        why: String,
        /// The command to type.
        hint: String,
    },
    /// Deploy this one, and take the others.
    Deploy(Update),
}

/// Judges a push. `named_by` gives the deploy branch that the mashine.toml of an update names; `existing` are the branches that
/// there are already, `serving` the one that serves.
pub fn judge(
    updates: &[Update],
    options: &Options,
    existing: &[String],
    serving: Option<&str>,
    named_by: impl Fn(&Update) -> Option<String>,
) -> Verdict {
    let pushed: Vec<&Update> = updates.iter().filter(|update| update.branch().is_some()).collect();
    let is_there = |branch: &str| {
        existing.iter().any(|name| name == branch)
            || pushed.iter().any(|update| update.branch() == Some(branch))
    };
    let usual = if !is_there(MAIN) && is_there(MASTER) { MASTER } else { MAIN };
    let wanted = |update: &Update| {
        options.branch.clone().or_else(|| named_by(update)).unwrap_or_else(|| usual.to_owned())
    };
    let deploys = |update: &&&Update| update.branch() == Some(wanted(update).as_str());
    let kept_branch = serving.unwrap_or(usual);
    if let Some(gone) = pushed.iter().find(|update| update.deletes() && update.branch() == Some(kept_branch))
    {
        return Verdict::Refuse {
            why: format!(
                "{} is the branch that deploys, and cannot be deleted",
                gone.branch().unwrap_or_default()
            ),
            hint: "to end the machine itself: mashines rm NAME".to_owned(),
        };
    }
    let kept: Vec<&Update> = pushed.iter().copied().filter(|update| !update.deletes()).collect();
    if options.no_deploy {
        return Verdict::Store("stored and not deployed, as -o no-deploy asks".to_owned());
    }
    if let Some(update) = kept.iter().find(deploys) {
        return Verdict::Deploy((*update).clone());
    }
    match kept.first() {
        Some(update) => wrong_branch(update.branch().unwrap_or_default(), &wanted(update)),
        None => Verdict::Store("stored; only branches deploy".to_owned()),
    }
}

fn wrong_branch(pushed: &str, wanted: &str) -> Verdict {
    Verdict::Refuse {
        why: format!("branch {pushed} was pushed, and {wanted} is the one that deploys"),
        hint: format!(
            "to deploy what you have checked out: git push mashine HEAD:{wanted}\n\
             to store {pushed} without a deployment: git push -o no-deploy mashine {pushed}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn update(name: &str) -> Update {
        Update { old: ZERO.into(), new: "1".repeat(40), name: name.into() }
    }

    fn judged(names: &[&str], options: &[&str], existing: &[&str]) -> Verdict {
        let updates: Vec<Update> = names.iter().map(|name| update(name)).collect();
        let existing: Vec<String> = existing.iter().map(|&name| name.to_owned()).collect();
        judge(&updates, &Options::parse(options.iter().copied()).unwrap(), &existing, None, |_| None)
    }

    fn deployed(verdict: Verdict) -> String {
        match verdict {
            Verdict::Deploy(update) => update.name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn main_deploys_and_master_where_there_is_no_main() {
        assert_eq!(deployed(judged(&["refs/heads/main"], &[], &[])), "refs/heads/main");
        assert_eq!(deployed(judged(&["refs/heads/master"], &[], &[])), "refs/heads/master");
        assert!(matches!(judged(&["refs/heads/master"], &[], &["main"]), Verdict::Refuse { .. }));
        assert_eq!(
            deployed(judged(&["refs/heads/dev", "refs/tags/v1", "refs/heads/main"], &[], &[])),
            "refs/heads/main"
        );
    }

    #[test]
    fn a_wrong_branch_gets_the_exact_command() {
        let Verdict::Refuse { why, hint } = judged(&["refs/heads/dev"], &[], &["main"]) else { panic!() };
        assert!(why.contains("dev") && why.contains("main"), "{why}");
        assert!(hint.contains("git push mashine HEAD:main\n"), "{hint}");
    }

    #[test]
    fn options_choose_the_branch_or_no_deployment() {
        assert_eq!(deployed(judged(&["refs/heads/dev"], &["branch=dev"], &["main"])), "refs/heads/dev");
        assert!(matches!(judged(&["refs/heads/dev"], &["no-deploy"], &[]), Verdict::Store(_)));
    }

    #[test]
    fn a_toml_names_its_branch() {
        let named =
            |update: &Update| Some(if update.name.ends_with("live") { "live" } else { "main" }.to_owned());
        let verdict = judge(&[update("refs/heads/live")], &Options::default(), &["main".into()], None, named);
        assert_eq!(deployed(verdict), "refs/heads/live");
    }

    #[test]
    fn tags_are_stored_and_the_deploy_branch_is_not_deleted() {
        assert!(matches!(judged(&["refs/tags/v1"], &[], &["main"]), Verdict::Store(_)));
        let gone = |name: &str| Update { new: ZERO.into(), ..update(name) };
        let judged =
            |name| judge(&[gone(name)], &Options::default(), &["main".into(), "dev".into()], None, |_| None);
        assert!(matches!(judged("refs/heads/main"), Verdict::Refuse { .. }));
        assert!(matches!(judged("refs/heads/dev"), Verdict::Store(_)));
    }

    #[test]
    fn a_hooks_line_reads() {
        let line = format!("{ZERO} {} refs/heads/with space\n", "1".repeat(40));
        assert_eq!(Update::parse(&line).unwrap().branch(), Some("with space"));
        assert_eq!(Update::parse("x y"), None);
    }
}
