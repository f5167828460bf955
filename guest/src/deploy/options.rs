//! Push options: `git push -o NAME[=VALUE]` (git-push(1)). Pure.

use std::collections::BTreeMap;

use mashines_guest::deployment::check_name;

/// What the error for an unknown one lists.
const KNOWN: &str = "no-deploy, skip-health, branch=NAME, env.NAME=VALUE";

/// The options of one push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Store, and deploy nothing.
    pub no_deploy: bool,
    /// Switch over as soon as the processes run.
    pub skip_health: bool,
    /// In this push that branch deploys.
    pub branch: Option<String>,
    /// Variables to set for this release and those after it.
    pub env: BTreeMap<String, String>,
}

impl Options {
    /// Reads them. The error is for the person who pushed.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut parsed = Self::default();
        for option in options {
            match option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value))) {
                ("no-deploy", None) => parsed.no_deploy = true,
                ("skip-health", None) => parsed.skip_health = true,
                ("branch", Some(branch)) if !branch.is_empty() => parsed.branch = Some(branch.to_owned()),
                (name, Some(value)) if name.starts_with("env.") => {
                    let name = name.trim_start_matches("env.");
                    check_name(name)?;
                    parsed.env.insert(name.to_owned(), value.to_owned());
                }
                // Not the value: it may be a secret.
                (name, _) => return Err(format!("push option '{name}' is not known; there are: {KNOWN}")),
            }
        }
        if parsed.no_deploy && (parsed.skip_health || !parsed.env.is_empty()) {
            return Err("push option 'no-deploy' goes with no option about a deployment".to_owned());
        }
        Ok(parsed)
    }

    /// For the release's record: without values of variables.
    pub fn recorded(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.skip_health {
            words.push("skip-health".to_owned());
        }
        words.extend(self.branch.iter().map(|branch| format!("branch={branch}")));
        words.extend(self.env.keys().map(|name| format!("env.{name}")));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_read_and_recorded_without_values() {
        let options = Options::parse(["skip-health", "branch=dev", "env.KEY=se=cret", "env.EMPTY="]).unwrap();
        assert!(options.skip_health && !options.no_deploy);
        assert_eq!(options.branch.as_deref(), Some("dev"));
        assert_eq!(options.env["KEY"], "se=cret");
        assert_eq!(options.recorded(), ["skip-health", "branch=dev", "env.EMPTY", "env.KEY"]);
    }

    #[test]
    fn what_is_not_known_lists_what_is_and_shows_no_value() {
        for unknown in ["nodeploy", "no-deploy=1", "branch", "branch=", "ENV.KEY=secret"] {
            let error = Options::parse([unknown]).unwrap_err();
            assert!(error.contains("no-deploy, skip-health, branch=NAME, env.NAME=VALUE"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(Options::parse(["env.PORT=1"]).unwrap_err().contains("app_port"));
        assert!(Options::parse(["no-deploy", "skip-health"]).is_err());
    }
}
