//! What is pushed, and so how it is built and run. Pure: a tree in, a plan out.
//!
//! The order: `mashine.toml`, Dockerfile, compose file, Procfile, a static folder. A `mashine.toml` that says nothing about what runs
//! (only a port, say) leaves that to the others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compose;
use super::manifest::{self, Manifest, Run};

/// The process that serves requests.
pub const WEB: &str = "web";

const DOCKERFILES: [&str; 2] = ["Dockerfile", "Containerfile"];
const COMPOSE_FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
const PROCFILE: &str = "Procfile";
/// Where builds of web pages leave them; "" is the root.
const FOLDERS: [&str; 9] = ["", "public", "dist", "build", "_site", "site", "www", "out", "docs"];

const PORT: u16 = 80;
const HEALTH_SECONDS: u64 = 60;
const DRAIN_SECONDS: u64 = 30;
const KEEP: usize = 5;

/// How it is built and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `run` of mashine.toml.
    Run,
    /// An image built and run by podman.
    Dockerfile,
    /// Containers that podman-compose runs.
    Compose,
    /// Processes of a Procfile.
    Procfile,
    /// Files served as they are.
    Static,
}

impl Kind {
    /// Its word in mashine.toml.
    pub fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Dockerfile => "dockerfile",
            Self::Compose => "compose",
            Self::Procfile => "procfile",
            Self::Static => "static",
        }
    }
}

/// What is done with a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How it is built and run.
    pub kind: Kind,
    /// What it was recognised by.
    pub file: String,
    /// The branch that mashine.toml names.
    pub branch: Option<String>,
    /// A shell command, before anything else.
    pub build: Option<String>,
    /// A shell command, before each start.
    pub release: Option<String>,
    /// Shell commands by name, for run and procfile.
    pub processes: BTreeMap<String, String>,
    /// The folder, for static.
    pub folder: String,
    /// Where the machine serves.
    pub port: u16,
    /// Where the program listens, when not where PORT says.
    pub app_port: Option<u16>,
    /// What GET must answer with 2xx or 3xx; None: a connection is enough.
    pub health_path: Option<String>,
    /// How long that may take.
    pub health_seconds: u64,
    /// How long old connections may go on.
    pub drain_seconds: u64,
    /// How many releases are kept.
    pub keep: usize,
}

impl Plan {
    /// The names of what runs, the one that serves first.
    pub fn process_names(&self) -> Vec<String> {
        match self.kind {
            Kind::Dockerfile | Kind::Compose | Kind::Static => vec![WEB.to_owned()],
            Kind::Run | Kind::Procfile => {
                let mut names: Vec<String> = self.processes.keys().cloned().collect();
                names.sort_by_key(|name| name != WEB);
                names
            }
        }
    }

    /// Whether it has a process that serves requests.
    pub fn serves(&self) -> bool {
        self.process_names().first().is_some_and(|name| name == WEB)
    }

    /// Whether two releases cannot run beside each other, since both would use the same port.
    pub fn in_place(&self) -> bool {
        match self.kind {
            Kind::Compose => true,
            Kind::Run | Kind::Procfile => self.app_port.is_some(),
            Kind::Dockerfile | Kind::Static => false,
        }
    }

    /// The port on the loopback that answers for a release which was given `port`.
    pub fn upstream(&self, port: u16) -> u16 {
        match self.kind {
            // The container's port is published on the one given.
            Kind::Dockerfile | Kind::Static => port,
            Kind::Compose | Kind::Run | Kind::Procfile => self.app_port.unwrap_or(port),
        }
    }
}

/// A tree that is looked at.
pub trait Tree {
    /// The text of a file; `None` when there is none.
    fn read(&self, path: &str) -> Option<String>;
}

/// Recognises what the tree is. The error is for the person who pushed it.
pub fn recognise(tree: &impl Tree) -> Result<Plan, String> {
    let manifest = match tree.read(manifest::FILE) {
        Some(text) => Manifest::parse(&text)?,
        None => Manifest::default(),
    };
    let (kind, file) = kind_of(&manifest, tree)?;
    let (health_path, health_seconds) = manifest.health();
    let mut plan = Plan {
        kind,
        file,
        branch: manifest.branch,
        build: manifest.build,
        release: manifest.release,
        processes: BTreeMap::new(),
        folder: String::new(),
        port: manifest.port.unwrap_or(PORT),
        app_port: manifest.app_port,
        health_path,
        health_seconds: health_seconds.unwrap_or(HEALTH_SECONDS),
        drain_seconds: manifest.drain_seconds.unwrap_or(DRAIN_SECONDS),
        keep: manifest.keep.unwrap_or(KEEP),
    };
    match kind {
        Kind::Run => {
            plan.processes = match manifest.run {
                Some(Run::Web(command)) => BTreeMap::from([(WEB.to_owned(), command)]),
                Some(Run::Processes(processes)) => processes,
                None => return Err("mashine.toml: kind = \"run\" needs run = \"COMMAND\"".to_owned()),
            };
        }
        Kind::Procfile => {
            plan.processes = procfile(&tree.read(PROCFILE).unwrap_or_default())?;
            let release = plan.processes.remove("release");
            plan.release = plan.release.or(release);
            if plan.processes.is_empty() {
                return Err("Procfile: it names no process; web: COMMAND is the one that serves".to_owned());
            }
        }
        Kind::Static => plan.folder = folder(manifest.folder, plan.build.is_some(), tree)?,
        Kind::Compose => {
            let published = compose::published(&tree.read(&plan.file).unwrap_or_default())
                .map_err(|why| format!("{}: {why}", plan.file))?;
            plan.app_port = compose::app_port(plan.app_port, published, plan.port, &plan.file)?;
        }
        Kind::Dockerfile => {}
    }
    if plan.app_port == Some(plan.port) && plan.kind != Kind::Dockerfile {
        return Err(format!(
            "port {0} cannot be both where the machine serves and where the program listens: \
             listen on $PORT, or write another port = N in mashine.toml",
            plan.port
        ));
    }
    Ok(plan)
}

fn kind_of(manifest: &Manifest, tree: &impl Tree) -> Result<(Kind, String), String> {
    let here =
        |names: &[&str]| names.iter().find(|name| tree.read(name).is_some()).map(|&name| name.to_owned());
    let said = manifest::FILE.to_owned();
    let missing = |kind: Kind, file: &str| {
        format!("mashine.toml says kind = \"{}\", and there is no {file}", kind.word())
    };
    match manifest.kind {
        Some(Kind::Run) => return Ok((Kind::Run, said)),
        Some(Kind::Static) => return Ok((Kind::Static, said)),
        Some(Kind::Dockerfile) => {
            return here(&DOCKERFILES)
                .map(|file| (Kind::Dockerfile, file))
                .ok_or(missing(Kind::Dockerfile, "Dockerfile"));
        }
        Some(Kind::Compose) => {
            return here(&COMPOSE_FILES)
                .map(|file| (Kind::Compose, file))
                .ok_or(missing(Kind::Compose, "compose.yaml"));
        }
        Some(Kind::Procfile) => {
            return here(&[PROCFILE])
                .map(|file| (Kind::Procfile, file))
                .ok_or(missing(Kind::Procfile, PROCFILE));
        }
        None => {}
    }
    if manifest.run.is_some() {
        return Ok((Kind::Run, said));
    }
    if manifest.folder.is_some() {
        return Ok((Kind::Static, said));
    }
    let found = here(&DOCKERFILES)
        .map(|file| (Kind::Dockerfile, file))
        .or_else(|| here(&COMPOSE_FILES).map(|file| (Kind::Compose, file)))
        .or_else(|| here(&[PROCFILE]).map(|file| (Kind::Procfile, file)));
    if let Some(found) = found {
        return Ok(found);
    }
    let index =
        FOLDERS.iter().map(|folder| join(folder, "index.html")).find(|path| tree.read(path).is_some());
    index.map(|path| (Kind::Static, path)).ok_or_else(|| {
        "nothing here says how to run it: looked for mashine.toml with run or static, Dockerfile, compose.yaml, \
         Procfile, and index.html at the root or in public/, dist/, build/, _site/, site/, www/, out/, docs/"
            .to_owned()
    })
}

fn folder(said: Option<String>, built: bool, tree: &impl Tree) -> Result<String, String> {
    let has_index = |folder: &str| tree.read(&join(folder, "index.html")).is_some();
    match said {
        // What a build makes is not there yet.
        Some(folder) if built || has_index(&folder) => Ok(folder.trim_end_matches('/').to_owned()),
        Some(folder) => {
            Err(format!("mashine.toml: static = {folder:?}, and there is no {}", join(&folder, "index.html")))
        }
        None => FOLDERS
            .iter()
            .find(|folder| has_index(folder))
            .map(|&folder| folder.to_owned())
            .ok_or_else(|| "mashine.toml: kind = \"static\" needs static = \"FOLDER\"".to_owned()),
    }
}

fn join(folder: &str, file: &str) -> String {
    match folder.trim_end_matches('/') {
        "" | "." => file.to_owned(),
        folder => format!("{folder}/{file}"),
    }
}

/// `name: command` lines.
fn procfile(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut processes = BTreeMap::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, command) = line
            .split_once(':')
            .map(|(name, command)| (name.trim(), command.trim()))
            .filter(|(_, command)| !command.is_empty())
            .ok_or_else(|| format!("Procfile, line {number}: {line:?} is not NAME: COMMAND"))?;
        manifest::check_process(name).map_err(|why| format!("Procfile, line {number}: {why}"))?;
        processes.insert(name.to_owned(), command.to_owned());
    }
    Ok(processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files<'a>(&'a [(&'a str, &'a str)]);

    impl Tree for Files<'_> {
        fn read(&self, path: &str) -> Option<String> {
            self.0.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        }
    }

    fn plan(files: &[(&str, &str)]) -> Plan {
        recognise(&Files(files)).unwrap()
    }

    #[test]
    fn the_order_is_toml_dockerfile_compose_procfile_static() {
        let all = [
            ("mashine.toml", "run = './x'"),
            ("Dockerfile", "FROM scratch"),
            ("compose.yaml", "services: {web: {ports: ['${PORT}:80']}}"),
            ("Procfile", "web: ./y"),
            ("index.html", ""),
        ];
        let kinds: Vec<Kind> = (0..all.len()).map(|from| plan(&all[from..]).kind).collect();
        assert_eq!(kinds, [Kind::Run, Kind::Dockerfile, Kind::Compose, Kind::Procfile, Kind::Static]);
    }

    #[test]
    fn a_toml_that_names_nothing_to_run_adds_to_what_is_recognised() {
        let plan = plan(&[("mashine.toml", "port = 8080\nhealth = '/up'"), ("Procfile", "web: ./y")]);
        assert_eq!((plan.kind, plan.port), (Kind::Procfile, 8080));
        assert_eq!(plan.health_path.as_deref(), Some("/up"));
    }

    #[test]
    fn a_procfile_has_processes_and_a_release_phase() {
        let plan = plan(&[("Procfile", "# all\nworker: ./w\nweb: ./s -p $PORT\nrelease: ./migrate\n")]);
        assert_eq!(plan.process_names(), ["web", "worker"]);
        assert_eq!(plan.release.as_deref(), Some("./migrate"));
        assert!(plan.serves() && !plan.in_place());
        let error = recognise(&Files(&[("Procfile", "web ./s")])).unwrap_err();
        assert!(error.contains("line 1"), "{error}");
        assert!(recognise(&Files(&[("Procfile", "release: x")])).is_err());
    }

    #[test]
    fn a_static_folder_is_found_or_named() {
        assert_eq!(plan(&[("index.html", "")]).folder, "");
        assert_eq!(plan(&[("public/index.html", "")]).folder, "public");
        assert_eq!(plan(&[("mashine.toml", "static = 'web/'\nbuild = 'make'")]).folder, "web");
        let error = recognise(&Files(&[("mashine.toml", "static = 'web'")])).unwrap_err();
        assert!(error.contains("web/index.html"), "{error}");
    }

    #[test]
    fn a_tree_that_is_nothing_is_told_all_that_was_looked_for() {
        let error = recognise(&Files(&[("README.md", "")])).unwrap_err();
        for word in ["mashine.toml", "Dockerfile", "compose.yaml", "Procfile", "index.html"] {
            assert!(error.contains(word), "{error}");
        }
        let error = recognise(&Files(&[("mashine.toml", "kind = 'dockerfile'")])).unwrap_err();
        assert!(error.contains("there is no Dockerfile"), "{error}");
    }

    #[test]
    fn a_compose_files_port_is_given_or_its_own() {
        let compose = |port: &str| format!("services: {{web: {{image: a, ports: ['{port}']}}}}");
        assert_eq!(plan(&[("compose.yml", &compose("8080:80"))]).upstream(20010), 8080);
        assert_eq!(plan(&[("compose.yml", &compose("${PORT}:80"))]).upstream(20010), 20010);
        let taken = recognise(&Files(&[("compose.yml", &compose("80:80"))])).unwrap_err();
        assert!(taken.contains("\"${PORT:-80}:…\""), "{taken}");
        assert!(recognise(&Files(&[("compose.yml", "services:")])).is_err());
    }

    #[test]
    fn a_program_with_its_own_port_is_switched_in_place() {
        let plan = plan(&[("mashine.toml", "run = './s'\napp_port = 3000")]);
        assert!(plan.in_place());
        assert_eq!(plan.upstream(20010), 3000);
        assert!(recognise(&Files(&[("mashine.toml", "run = './s'\napp_port = 80")])).is_err());
    }
}
