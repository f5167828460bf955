//! `mashine.toml`: what a person says about how their tree is built and run. All of it is optional. docs/deploy.md is the reference.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::plan::Kind;

/// The file's name, at the root of the tree.
pub const FILE: &str = "mashine.toml";

/// Its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The branch that deploys.
    pub branch: Option<String>,
    /// In place of recognising.
    pub kind: Option<Kind>,
    /// A shell command that builds.
    pub build: Option<String>,
    /// A shell command that runs once between the build and the start of each release.
    pub release: Option<String>,
    /// What runs.
    pub run: Option<Run>,
    /// A folder of files to serve.
    #[serde(rename = "static")]
    pub folder: Option<String>,
    /// The port on which the machine serves.
    pub port: Option<u16>,
    /// The port on which the program listens, whatever PORT says.
    pub app_port: Option<u16>,
    /// When a new release is ready for requests.
    pub health: Option<Health>,
    /// How long old connections may go on after a switch, in seconds.
    pub drain_seconds: Option<u64>,
    /// How many releases are kept.
    pub keep: Option<usize>,
}

/// `run = "…"`, the process `web`; or a table of processes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Run {
    /// One.
    Web(String),
    /// Several, by name.
    Processes(BTreeMap<String, String>),
}

/// `health = "/path"`, or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Health {
    /// GET this path.
    Path(String),
    /// With more to say.
    Table(HealthTable),
}

/// `[health]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthTable {
    /// GET this path; without it a connection is enough.
    pub path: Option<String>,
    /// How long it may take until it answers.
    pub timeout_seconds: Option<u64>,
}

impl Manifest {
    /// Reads the file; the error is for the person who wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self =
            toml::from_str(text).map_err(|error| format!("{FILE}: {}", error.to_string().trim_end()))?;
        manifest.check().map_err(|why| format!("{FILE}: {why}"))?;
        Ok(manifest)
    }

    /// The path of the health check, and its time in seconds.
    pub fn health(&self) -> (Option<String>, Option<u64>) {
        match &self.health {
            None => (None, None),
            Some(Health::Path(path)) => (Some(path.clone()), None),
            Some(Health::Table(table)) => (table.path.clone(), table.timeout_seconds),
        }
    }

    fn check(&self) -> Result<(), String> {
        if let (Some(path), _) = self.health()
            && (!path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' '))
        {
            return Err(format!("health path {path:?}: it begins with / and has no blanks"));
        }
        if let (_, Some(seconds)) = self.health()
            && !(1..=3600).contains(&seconds)
        {
            return Err(format!("health timeout_seconds = {seconds}: it is 1 to 3600"));
        }
        if self.port == Some(0) || self.app_port == Some(0) {
            return Err("a port is 1 to 65535".to_owned());
        }
        if self.keep.is_some_and(|keep| !(2..=100).contains(&keep)) {
            return Err("keep is 2 to 100: the live release and the former one are always kept".to_owned());
        }
        if self.drain_seconds.is_some_and(|seconds| seconds > 3600) {
            return Err("drain_seconds is at most 3600".to_owned());
        }
        if let Some(folder) = &self.folder
            && (folder.starts_with('/') || folder.split('/').any(|part| part == ".."))
        {
            return Err(format!("static = {folder:?}: it is a folder of the tree, such as \"public\""));
        }
        if self.folder.is_some() && self.run.is_some() {
            return Err("static and run exclude each other".to_owned());
        }
        if let Some(Run::Processes(processes)) = &self.run {
            if processes.is_empty() {
                return Err("[run] names no process".to_owned());
            }
            processes.keys().try_for_each(|name| check_process(name))?;
        }
        Ok(())
    }
}

/// Whether it can name a process: it becomes part of a unit's name.
pub fn check_process(name: &str) -> Result<(), String> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(usable) {
        return Err(format!("{name:?} cannot name a process: letters, digits and _, at most 40"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_of_it_reads() {
        let text = r#"
            branch = "production"
            build = "make"
            release = "./migrate"
            port = 8080
            app_port = 3000
            drain_seconds = 5
            keep = 3
            [run]
            web = "./server"
            worker = "./worker"
            [health]
            path = "/up"
            timeout_seconds = 90
        "#;
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.health(), (Some("/up".into()), Some(90)));
        let Some(Run::Processes(processes)) = manifest.run else { panic!() };
        assert_eq!(processes.len(), 2);
        assert_eq!(Manifest::parse("").unwrap(), Manifest::default());
        assert_eq!(Manifest::parse("run = 'x'\nhealth = '/'").unwrap().run, Some(Run::Web("x".into())));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_there_is() {
        let error = Manifest::parse("port = 80\nbiuld = 'make'").unwrap_err();
        assert!(error.contains("line 2") && error.contains("`build`"), "{error}");
        for (text, word) in [
            ("health = 'up'", "begins with /"),
            ("port = 0", "1 to 65535"),
            ("static = '../x'", "folder of the tree"),
            ("static = 'a'\nrun = 'b'", "exclude"),
            ("keep = 1", "2 to 100"),
            ("[run]\n'a-b' = 'c'", "cannot name a process"),
            ("[health]\ntimeout_seconds = 0", "1 to 3600"),
            ("kind = 'magic'", "dockerfile"),
        ] {
            let error = Manifest::parse(text).unwrap_err();
            assert!(error.starts_with("mashine.toml: ") && error.contains(word), "{text}: {error}");
        }
    }
}
