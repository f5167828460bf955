//! What a unit runs: becomes the process of a release, with its variables and PORT.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use mashines_guest::Config;

use super::place::{Place, read_json};
use super::plan::Kind;
use super::release::{Env, Release};
use super::runner::Unit;
use super::{phase, static_files};
use crate::agent::AGENT_CONFIG;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// All releases of a compose file are one project, so that its volumes stay.
const PROJECT: &str = "app";

/// How often a container is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How often all containers of a compose file are: that takes podman itself.
const SELDOM: Duration = Duration::from_secs(15);

/// The variables of a release: the machine's own, the configured ones, and what we tell it.
pub fn environment(place: &Place, release: &Release) -> Result<Env> {
    let machine: Option<Config> = read_json(AGENT_CONFIG.as_ref()).unwrap_or_default();
    let mut env = machine.map(|config| config.env).unwrap_or_default();
    env.extend(release.env(place)?);
    env.insert("PORT".to_owned(), release.port.to_string());
    env.insert("MASHINES_RELEASE".to_owned(), format!("v{}", release.version));
    env.insert("MASHINES_COMMIT".to_owned(), release.commit.clone());
    Ok(env)
}

/// `deploy run v7-web`: does not return while it runs.
pub fn run(place: &Place, name: &str) -> Result<()> {
    let (unit, release) = find(place, name)?;
    let env = environment(place, &release)?;
    let app = place.app(release.build);
    if release.plan.kind == Kind::Static {
        return static_files::serve(&app.join(&release.plan.folder), release.port);
    }
    let (program, arguments) = command(&unit, &release, &env)?;
    let mut command = Command::new(&program);
    command.args(arguments).current_dir(&app).env_clear().env("PATH", PATH).env("HOME", phase::home());
    command.env("LANG", "C.UTF-8").envs(env);
    match release.plan.kind {
        Kind::Dockerfile => contain(&mut command, &release),
        Kind::Compose => compose(&mut command),
        Kind::Run | Kind::Procfile | Kind::Static => Err(command.exec().into()),
    }
    .with_context(|| format!("starting {}", program.to_string_lossy()))
}

/// Starts the container and waits for its end. Not podman itself: it would stay beside each container with 50 MiB, and look four
/// times a second.
fn contain(podman: &mut Command, release: &Release) -> Result<()> {
    let status = podman.stdin(Stdio::null()).status().context("starting podman")?;
    if !status.success() {
        bail!("podman could not start the container ({status})");
    }
    let path = monitor(release);
    let pid = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let name = format!("/proc/{}/comm", pid.trim());
    while fs::read_to_string(&name).is_ok_and(|name| name.trim() == "conmon") {
        thread::sleep(LOOK);
    }
    bail!("the container ended")
}

/// Starts the containers and looks, seldom, whether any of them runs. podman-compose says which commands it runs, values of variables
/// and all: that goes nowhere.
fn compose(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.lines().filter(|line| !is_command(line)).for_each(|line| eprintln!("{line}"));
        bail!("podman-compose could not start the containers ({})", output.status);
    }
    while !of_project(&["ps", "--quiet"]).is_empty() {
        thread::sleep(SELDOM);
    }
    bail!("all containers ended")
}

/// Whether podman-compose tells a command: `podman run -e NAME=VALUE …`, `['podman', …]`.
fn is_command(line: &str) -> bool {
    line.starts_with("podman ") || line.starts_with("['podman'")
}

/// What podman says about the project's containers, line by line.
fn of_project(words: &[&str]) -> Vec<String> {
    let filter = format!("label=io.podman.compose.project={PROJECT}");
    let output = Command::new("podman").args(words).args(["--filter", &filter]).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The last lines of each container of a compose file: podman has them, and not the unit.
pub fn container_lines(count: usize) -> Vec<String> {
    let names = of_project(&["ps", "--all", "--format", "{{.Names}}"]);
    let lines = |name: &String| {
        let words = ["logs", "--tail", &count.to_string(), name];
        let output = Command::new("podman").args(words).stdin(Stdio::null()).output();
        let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
    };
    names.iter().flat_map(lines).collect()
}

/// Where podman leaves the process id of the container's monitor.
fn monitor(release: &Release) -> String {
    format!("/run/mashines/{}.pid", container(release))
}

/// `deploy ended v7-web`: takes away what a unit of containers leaves behind when it was killed.
pub fn ended(place: &Place, name: &str) -> Result<()> {
    let (_, release) = find(place, name)?;
    let run = |program: &str, arguments: &[&str]| {
        // What is not there needs no removal.
        let _ = Command::new(program)
            .args(arguments)
            .current_dir(place.app(release.build))
            .env("PORT", release.port.to_string())
            .stdin(Stdio::null())
            .output();
    };
    match release.plan.kind {
        Kind::Dockerfile => {
            run("podman", &["rm", "--force", "--ignore", "--time", "5", &container(&release)])
        }
        Kind::Compose => run("podman-compose", &["-p", PROJECT, "-f", &release.plan.file, "down"]),
        Kind::Run | Kind::Procfile | Kind::Static => {}
    }
    Ok(())
}

fn find(place: &Place, name: &str) -> Result<(Unit, Release)> {
    let unit =
        Unit::parse(name).ok_or_else(|| anyhow!("{name:?} is no process of a release: v7-web, say"))?;
    let release = Release::load(place, unit.version)?
        .ok_or_else(|| anyhow!("there is no release v{}", unit.version))?;
    Ok((unit, release))
}

fn command(unit: &Unit, release: &Release, env: &Env) -> Result<(OsString, Vec<String>)> {
    let plan = &release.plan;
    Ok(match plan.kind {
        Kind::Run | Kind::Procfile => {
            let Some(line) = plan.processes.get(&unit.process) else {
                bail!("release v{} has no process {}", release.version, unit.process)
            };
            ("/bin/sh".into(), vec!["-c".to_owned(), line.clone()])
        }
        Kind::Dockerfile => ("podman".into(), podman_run(release, env)),
        Kind::Compose => {
            let words = ["-p", PROJECT, "-f", &plan.file, "up", "--detach", "--no-build"];
            ("podman-compose".into(), words.map(str::to_owned).to_vec())
        }
        Kind::Static => bail!("files are served by this program itself"),
    })
}

fn container(release: &Release) -> String {
    format!("mashines-v{}", release.version)
}

/// In the machine's own network, IPv6 and all, unless the program has a port of its own. Values of variables stay out of the command
/// line: `--env NAME` takes them from podman's environment.
fn podman_run(release: &Release, env: &Env) -> Vec<String> {
    let mut words: Vec<String> = [
        "run",
        "--rm",
        "--replace",
        "--name",
        &container(release),
        "--cgroups=split",
        "--log-driver=passthrough",
        "--detach",
        "--conmon-pidfile",
        &monitor(release),
    ]
    .map(str::to_owned)
    .to_vec();
    let mut port = release.port;
    match release.plan.app_port {
        None => words.push("--network=host".to_owned()),
        Some(own) => {
            words.push(format!("--publish=127.0.0.1:{}:{own}", release.port));
            port = own;
        }
    }
    words.push(format!("--env=PORT={port}"));
    words.extend(env.keys().filter(|name| *name != "PORT").map(|name| format!("--env={name}")));
    words.push(release.image());
    words
}

/// The shell command by which a release's tree becomes something that runs; None: it is that already.
pub fn build_command(release: &Release) -> Option<String> {
    let plan = &release.plan;
    match plan.kind {
        // chroot: the build has its own PID namespace from us, and needs no OCI runtime nor a cgroup of its own.
        Kind::Dockerfile => Some(format!(
            "podman build --network=host --isolation=chroot --layers --tag {} --file {} .",
            release.image(),
            plan.file
        )),
        Kind::Compose => Some(format!("podman-compose -p {PROJECT} -f {} build", plan.file)),
        Kind::Run | Kind::Procfile | Kind::Static => None,
    }
}

/// Removes a build's image, if it has one.
pub fn forget_image(release: &Release) {
    if release.plan.kind == Kind::Dockerfile {
        let _ = Command::new("podman")
            .args(["image", "rm", "--force", &release.image()])
            .stdin(Stdio::null())
            .output();
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Tree, recognise};
    use super::super::release::begin;
    use super::*;

    struct File(&'static str, &'static str);
    impl Tree for File {
        fn read(&self, path: &str) -> Option<String> {
            (path == self.0).then(|| self.1.to_owned())
        }
    }

    fn release(file: &'static str, text: &'static str) -> Release {
        Release { port: 20070, ..begin(7, "0123", recognise(&File(file, text)).unwrap()) }
    }

    #[test]
    fn an_image_is_built_and_run_in_the_machines_network() {
        let release = release("Dockerfile", "FROM x");
        let built = build_command(&release).unwrap();
        assert!(built.ends_with("--tag localhost/mashines:v7 --file Dockerfile ."), "{built}");
        let env = Env::from([("SECRET".into(), "s3cret".into()), ("PORT".into(), "20070".into())]);
        let words = podman_run(&release, &env).join(" ");
        assert!(
            words.contains("--network=host --env=PORT=20070 --env=SECRET localhost/mashines:v7"),
            "{words}"
        );
        assert!(!words.contains("s3cret"), "{words}");
    }

    #[test]
    fn a_port_of_its_own_is_published_on_the_given_one() {
        let mut release = release("Dockerfile", "FROM x");
        release.plan.app_port = Some(80);
        let words = podman_run(&release, &Env::new()).join(" ");
        assert!(words.contains("--publish=127.0.0.1:20070:80 --env=PORT=80"), "{words}");
        assert!(!words.contains("network=host"), "{words}");
    }

    #[test]
    fn what_podman_compose_runs_is_not_repeated() {
        assert!(is_command("podman run --name=app_web_1 -d -e SECRET=s3cret app_web"));
        assert!(is_command("['podman', 'network', 'exists', 'app_default']"));
        assert!(!is_command("Error: rootlessport listen tcp 0.0.0.0:8080: bind: address already in use"));
    }

    #[test]
    fn a_compose_file_is_one_project_over_all_releases() {
        let release = release("compose.yaml", "services: {web: {ports: ['${PORT}:80']}}");
        assert_eq!(build_command(&release).unwrap(), "podman-compose -p app -f compose.yaml build");
        let unit = Unit { version: 7, process: "web".into() };
        let (program, words) = command(&unit, &release, &Env::new()).unwrap();
        assert_eq!(
            (program.to_str(), words.join(" ").as_str()),
            (Some("podman-compose"), "-p app -f compose.yaml up --detach --no-build")
        );
    }
}
