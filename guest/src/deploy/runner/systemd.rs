//! By systemd: one instance of `mashines-app@` a process, so that each has its cgroup, its journal and its restarts.
//!
//! The units hold no variables of the person's: `deploy run` reads them from the release when it starts. No instance is enabled; after a
//! boot the front starts those of the release that serves.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Activity, Runner, Unit};

const DIRECTORY: &str = "/etc/systemd/system";
const FRONT: &str = "mashines-front.service";
const APP: &str = "mashines-app@";

const UNITS: [(&str, &str); 2] = [
    (
        FRONT,
        "# Written by mashines at each deployment.
[Unit]
Description=Serves the live release

[Service]
ExecStart=/run/mashines/agent deploy front
Restart=always
RestartSec=200ms
LimitNOFILE=65536
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
",
    ),
    (
        "mashines-app@.service",
        "# Written by mashines at each deployment.
[Unit]
Description=Release process %i
StartLimitIntervalSec=0

[Service]
ExecStart=/run/mashines/agent deploy run %i
ExecStopPost=/run/mashines/agent deploy ended %i
Restart=always
RestartSec=1
TimeoutStopSec=30
Delegate=yes
LimitNOFILE=65536
SyslogIdentifier=%i
",
    ),
];

/// After as many restarts a unit that is starting counts as failed.
const RESTARTS: u32 = 3;

/// `systemctl` and `journalctl` of the machine.
pub struct Systemd;

impl Runner for Systemd {
    fn start(&self, unit: &Unit) -> Result<()> {
        install()?;
        // A unit that failed before is started as if it had not.
        let _ = systemctl(&["reset-failed", &name(unit)]);
        systemctl(&["start", &name(unit)]).map(drop)
    }

    fn activity(&self, unit: &Unit) -> Result<Activity> {
        let shown =
            systemctl(&["show", "--property=ActiveState,Result,ExecMainStatus,NRestarts", &name(unit)])?;
        Ok(activity(&shown))
    }

    fn stop(&self, units: &[Unit]) -> Result<()> {
        let names: Vec<String> = units.iter().map(name).collect();
        if names.is_empty() {
            return Ok(());
        }
        let words: Vec<&str> = std::iter::once("stop").chain(names.iter().map(String::as_str)).collect();
        systemctl(&words).map(drop)
    }

    fn running(&self) -> Result<Vec<Unit>> {
        let listed =
            systemctl(&["list-units", "--plain", "--no-legend", "--full", "--all", "mashines-app@*"])?;
        Ok(listed.lines().filter_map(listed_unit).collect())
    }

    fn last_lines(&self, unit: &Unit, count: usize) -> Vec<String> {
        let output = Command::new("journalctl")
            .args([
                "--quiet",
                "--no-pager",
                "--output=cat",
                "--lines",
                &count.to_string(),
                "--unit",
                &name(unit),
            ])
            .stdin(Stdio::null())
            .output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn ensure_front(&self) -> Result<()> {
        install()?;
        systemctl(&["enable", "--quiet", "--now", FRONT]).map(drop)
    }
}

fn name(unit: &Unit) -> String {
    format!("{APP}{unit}.service")
}

fn install() -> Result<()> {
    let mut changed = false;
    for (file, text) in UNITS {
        let path = Path::new(DIRECTORY).join(file);
        if fs::read_to_string(&path).is_ok_and(|existing| existing == text) {
            continue;
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        changed = true;
    }
    if changed { systemctl(&["daemon-reload"]).map(drop) } else { Ok(()) }
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output().context(
        "starting systemctl (deployments need systemd in the machine, as in the image container-os)",
    )?;
    if !output.status.success() {
        bail!("systemctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn activity(shown: &str) -> Activity {
    let field = |name: &str| {
        shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let restarts = field("NRestarts").parse().unwrap_or(0);
    match field("ActiveState") {
        "active" | "activating" | "reloading" if restarts < RESTARTS => Activity::Running,
        "active" | "activating" | "reloading" => {
            Activity::Ended(format!("it ended and was started anew {restarts} times"))
        }
        state => Activity::Ended(format!(
            "it is {state} ({}, exit code {})",
            field("Result"),
            field("ExecMainStatus")
        )),
    }
}

fn listed_unit(line: &str) -> Option<Unit> {
    let mut words = line.split_whitespace();
    let unit = Unit::parse(words.next()?.strip_prefix(APP)?.strip_suffix(".service")?)?;
    let (_load, active) = (words.next()?, words.next()?);
    matches!(active, "active" | "activating" | "reloading" | "deactivating").then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_understood() {
        let shown = |state, restarts| {
            activity(&format!(
                "NRestarts={restarts}\nExecMainStatus=1\nActiveState={state}\nResult=exit-code\n"
            ))
        };
        assert_eq!(shown("active", 0), Activity::Running);
        assert_eq!(shown("activating", 2), Activity::Running);
        assert!(matches!(shown("activating", 3), Activity::Ended(_)));
        assert_eq!(shown("failed", 0), Activity::Ended("it is failed (exit-code, exit code 1)".into()));
    }

    #[test]
    fn the_list_of_units_is_understood() {
        let running = listed_unit("mashines-app@v7-web.service loaded active running Release process v7-web");
        assert_eq!(running, Some(Unit { version: 7, process: "web".into() }));
        assert_eq!(listed_unit("mashines-app@v6-web.service loaded failed failed x"), None);
        assert_eq!(listed_unit("ssh.service loaded active running x"), None);
    }
}
