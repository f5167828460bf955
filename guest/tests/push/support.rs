//! A machine that is not there: the deploy directory in a temporary one, the agent run in place of ssh, and real git.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_mashines-guest");

/// The gateway's side: which service is asked for, and who asks. In a session of its own, as with sshd.
const SSH: &str = r#"#!/bin/sh
for word; do line=$word; done
case $line in
git-receive-pack*) exec setsid AGENT git receive-pack ${GIT_PROTOCOL:+--protocol "$GIT_PROTOCOL"} --by alice ;;
git-upload-pack*) exec setsid AGENT git upload-pack ${GIT_PROTOCOL:+--protocol "$GIT_PROTOCOL"} ;;
git-upload-archive*) exec setsid AGENT git upload-archive ;;
*) echo "no such command: $line" >&2; exit 1 ;;
esac
"#;

/// The machine and a person's clone.
pub struct Machine {
    pub directory: tempfile::TempDir,
    pub port: u16,
    first_port: u16,
}

/// What came of a git command.
pub struct Said {
    pub ok: bool,
    pub text: String,
}

impl Said {
    pub fn has(&self, words: &[&str]) -> &Self {
        let mut from = 0;
        for word in words {
            match self.text[from..].find(word) {
                Some(at) => from += at + word.len(),
                None => panic!("{word:?} is not (in order) in:\n{}", self.text),
            }
        }
        self
    }

    pub fn accepted(&self) -> &Self {
        assert!(self.ok, "not accepted:\n{}", self.text);
        self
    }

    pub fn rejected(&self) -> &Self {
        assert!(!self.ok, "not rejected:\n{}", self.text);
        self
    }
}

impl Machine {
    pub fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let first_port = 20_000 + NEXT.fetch_add(1, Ordering::SeqCst) * 300;
        let machine = Self { directory, port, first_port };
        let ssh = machine.path("ssh");
        fs::write(&ssh, SSH.replace("AGENT", AGENT)).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(machine.work()).unwrap();
        machine.run(&["init", "-q", "-b", "main"]).accepted();
        machine.run(&["remote", "add", "mashine", "git@mashine.test:web"]).accepted();
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub fn base(&self) -> PathBuf {
        self.path("deploy")
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("MASHINES_DEPLOY_DIRECTORY", self.base())
            .env("MASHINES_DEPLOY_LISTEN", self.port.to_string())
            .env("MASHINES_DEPLOY_PORTS", self.first_port.to_string())
            .env("GIT_SSH_COMMAND", self.path("ssh"))
            .env("GIT_SSH_VARIANT", "ssh")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_AUTHOR_NAME", "A")
            .env("GIT_AUTHOR_EMAIL", "a@test")
            .env("GIT_COMMITTER_NAME", "A")
            .env("GIT_COMMITTER_EMAIL", "a@test")
    }

    pub fn git_in(&self, directory: &Path) -> Command {
        let mut command = Command::new("git");
        self.environment(command.current_dir(directory).stdin(Stdio::null()));
        command
    }

    /// A git command in the clone.
    pub fn run(&self, arguments: &[&str]) -> Said {
        self.run_in(&self.work(), arguments)
    }

    pub fn run_in(&self, directory: &Path, arguments: &[&str]) -> Said {
        said(self.git_in(directory).args(arguments).output().unwrap())
    }

    /// Writes files and commits them.
    pub fn commit(&self, message: &str, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            let path = self.work().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.run(&["add", "-A"]).accepted();
        self.run(&["commit", "-q", "--allow-empty", "-m", message]).accepted();
        self.head()
    }

    pub fn head(&self) -> String {
        self.run(&["rev-parse", "HEAD"]).text.trim().to_owned()
    }

    pub fn push(&self, arguments: &[&str]) -> Said {
        self.run(&[&["push", "mashine"], arguments].concat())
    }

    /// A push that goes on; its output is in a file.
    pub fn begin_push(&self, arguments: &[&str]) -> Push {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let log = self.path(&format!("push-{}.log", NEXT.fetch_add(1, Ordering::SeqCst)));
        let file = fs::File::create(&log).unwrap();
        let mut command = self.git_in(&self.work());
        command.args(["push", "mashine"]).args(arguments).stdout(file.try_clone().unwrap()).stderr(file);
        Push { child: command.process_group(0).spawn().unwrap(), log }
    }

    /// What a ref of the machine's repository is at.
    pub fn at(&self, name: &str) -> Option<String> {
        let repository = self.base().join("repo.git");
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(repository)
            .args(["rev-parse", "-q", "--verify", name])
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The front, as its unit starts it.
    pub fn front(&self) -> Front {
        let mut command = Command::new(AGENT);
        Front(self.environment(&mut command).args(["deploy", "front"]).spawn().unwrap())
    }

    pub fn agent(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut command = Command::new(AGENT);
        self.environment(&mut command).args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn ask(&self, arguments: &[&str], stdin: &str) -> Value {
        let output = self.agent(arguments, stdin);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}"))
    }

    /// Begins an operation and follows it to its end.
    pub fn operate(&self, order: &str) -> (String, Value) {
        let id = self.ask(&["deploy", "begin"], order)["operation"].as_str().unwrap().to_owned();
        let (mut text, mut offset) = (String::new(), 0);
        let started = Instant::now();
        loop {
            let progress = self.ask(&["deploy", "follow", &id, &offset.to_string()], "");
            text.push_str(progress["text"].as_str().unwrap());
            offset = progress["offset"].as_u64().unwrap();
            if !progress["ended"].is_null() {
                return (text, progress["ended"].clone());
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{text}");
            sleep(Duration::from_millis(50));
        }
    }

    /// `v2 live, v1 former`.
    pub fn releases(&self) -> String {
        let all = self.ask(&["deploy", "releases", "--json"], "");
        let one = |r: &Value| format!("v{} {}", r["version"], r["state"].as_str().unwrap());
        all["releases"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(", ")
    }

    pub fn get(&self, path: &str) -> Result<String, String> {
        get(self.port, path)
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let started = Instant::now();
        while !is_so() {
            assert!(started.elapsed() < Duration::from_secs(30), "not so after 30 s: {what}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Asks without end, several at once, each answer on a connection of its own.
    pub fn load(&self, path: &'static str, clients: usize) -> Load {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let port = self.port;
        let one = |_| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    match get(port, path) {
                        Ok(_) => drop(count.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => failures.push(error),
                    }
                }
                failures
            })
        };
        let threads = (0..clients).map(one).collect();
        Load { stop, count, threads }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The front starts what should run; so it ends first.
        let pid = |path: &Path| fs::read_to_string(path).ok()?.parse().ok().map(Pid::from_raw);
        let run = self.base().join("run");
        let mut pids: Vec<Pid> = pid(&run.join("front.pid")).into_iter().collect();
        let files = fs::read_dir(&run).into_iter().flatten().flatten().map(|entry| entry.path());
        pids.extend(
            files.filter(|path| path.extension().is_some_and(|e| e == "pid")).filter_map(|path| pid(&path)),
        );
        for pid in pids {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

/// A push under way.
pub struct Push {
    child: Child,
    log: PathBuf,
}

impl Push {
    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn until(&self, word: &str) {
        let started = Instant::now();
        while !self.text().contains(word) {
            assert!(started.elapsed() < Duration::from_secs(30), "no {word:?} in:\n{}", self.text());
            sleep(Duration::from_millis(20));
        }
    }

    pub fn interrupt(mut self) {
        killpg(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
    }

    pub fn end(mut self) -> Said {
        let ok = self.child.wait().unwrap().success();
        Said { ok, text: self.text() }
    }
}

/// Requests under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// How many were answered; every one must have been.
    pub fn all_answered(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let failures: Vec<String> = self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        let count = self.count.load(Ordering::SeqCst);
        assert!(
            failures.is_empty(),
            "{} of {count} failed: {:?}",
            failures.len(),
            &failures[..failures.len().min(3)]
        );
        count
    }
}

/// Asks again and again on one connection, and on a new one when that has ended between two answers. Gives the number of answers.
pub fn persistent(port: u16, until: Instant) -> Result<u64, String> {
    let mut count = 0;
    while Instant::now() < until {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut said_close = false;
        while Instant::now() < until && !said_close {
            if write!(stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_err() {
                break;
            }
            let mut text = String::new();
            let mut buffer = [0; 1024];
            while !text.contains("\r\n\r\n1") {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) if text.is_empty() => break,
                    Ok(0) => return Err(format!("cut off: {text:?}")),
                    Err(error) => return Err(format!("{error} after {text:?}")),
                    Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
                }
            }
            if text.is_empty() {
                break;
            }
            count += 1;
            said_close = text.contains("Connection: close");
        }
        if !said_close && Instant::now() < until {
            return Err("ended without a word".to_owned());
        }
    }
    Ok(count)
}

/// The body of a 200.
pub fn get(port: u16, path: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().map_err(|error| error.to_string())?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(format!("no 200: {text:?}")),
    }
}

pub fn said(output: Output) -> Said {
    let text = [output.stdout, output.stderr].concat();
    Said { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// Processes whose command line has a word.
pub fn processes_with(word: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(word)
    };
    pids.filter(has).map(Pid::from_raw).collect()
}

pub fn kill_hard(pid: Pid) {
    kill(pid, Signal::SIGKILL).unwrap();
}

/// Whether it runs; ended and not yet waited for is ended (proc(5): the state stands behind the name in parentheses).
pub fn is_alive(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}

/// A front that a test started; it ends with the test, however that ends.
pub struct Front(Child);

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
