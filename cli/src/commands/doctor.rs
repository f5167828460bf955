//! `mashines doctor`: what this machine can run, found by trying, in plain words.
//!
//! Looking and judging are apart: [`look`] asks the machine, [`verdict`] and [`checks`] are functions of what it found.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Context, process_environment};
use crate::error::{CliError, Exit};
use crate::kvm::{self, Kvm};
use crate::{https, settings, text};

/// What the lab's VM and its images need free, in MiB.
const LAB_DISK_MIB: u64 = 12 * 1024;
/// What the lab's VM takes of memory (6144) with what QEMU itself takes, in MiB.
const LAB_MEMORY_MIB: u64 = 6656;

/// Nothing to say.
#[derive(clap::Args)]
#[command(
    after_help = "Says which of three this machine offers, decided by timing a small guest and not by the existence of /dev/kvm:
  hardware-kvm  machines run on it directly
  lab           machines run in the lab, a QEMU VM whose emulated CPU has AMD-V (scripts/lab); slower, but real
  neither       it can still be used to talk to a fleet
The exit code is 1 for neither.

Examples:
  mashines doctor
  mashines doctor --json | jq -r .verdict"
)]
pub(super) struct Args {}

/// What was found.
struct Findings {
    arch: &'static str,
    kvm: Kvm,
    root: bool,
    qemu: Option<PathBuf>,
    apt: bool,
    ssh: Option<PathBuf>,
    modules: Vec<(&'static str, &'static str, bool)>,
    disk: Option<(PathBuf, u64)>,
    memory_mib: Option<u64>,
    api: Api,
}

/// How the API answers.
enum Api {
    NotLoggedIn,
    Answers { account: String, domain: String },
    Silent(String),
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    HardwareKvm,
    Lab,
    Neither,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    /// Nothing has to be done about it.
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The JSON of it.
#[derive(Serialize)]
struct Report {
    verdict: Verdict,
    summary: &'static str,
    kvm: Kvm,
    checks: Vec<Check>,
}

pub(super) async fn run(_: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    context.only_locally("doctor", "on your own machine: mashines doctor")?;
    let findings = look().await;
    let verdict = verdict(&findings);
    let report =
        Report { verdict, summary: summary(verdict), checks: checks(&findings, verdict), kvm: findings.kvm };
    let text = told(&report);
    context.answer(&report, &text).await?;
    Ok(if verdict == Verdict::Neither { Exit::Failed } else { Exit::Ok })
}

async fn look() -> Findings {
    // A guest loop blocks its thread for up to a second; nothing else runs in this process meanwhile.
    let kvm = kvm::measure();
    Findings {
        arch: std::env::consts::ARCH,
        kvm,
        root: rustix::process::geteuid().is_root(),
        qemu: program("qemu-system-x86_64"),
        apt: program("apt-get").is_some(),
        ssh: program("ssh"),
        modules: [
            ("tun", "taps, the machines' network cards"),
            ("nf_tables", "filters against spoofed addresses"),
        ]
        .map(|(name, what)| (name, what, has_module(name)))
        .to_vec(),
        disk: free_disk(),
        memory_mib: std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_mib(&text)),
        api: ask_api().await,
    }
}

async fn ask_api() -> Api {
    let Ok(settings) = settings::load(&process_environment) else { return Api::NotLoggedIn };
    let account = match https::client(&settings) {
        Ok(client) => client.account().await,
        Err(error) => Err(error),
    };
    match account {
        Ok(account) => Api::Answers { account: account.id.to_string(), domain: account.domain },
        Err(error) => Api::Silent(error.message),
    }
}

/// Where a program is in the PATH.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Loaded, built in, or there to be loaded.
fn has_module(name: &str) -> bool {
    if Path::new("/sys/module").join(name).exists() || (name == "tun" && Path::new("/dev/net/tun").exists()) {
        return true;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let directory = Path::new("/lib/modules").join(release.trim());
    let listed = |list: &str| {
        let text = std::fs::read_to_string(directory.join(list)).unwrap_or_default();
        text.lines().any(|line| {
            let file = line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            file.split(".ko").next() == Some(name)
        })
    };
    listed("modules.dep") || listed("modules.builtin")
}

/// Free space where the lab keeps its images, in MiB.
fn free_disk() -> Option<(PathBuf, u64)> {
    let cache = std::env::var_os("MASHINES_CACHE").or_else(|| std::env::var_os("XDG_CACHE_HOME"));
    let cache = cache.or_else(|| std::env::var_os("HOME")).map(PathBuf::from)?;
    let there = cache.ancestors().find(|directory| directory.exists())?.to_owned();
    let stat = rustix::fs::statvfs(&there).ok()?;
    let bytes = stat.f_bavail.checked_mul(stat.f_frsize)?;
    Some((there, bytes >> 20))
}

/// `MemAvailable` of `/proc/meminfo`.
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
}

fn verdict(findings: &Findings) -> Verdict {
    let installable = findings.apt && findings.root;
    match findings.kvm {
        Kvm::Hardware { .. } => Verdict::HardwareKvm,
        Kvm::Interpreted { .. } | Kvm::Unusable { .. } | Kvm::Absent { .. }
            if findings.arch == "x86_64" && (findings.qemu.is_some() || installable) =>
        {
            Verdict::Lab
        }
        Kvm::Interpreted { .. } | Kvm::Unusable { .. } | Kvm::Absent { .. } => Verdict::Neither,
    }
}

fn summary(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::HardwareKvm => "This machine runs machines directly, on hardware KVM.",
        Verdict::Lab => {
            "This machine has no hardware KVM that works; machines run in the lab (scripts/lab): slower, but real."
        }
        Verdict::Neither => "This machine can run neither; it can still be used to talk to a fleet.",
    }
}

fn checks(findings: &Findings, verdict: Verdict) -> Vec<Check> {
    let mut checks = vec![kvm_check(&findings.kvm)];
    if verdict != Verdict::HardwareKvm {
        checks.push(qemu_check(findings));
        checks.push(room_check("memory", findings.memory_mib, LAB_MEMORY_MIB, "to run the lab", None));
    }
    let (place, free) = match &findings.disk {
        Some((place, free)) => (Some(place.as_path()), Some(*free)),
        None => (None, None),
    };
    checks.push(room_check("disk", free, LAB_DISK_MIB, "for the images and what is built", place));
    checks.push(Check {
        name: "root",
        ok: findings.root,
        found: if findings.root { "yes" } else { "no: hosts need it for taps, routes and KVM" }.to_owned(),
        next: (!findings.root).then(|| "run mashinesd and the scripts with sudo".to_owned()),
    });
    // In the lab it is the lab's kernel that must have them.
    if verdict == Verdict::HardwareKvm {
        checks.extend(findings.modules.iter().map(module_check));
    }
    checks.push(Check {
        name: "ssh",
        ok: findings.ssh.is_some(),
        found: found(findings.ssh.as_deref()),
        next: findings.ssh.is_none().then(|| "apt install openssh-client".to_owned()),
    });
    checks.push(api_check(&findings.api));
    checks
}

fn kvm_check(kvm: &Kvm) -> Check {
    let (ok, found) = match kvm {
        Kvm::Hardware { ratio } => {
            (true, format!("hardware: a guest loop takes {ratio:.1} times as long as here"))
        }
        Kvm::Interpreted { ratio } => {
            let times = format!("a guest loop takes {ratio:.0} times as long as here");
            (false, format!("/dev/kvm answers, but {times}: it interprets each instruction and is of no use"))
        }
        Kvm::Unusable { why } => (false, format!("/dev/kvm answers, but no guest runs on it: {why}")),
        Kvm::Absent { why } => (false, why.clone()),
    };
    // A CPU without it gets no better by a command; the lab is what to do.
    Check { name: "kvm", ok, found, next: None }
}

fn qemu_check(findings: &Findings) -> Check {
    let next = match (&findings.qemu, findings.arch) {
        (Some(_), _) => None,
        (None, "x86_64") => {
            Some("apt install qemu-system-x86 (the scripts do it when they run as root)".to_owned())
        }
        (None, _) => Some("the lab runs on x86_64 only".to_owned()),
    };
    Check { name: "qemu", ok: findings.qemu.is_some(), found: found(findings.qemu.as_deref()), next }
}

fn room_check(name: &'static str, free: Option<u64>, need: u64, what: &str, place: Option<&Path>) -> Check {
    let place = place.map(|place| format!(" in {}", place.display())).unwrap_or_default();
    let need_text = text::mebibytes(need);
    let (ok, found) = match free {
        Some(free) => {
            (free >= need, format!("{} free{place}; {need_text} are needed {what}", text::mebibytes(free)))
        }
        None => (false, "cannot tell how much is free".to_owned()),
    };
    Check { name, ok, found, next: (!ok).then(|| format!("make {need_text} free{place}")) }
}

fn module_check((name, what, there): &(&'static str, &'static str, bool)) -> Check {
    Check {
        name,
        ok: *there,
        found: if *there {
            format!("the kernel has it ({what})")
        } else {
            format!("the kernel lacks it ({what})")
        },
        next: (!there).then(|| format!("modprobe {name}, or a kernel with it (Debian: linux-image-amd64)")),
    }
}

fn api_check(api: &Api) -> Check {
    let (ok, found, next) = match api {
        Api::Answers { account, domain } => (true, format!("{domain} answers; you are {account}"), None),
        Api::NotLoggedIn => {
            (true, "not logged in to a fleet".to_owned(), Some("mashines login --help".to_owned()))
        }
        Api::Silent(why) => {
            (false, why.clone(), Some("check the URL, the token and the CA: mashines login".to_owned()))
        }
    };
    Check { name: "api", ok, found, next }
}

fn found(program: Option<&Path>) -> String {
    program.map_or_else(|| "not installed".to_owned(), |path| path.display().to_string())
}

fn told(report: &Report) -> String {
    let mut text = format!("{}\n\n", report.summary);
    for check in &report.checks {
        let mark = if check.ok { "ok" } else { "--" };
        text.push_str(&format!("  {mark}  {:<10} {}\n", check.name, text::printable(&check.found)));
        if let Some(next) = &check.next {
            text.push_str(&format!("      {:<10} next: {next}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(kvm: Kvm) -> Findings {
        Findings {
            arch: "x86_64",
            kvm,
            root: true,
            qemu: Some(PathBuf::from("/usr/bin/qemu-system-x86_64")),
            apt: true,
            ssh: Some(PathBuf::from("/usr/bin/ssh")),
            modules: vec![("tun", "taps", true), ("nf_tables", "filters", false)],
            disk: Some((PathBuf::from("/root"), 50 << 10)),
            memory_mib: Some(8 << 10),
            api: Api::NotLoggedIn,
        }
    }

    fn report(findings: Findings) -> Report {
        let verdict = verdict(&findings);
        Report { verdict, summary: summary(verdict), checks: checks(&findings, verdict), kvm: findings.kvm }
    }

    #[test]
    fn a_kvm_that_interprets_is_no_kvm() {
        let report = report(findings(Kvm::Interpreted { ratio: 412.3 }));
        assert_eq!(
            told(&report),
            "This machine has no hardware KVM that works; machines run in the lab (scripts/lab): slower, but real.\n\n  \
             --  kvm        /dev/kvm answers, but a guest loop takes 412 times as long as here: it interprets each \
             instruction and is of no use\n  \
             ok  qemu       /usr/bin/qemu-system-x86_64\n  \
             ok  memory     8 GiB free; 6.5 GiB are needed to run the lab\n  \
             ok  disk       50 GiB free in /root; 12 GiB are needed for the images and what is built\n  \
             ok  root       yes\n  \
             ok  ssh        /usr/bin/ssh\n  \
             ok  api        not logged in to a fleet\n      \
             \x20          next: mashines login --help\n"
        );
        assert_eq!(serde_json::to_value(&report).unwrap()["verdict"], "lab");
    }

    #[test]
    fn hardware_kvm_needs_the_kernels_modules_and_no_qemu() {
        let report = report(Findings { qemu: None, ..findings(Kvm::Hardware { ratio: 1.02 }) });
        assert_eq!(report.verdict, Verdict::HardwareKvm);
        let wrong: Vec<_> = report.checks.iter().filter(|c| !c.ok).map(|c| c.name).collect();
        assert_eq!(wrong, ["nf_tables"]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["verdict"], &json["kvm"]["kind"]), (&"hardware-kvm".into(), &"hardware".into()));
    }

    #[test]
    fn without_kvm_qemu_and_a_way_to_get_it_there_is_neither() {
        let absent = || Kvm::Absent { why: "there is no /dev/kvm".to_owned() };
        let found = Findings { qemu: None, root: false, ..findings(absent()) };
        assert_eq!(verdict(&found), Verdict::Neither);
        assert_eq!(verdict(&Findings { qemu: None, ..findings(absent()) }), Verdict::Lab);
        assert_eq!(verdict(&Findings { arch: "aarch64", ..findings(absent()) }), Verdict::Neither);
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:   2048000 kB\n"), Some(2000));
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
    }
}
