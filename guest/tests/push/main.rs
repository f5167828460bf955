//! `git push` against the agent, with real git: what is taken, what is refused and how, and what serves afterwards.
//!
//! Processes run as plain children here and not by systemd; containers are the lab's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests may: a failed unwrap is a failed test"
)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Machine, is_alive, kill_hard, persistent, processes_with};

/// Answers with the release's number; `/slow` takes a while; health is `/up`.
const SERVER: &str = r#"
import os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(0.3)
        if self.path == "/env":
            body = os.environ.get("GREETING", "none")
        else:
            body = os.environ["MASHINES_RELEASE"]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *words):
        pass
class Server(ThreadingHTTPServer):
    request_queue_size = 128
print("listening on", os.environ["PORT"], flush=True)
Server(("127.0.0.1", int(os.environ.get("OWN_PORT", os.environ["PORT"]))), Handler).serve_forever()
"#;
const PROCFILE: (&str, &str) = ("Procfile", "web: exec /usr/bin/python3 server.py\n");
const WITH_HEALTH: (&str, &str) = ("mashine.toml", "health = '/up'\n");

#[test]
fn a_first_push_deploys_and_can_be_cloned() {
    let machine = Machine::new();
    let commit = machine.commit("hello", &[("index.html", "<h1>one")]);
    let said = machine.push(&["main"]);
    said.accepted().has(&[
        "remote: -----> v1: ",
        "of main \"hello\", by alice",
        "recognised as static",
        "Healthy",
        "v1 is live on port 80",
    ]);
    assert_eq!(machine.get("/").unwrap(), "<h1>one");
    assert_eq!(machine.at("refs/heads/main"), Some(commit.clone()));
    machine.run(&["clone", "-q", "git@mashine.test:web", "../clone"]).accepted();
    assert_eq!(fs::read_to_string(machine.path("clone/index.html")).unwrap(), "<h1>one");
    machine.run(&["archive", "--remote=git@mashine.test:web", "-o", "../site.tar", "main"]).accepted();
    assert!(machine.path("site.tar").exists());
    let all = machine.ask(&["deploy", "releases", "--json"], "");
    let release = &all["releases"][0];
    assert_eq!((release["commit"].as_str(), release["by"].as_str()), (Some(commit.as_str()), Some("alice")));
    assert_eq!((release["kind"].as_str(), release["state"].as_str()), (Some("static"), Some("live")));
}

#[test]
fn a_failing_build_rejects_the_push_with_phase_last_lines_and_hint() {
    let machine = Machine::new();
    let first = machine.commit("good", &[("index.html", "one")]);
    machine.push(&["main"]).accepted();
    machine.commit(
        "bad",
        &[("mashine.toml", "static = '.'\nbuild = 'echo so far so good; no-such-tool --all'")],
    );
    let said = machine.push(&["main"]);
    said.rejected().has(&[
        "Building: echo so far",
        "so far so good",
        "Build failed: `echo so far so good; no-such-tool --all` ended with exit code 127",
        "its last lines:",
        "no-such-tool: not found",
        "hint: a program is missing in the machine",
        "nothing was changed: v1 serves on",
        "pre-receive hook declined",
    ]);
    assert_eq!(machine.at("refs/heads/main"), Some(first));
    assert_eq!(machine.get("/").unwrap(), "one");
    assert_eq!(machine.releases(), "v2 failed, v1 live");
    assert!(!machine.base().join("releases/v2/app").exists());
}

#[test]
fn a_tree_that_is_nothing_and_a_wrong_toml_are_refused_before_anything_is_built() {
    let machine = Machine::new();
    machine.commit("nothing", &[("README", "x")]);
    machine.push(&["main"]).rejected().has(&["Recognition failed: nothing here says how to run it"]);
    machine.commit("wrong", &[("mashine.toml", "biuld = 'x'")]);
    machine.push(&["main"]).rejected().has(&["mashine.toml:", "unknown field `biuld`", "`build`"]);
    assert_eq!(machine.releases(), "");
}

#[test]
fn a_wrong_branch_gets_the_command_to_type() {
    let machine = Machine::new();
    machine.commit("x", &[("index.html", "x")]);
    machine.run(&["checkout", "-q", "-b", "dev"]).accepted();
    machine
        .push(&["dev"])
        .rejected()
        .has(&["branch dev was pushed, and main is the one that deploys", "git push mashine HEAD:main"]);
    machine.push(&["-o", "no-deploy", "dev"]).accepted().has(&["stored and not deployed"]);
    machine.push(&["HEAD:main"]).accepted().has(&["v1 is live"]);
    machine.commit("y", &[("index.html", "y")]);
    machine.push(&["-o", "branch=dev", "dev"]).accepted().has(&["of dev", "v2 is live"]);
    assert_eq!(machine.get("/").unwrap(), "y");
}

#[test]
fn tags_are_taken_forced_pushes_too_and_the_deploy_branch_stays() {
    let machine = Machine::new();
    machine.commit("x", &[("index.html", "x")]);
    machine.run(&["tag", "-a", "v1", "-m", "v1"]).accepted();
    machine.push(&["v1"]).accepted().has(&["stored; only branches deploy"]);
    machine.push(&["main"]).accepted();
    machine.run(&["commit", "-q", "--amend", "-m", "other"]).accepted();
    machine.push(&["main"]).rejected().has(&["rejected"]);
    machine.push(&["--force", "main"]).accepted().has(&["\"other\"", "v2 is live"]);
    machine.push(&["--delete", "main"]).rejected().has(&["cannot be deleted"]);
    assert_eq!(machine.at("refs/heads/main"), Some(machine.head()));
}

#[test]
fn master_deploys_where_there_is_no_main() {
    let machine = Machine::new();
    machine.commit("x", &[("index.html", "x")]);
    machine.run(&["branch", "-m", "master"]).accepted();
    machine.push(&["master"]).accepted().has(&["of master", "v1 is live"]);
    machine.run(&["clone", "-q", "git@mashine.test:web", "../clone"]).accepted();
    assert!(machine.path("clone/index.html").exists());
}

#[test]
fn push_options_are_known_or_listed() {
    let machine = Machine::new();
    machine.commit("x", &[PROCFILE, ("server.py", SERVER)]);
    machine
        .push(&["-o", "fast", "main"])
        .rejected()
        .has(&["push option 'fast' is not known; there are: no-deploy, skip-health"]);
    let said = machine.push(&["-o", "env.GREETING=s3cret", "-o", "skip-health", "main"]);
    said.accepted().has(&["not checked, as asked"]);
    assert!(!said.text.contains("s3cret"), "{}", said.text);
    assert_eq!(machine.get("/env").unwrap(), "s3cret");
    let all = machine.ask(&["deploy", "releases", "--json"], "");
    assert_eq!(all["releases"][0]["options"], serde_json::json!(["skip-health", "env.GREETING"]));
    assert!(!all.to_string().contains("s3cret"));
}

#[test]
fn a_shallow_clone_can_be_pushed() {
    let machine = Machine::new();
    for n in 0..3 {
        machine.commit(&format!("{n}"), &[("index.html", &format!("{n}"))]);
    }
    let url = format!("file://{}", machine.work().display());
    machine.run(&["clone", "-q", "--depth", "1", &url, "../shallow"]).accepted();
    let shallow = machine.path("shallow");
    machine.run_in(&shallow, &["push", "git@mashine.test:web", "main"]).accepted().has(&["v1 is live"]);
    assert_eq!(machine.get("/").unwrap(), "2");
}

#[test]
fn submodules_are_fetched_and_relative_ones_explained() {
    let machine = Machine::new();
    let library = machine.path("library");
    fs::create_dir(&library).unwrap();
    machine.run_in(&library, &["init", "-q", "-b", "main"]).accepted();
    fs::write(library.join("lib.txt"), "from the library").unwrap();
    machine.run_in(&library, &["add", "-A"]).accepted();
    machine.run_in(&library, &["commit", "-q", "-m", "lib"]).accepted();
    let url = library.display().to_string();
    machine.run(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &url, "lib"]).accepted();
    machine.commit("with lib", &[("index.html", "x")]);
    machine.push(&["main"]).accepted().has(&["Fetching 1 submodule(s)", "lib at ", "v1 is live"]);
    assert_eq!(machine.get("/lib/lib.txt").unwrap(), "from the library");
    assert!(!machine.base().join("releases/v1/app/lib/.git").exists());
    let modules = fs::read_to_string(machine.work().join(".gitmodules")).unwrap();
    machine.commit("gone", &[(".gitmodules", &modules.replace(&url, "/nowhere/at/all"))]);
    machine.push(&["main"]).rejected().has(&[
        "Submodules failed: lib could not be fetched from /nowhere",
        "hint:",
        "https",
    ]);
    machine.commit("relative", &[(".gitmodules", &modules.replace(&url, "../library"))]);
    machine.push(&["main"]).rejected().has(&["its URL \"../library\" is relative", "git submodule set-url"]);
}

#[test]
fn a_large_pack_comes_through() {
    let machine = Machine::new();
    let mut noise = vec![0u8; 30 << 20];
    let mut seed = 1u64;
    for byte in &mut noise {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        *byte = (seed & 0xff) as u8;
    }
    fs::write(machine.work().join("noise.bin"), &noise).unwrap();
    machine.commit("large", &[("index.html", "x")]);
    machine.push(&["main"]).accepted();
    assert_eq!(fs::read(machine.base().join("releases/v1/app/noise.bin")).unwrap().len(), noise.len());
}

#[test]
fn an_interrupted_push_leaves_nothing_and_the_next_one_works_at_once() {
    let machine = Machine::new();
    machine.commit(
        "slow",
        &[
            ("mashine.toml", "static = '.'\nbuild = 'echo begun; sleep 971.25 & sleep 971.5'"),
            ("index.html", "x"),
        ],
    );
    let push = machine.begin_push(&["main"]);
    push.until("begun");
    push.interrupt();
    machine.until("the build is gone", || processes_with("sleep 971.").is_empty());
    machine.until("the record says so", || machine.releases() == "v1 cancelled");
    assert_eq!(machine.at("refs/heads/main"), None);
    machine.commit("quick", &[("mashine.toml", "static = '.'")]);
    let started = Instant::now();
    machine.push(&["main"]).accepted().has(&["v2 is live"]);
    assert!(started.elapsed() < Duration::from_secs(10));
    let objects = fs::read_dir(machine.base().join("repo.git/objects")).unwrap().flatten();
    assert!(!objects.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("incoming")));
}

#[test]
fn whoever_is_killed_blocks_nobody() {
    let machine = Machine::new();
    let base = machine.base().display().to_string();
    for (n, victim) in ["git receive-pack", "deploy pre-receive", "unshare --pid"].into_iter().enumerate() {
        let number = format!("97{n}.125");
        let toml = format!("static = '.'\nbuild = 'echo begun; sleep {number}'");
        machine.commit("slow", &[("mashine.toml", &toml), ("index.html", "x")]);
        let push = machine.begin_push(&["main"]);
        push.until("begun");
        // Those of this test's machine alone.
        let mine = |pid: &nix::unistd::Pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&base);
            has(&environment) || has(&cmdline) || String::from_utf8_lossy(&cmdline).contains(&number)
        };
        let victims = || processes_with(victim).into_iter().filter(mine).collect::<Vec<_>>();
        // The word may be that of the line which tells what is about to run.
        machine.until(victim, || !victims().is_empty());
        victims().into_iter().for_each(kill_hard);
        push.end().rejected();
        machine.until("the build is gone", || processes_with(&format!("sleep {number}")).is_empty());
    }
    machine.commit("quick", &[("mashine.toml", "static = '.'")]);
    machine.push(&["main"]).accepted().has(&["v4 is live"]);
    for version in 1..4 {
        assert!(!machine.base().join(format!("releases/v{version}/app")).exists());
    }
}

#[test]
fn a_newer_push_supersedes_a_running_build() {
    let machine = Machine::new();
    let slow = machine.commit(
        "slow",
        &[("mashine.toml", "static = '.'\nbuild = 'echo begun; sleep 981'"), ("index.html", "x")],
    );
    let first = machine.begin_push(&["main"]);
    first.until("begun");
    let quick = machine.commit("quick", &[("mashine.toml", "static = '.'")]);
    let said = machine.push(&["main"]);
    said.accepted().has(&["A build is under way; this one supersedes it", "v2 is live"]);
    first.end().rejected().has(&["superseded by a newer push of", &quick[..7], "by alice"]);
    assert_ne!(slow, quick);
    assert_eq!(machine.at("refs/heads/main"), Some(quick));
    assert_eq!(machine.releases(), "v2 live, v1 cancelled");
}

#[test]
fn a_push_that_lost_the_race_for_the_ref_deploys_nothing() {
    let machine = Machine::new();
    let first = machine.commit("one", &[("index.html", "one")]);
    machine.push(&["main"]).accepted();
    // What git tells the hook of a client that saw the repository when it was empty.
    let line = format!("{} {first} refs/heads/main\n", "0".repeat(40));
    let output = machine.agent(&["deploy", "pre-receive"], &line);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("main has moved meanwhile: it is at") && text.contains("v1 serves on"), "{text}");
    assert_eq!(machine.releases(), "v1 live");
}

#[test]
fn a_switch_over_under_load_drops_no_request() {
    let machine = Machine::new();
    machine.commit("one", &[PROCFILE, WITH_HEALTH, ("server.py", SERVER)]);
    machine.push(&["main"]).accepted().has(&["GET /up answered 200", "v1 is live"]);
    let (load, slow) = (machine.load("/", 4), machine.load("/slow", 4));
    for n in 2..=4 {
        machine.commit(&format!("{n}"), &[("n", &n.to_string())]);
        machine.push(&["main"]).accepted().has(&[&format!("v{n} is live")]);
        assert_eq!(machine.get("/").unwrap(), format!("v{n}"));
    }
    let (text, ended) = machine.operate(r#"{"ask":"rollback"}"#);
    assert_eq!(ended["live"], 3, "{text}");
    assert_eq!(machine.get("/").unwrap(), "v3");
    assert!(load.all_answered() > 100);
    assert!(slow.all_answered() > 10);
    // Old releases are stopped once they have drained.
    let run = machine.base().join("run");
    machine.until("v1, v2 and v4 are stopped", || {
        [1, 2, 4].iter().all(|n| !run.join(format!("v{n}-web.pid")).exists())
    });
    assert!(run.join("v3-web.pid").exists());
}

#[test]
fn static_files_switch_under_load_too() {
    let machine = Machine::new();
    machine.commit("one", &[("public/index.html", "one")]);
    machine.push(&["main"]).accepted();
    let load = machine.load("/", 8);
    for n in 2..=5 {
        machine.commit(&format!("{n}"), &[("public/index.html", &n.to_string())]);
        machine.push(&["main"]).accepted();
        assert_eq!(machine.get("/").unwrap(), n.to_string());
    }
    assert!(load.all_answered() > 100);
}

#[test]
fn busy_persistent_connections_are_told_of_their_end() {
    let machine = Machine::new();
    machine.commit("one", &[("index.html", "1"), ("mashine.toml", "drain_seconds = 1")]);
    machine.push(&["main"]).accepted();
    let (port, until) = (machine.port, Instant::now() + Duration::from_secs(6));
    let clients: Vec<_> = (0..4).map(|_| std::thread::spawn(move || persistent(port, until))).collect();
    for n in 0..2 {
        machine.commit(&format!("{n}"), &[("n", &n.to_string())]);
        machine.push(&["main"]).accepted();
    }
    let answers: u64 = clients.into_iter().map(|client| client.join().unwrap().unwrap()).sum();
    assert!(answers > 100, "{answers}");
}

#[test]
fn a_release_that_is_not_healthy_never_serves() {
    let machine = Machine::new();
    machine.commit("one", &[("index.html", "one")]);
    machine.push(&["main"]).accepted();
    let load = machine.load("/", 2);
    let toml =
        "[health]\npath = '/'\ntimeout_seconds = 1\n[run]\nweb = 'echo I listen on nothing; exec sleep 991'";
    machine.commit("deaf", &[("mashine.toml", toml)]);
    machine.push(&["main"]).rejected().has(&[
        "Health check failed: port",
        "for 1 s",
        "I listen on nothing",
        "hint: the program must listen on $PORT",
    ]);
    machine.commit("dead", &[("mashine.toml", "run = 'echo no database; exit 3'")]);
    machine.push(&["main"]).rejected().has(&["Start failed: web: it ended", "no database", "v1 serves on"]);
    machine.until("the deaf one is stopped", || processes_with("sleep 991").is_empty());
    load.all_answered();
    assert_eq!(machine.releases(), "v3 failed, v2 failed, v1 live");
}

#[test]
fn a_program_with_a_port_of_its_own_is_replaced_while_requests_wait() {
    let machine = Machine::new();
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let toml = format!("app_port = {own}\nrun = 'OWN_PORT={own} exec /usr/bin/python3 server.py'");
    machine.commit("one", &[("mashine.toml", &toml), ("server.py", SERVER)]);
    machine.push(&["main"]).accepted();
    let load = machine.load("/", 2);
    machine.commit("two", &[("n", "2")]);
    machine.push(&["main"]).accepted().has(&["new requests wait while it is replaced", "v2 is live"]);
    assert_eq!(machine.get("/").unwrap(), "v2");
    machine.commit("bad", &[("mashine.toml", &format!("app_port = {own}\nrun = 'exit 1'"))]);
    machine.push(&["main"]).rejected().has(&["v2 serves on"]);
    assert_eq!(machine.get("/").unwrap(), "v2");
    load.all_answered();
}

#[test]
fn rollback_redeploy_and_config_go_by_operations() {
    let machine = Machine::new();
    let (_, ended) = machine.operate(r#"{"ask":"redeploy"}"#);
    assert!(ended["error"].as_str().unwrap().contains("nothing has been pushed"), "{ended}");
    machine.operate(r#"{"ask":"config","set":{"GREETING":"early"}}"#);
    machine.commit("one", &[PROCFILE, ("server.py", SERVER)]);
    machine.push(&["main"]).accepted();
    assert_eq!(machine.get("/env").unwrap(), "early");
    let (text, ended) = machine.operate(r#"{"ask":"config","set":{"GREETING":"h3llo"},"by":"bob"}"#);
    assert_eq!(ended["live"], 2, "{text}");
    assert!(text.contains("the build of v1 with GREETING changed") && !text.contains("h3llo"), "{text}");
    assert_eq!(machine.get("/env").unwrap(), "h3llo");
    assert_eq!(machine.ask(&["deploy", "config", "--json"], "")["env"]["GREETING"], "h3llo");
    let (text, ended) = machine.operate(r#"{"ask":"redeploy"}"#);
    assert_eq!(ended["live"], 3, "{text}");
    assert_eq!(machine.get("/env").unwrap(), "h3llo");
    let (_, ended) = machine.operate(r#"{"ask":"rollback","to":1}"#);
    assert_eq!(ended["live"], 1);
    assert_eq!(machine.get("/env").unwrap(), "early");
    assert_eq!(machine.ask(&["deploy", "config", "--json"], "")["env"]["GREETING"], "early");
    assert_eq!(machine.releases(), "v3 former, v2 kept, v1 live");
    let (_, ended) = machine.operate(r#"{"ask":"rollback","to":1}"#);
    assert!(ended["error"].as_str().unwrap().contains("v1 serves already"), "{ended}");
    let (_, ended) = machine.operate(r#"{"ask":"config","set":{"PORT":"1"}}"#);
    assert!(ended["error"].as_str().unwrap().contains("PORT"), "{ended}");
    for secret in ["config.json", "releases/v2/env.json"] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(machine.base().join(secret)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn an_operation_is_cancelled_and_its_end_is_seen_even_when_it_is_killed() {
    let machine = Machine::new();
    machine.commit(
        "x",
        &[
            ("mashine.toml", "static = '.'\nbuild = 'echo begun; test ! -e MARK || sleep 961'"),
            ("index.html", "x"),
        ],
    );
    let toml = machine.work().join("mashine.toml");
    let mark = machine.path("mark").display().to_string();
    fs::write(&toml, fs::read_to_string(&toml).unwrap().replace("MARK", &mark)).unwrap();
    machine.commit("marked", &[]);
    machine.push(&["main"]).accepted();
    fs::write(&mark, "").unwrap();
    let begin = || {
        machine.ask(&["deploy", "begin"], r#"{"ask":"redeploy"}"#)["operation"].as_str().unwrap().to_owned()
    };
    let followed = |id: &str| machine.ask(&["deploy", "follow", id, "0"], "");
    let id = begin();
    machine.until("it builds", || followed(&id)["text"].as_str().unwrap().contains("begun"));
    let ended = machine.ask(&["deploy", "cancel", &id], "");
    assert_eq!(ended["ended"]["error"], "cancelled", "{ended}");
    machine.until("the build is gone", || processes_with("sleep 961").is_empty());
    let id = begin();
    machine.until("it builds", || followed(&id)["text"].as_str().unwrap().contains("begun"));
    processes_with(&format!("deploy operate {id}")).into_iter().for_each(kill_hard);
    machine.until("its end is seen", || {
        followed(&id)["ended"]["error"].as_str().is_some_and(|e| e.contains("killed"))
    });
    machine.until("the build is gone", || processes_with("sleep 961").is_empty());
    fs::remove_file(&mark).unwrap();
    let (_, ended) = machine.operate(r#"{"ask":"redeploy"}"#);
    assert_eq!(ended["live"], 4, "{ended}");
}

#[test]
fn only_so_many_releases_are_kept() {
    let machine = Machine::new();
    for n in 1..=5 {
        machine.commit(
            &format!("{n}"),
            &[("mashine.toml", "static = '.'\nkeep = 2"), ("index.html", &n.to_string())],
        );
        machine.push(&["main"]).accepted();
    }
    machine.until("v3 has drained", || !machine.base().join("run/v3-web.pid").exists());
    machine.operate(r#"{"ask":"redeploy"}"#);
    machine.until("two or three are left", || {
        machine.operate(r#"{"ask":"config","set":{},"unset":[]}"#);
        machine.releases().starts_with("v6 live, v5 former")
    });
    assert!(!machine.base().join("releases/v1").exists());
    assert!(machine.base().join("releases/v5/app").exists());
}

#[test]
fn workers_alone_are_run_and_replaced() {
    let machine = Machine::new();
    machine.commit("one", &[("Procfile", "worker: exec sleep 951.5\n")]);
    machine.push(&["main"]).accepted().has(&["runs: worker", "it runs", "v1 is live"]);
    assert_eq!(processes_with("sleep 951.5").len(), 1);
    assert!(machine.get("/").is_err());
    machine.commit(
        "two",
        &[
            ("Procfile", "worker: exec sleep 951.25\nweb: exec /usr/bin/python3 server.py\n"),
            ("server.py", SERVER),
        ],
    );
    machine.push(&["main"]).accepted().has(&["runs: web, worker", "v2 is live on port 80"]);
    assert_eq!(machine.get("/").unwrap(), "v2");
    machine.until("the old worker is gone", || processes_with("sleep 951.5").is_empty());
    assert_eq!(processes_with("sleep 951.25").len(), 1);
}

#[test]
fn a_hold_counts_only_while_somebody_replaces() {
    let machine = Machine::new();
    machine.commit("one", &[("index.html", "one")]);
    machine.push(&["main"]).accepted();
    // As a replacement that was killed in its middle leaves it.
    let state = machine.base().join("state.json");
    let text = fs::read_to_string(&state).unwrap().replace("\"hold\": false", "\"hold\": true");
    assert!(text.contains("\"hold\": true"), "{text}");
    fs::write(machine.path("state"), text).unwrap();
    fs::rename(machine.path("state"), &state).unwrap();
    assert_eq!(machine.get("/").unwrap(), "one");
}

#[test]
fn two_first_pushes_at_once_make_one_repository() {
    let machine = Machine::new();
    machine.commit("one", &[("index.html", "one")]);
    let (first, second) =
        (machine.begin_push(&["main"]), machine.begin_push(&["main:stored", "-o", "no-deploy"]));
    second.end().accepted();
    first.end().accepted();
    assert_eq!(machine.at("refs/heads/main"), machine.at("refs/heads/stored"));
}

#[test]
fn a_front_that_is_killed_serves_again_what_was_live() {
    let machine = Machine::new();
    machine.commit("one", &[PROCFILE, ("server.py", SERVER)]);
    machine.push(&["main"]).accepted();
    for process in ["front", "v1-web"] {
        let path = machine.base().join(format!("run/{process}.pid"));
        let pid = nix::unistd::Pid::from_raw(fs::read_to_string(&path).unwrap().parse().unwrap());
        kill_hard(pid);
        // A signal is sent and not yet obeyed when kill returns: after a boot nothing of before is left, neither process nor port.
        machine.until("it is gone", || !is_alive(pid));
    }
    // As after a boot: systemd starts the front, which starts the release.
    let _front = machine.front();
    machine.until("it serves", || machine.get("/").is_ok_and(|body| body == "v1"));
}
