//! Bad input is refused with an error that helps, and leaves nothing behind.

use std::io::{Read as _, Write as _};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_tests::daemons::{Fleet, api_url};
use mashines_tests::netns::Place;
use mashines_tests::run::{run, wait_for};

/// What could be left behind on the two hosts.
#[derive(Debug, PartialEq)]
struct Traces {
    monitors: usize,
    taps: usize,
    routes: usize,
    files: Vec<String>,
}

fn traces(fleet: &Fleet) -> Result<Traces> {
    let mut traces = Traces { monitors: 0, taps: 0, routes: 0, files: Vec::new() };
    for place in [Place::A, Place::B] {
        traces.monitors += fleet.monitors(place)?.len();
        let links = run(fleet.topology.command(place, "ip").args(["-o", "link", "show", "type", "tun"]))?;
        traces.taps += links.lines().count();
        let routes = run(fleet.topology.command(place, "ip").args([
            "-6",
            "route",
            "show",
            "root",
            "2001:db8:100::/48",
        ]))?;
        traces.routes += routes.lines().count();
        for dir in ["machines", "volumes"] {
            let Ok(entries) = std::fs::read_dir(fleet.state(place).join("host").join(dir)) else { continue };
            for entry in entries {
                traces.files.push(format!("{}/{dir}/{}", place.name(), entry?.file_name().to_string_lossy()));
            }
        }
    }
    traces.files.sort();
    Ok(traces)
}

#[test]
fn bad_input_gets_a_clear_error_and_leaves_nothing_behind() -> Result<()> {
    let fleet = Fleet::up("refusals", &mut |step| eprintln!("{step}"))?;
    let words =
        ["launch", "--name", "witness", "--image", "bench", "--vcpu", "1", "--memory", "128M", "--wait"];
    let _: api::Machine = fleet.ask(&words)?;
    let stopped =
        ["launch", "--name", "asleep", "--image", "bench", "--vcpu", "1", "--memory", "128M", "--wait"];
    let _: api::Machine = fleet.ask(&stopped)?;
    let _: serde_json::Value = fleet.ask(&["stop", "asleep", "--wait"])?;
    let before = traces(&fleet)?;
    eprintln!("what is there before: {before:?}");
    let mut wrong = Vec::new();
    for (words, expected) in refused_words() {
        let output = fleet.cli_command().args(&words).output()?;
        let outcome = refused(&format!("mashines {}", words.join(" ")), &output, expected);
        wrong.extend(outcome.err().map(|e| format!("{e:#}")));
    }
    ensure!(
        wrong.is_empty(),
        "{} commands were not refused as they should:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    bad_requests(&fleet)?;
    a_stream_of_garbage_ends_nothing(&fleet)?;
    wait_for("nothing to be left behind", Duration::from_secs(20), Duration::from_millis(500), || {
        let after = traces(&fleet)?;
        ensure!(after == before, "left behind: before {before:?}, after {after:?}");
        Ok(())
    })
}

/// Commands that must fail, and words that their error must contain.
fn refused_words() -> Vec<(Vec<&'static str>, &'static [&'static str])> {
    vec![
        (vec!["launch", "--name", "x1", "--image", "no-such-image"], &["no-such-image", "container-os"]),
        (vec!["launch", "--name", "x2", "--image", "bench", "--memory", "900G"], &["memory", "free"]),
        (vec!["launch", "--name", "x3", "--image", "bench", "--vcpu", "99"], &["cpu"]),
        (vec!["launch", "--name", "witness", "--image", "bench"], &["witness"]),
        (vec!["launch", "--name", "../../etc", "--image", "bench"], &["name"]),
        (vec!["launch", "--name", "x4", "--image", "bench", "--volume", "data:0G"], &["volume"]),
        (vec!["migrate", "witness", "--to", "nowhere"], &["nowhere"]),
        (vec!["migrate", "asleep", "--to", "a"], &["stopped"]),
        (vec!["migrate", "witnes", "--to", "b"], &["witness"]),
        (vec!["show", "nobody"], &["nobody"]),
        (vec!["drain", "nowhere"], &["nowhere"]),
        (vec!["exec", "asleep", "--", "true"], &["stopped"]),
    ]
}

fn refused(what: &str, output: &Output, expected: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{what} was not refused");
    for word in expected {
        ensure!(said.to_lowercase().contains(word), "{what}: the error does not speak of {word:?}: {said}");
    }
    ensure!(!said.contains("panicked"), "{what}: {said}");
    eprintln!("{what}\n    {}", said.trim());
    Ok(())
}

/// What no client of ours sends: malformed, oversized, unauthorized.
fn bad_requests(fleet: &Fleet) -> Result<()> {
    let config = std::fs::read_to_string(fleet.state(Place::Client).with_file_name("person/config.toml"))?;
    let token = config
        .lines()
        .find_map(|l| l.strip_prefix("token = "))
        .context("no token")?
        .trim_matches('"')
        .to_owned();
    let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(4 << 20));
    let machines = "/v1/apps/default/machines";
    let cases: [(&str, &str, &str, &str); 5] = [
        (machines, &token, "{\"name\": \"x\", \"config\": {", "400"),
        (machines, &token, "[]", "4"),
        (machines, &token, &huge, "413"),
        (machines, "wrong-token", "{}", "401"),
        ("/v1/apps/default/machines/zzz/migrate", &token, "{\"host\": 7}", "4"),
    ];
    for (path, token, body, status) in cases {
        let file = fleet.state(Place::Client).with_file_name("body.json");
        std::fs::write(&file, body)?;
        let mut curl: Command = fleet.topology.command(Place::Client, "curl");
        curl.args([
            "-sk",
            "-m",
            "20",
            "-o",
            "/dev/stdout",
            "-w",
            "\n%{http_code}",
            "-H",
            "content-type: application/json",
        ]);
        curl.args(["-H", "expect:", "-H", &format!("authorization: Bearer {token}")]);
        curl.arg("--data-binary").arg(format!("@{}", file.display())).arg(api_url() + path);
        let output = curl.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, code) = text.rsplit_once('\n').context("curl said nothing")?;
        ensure!(code.starts_with(status), "{path} with {:.60}: {code} {answer}", body);
        ensure!(answer.contains("error"), "{path}: the answer explains nothing: {answer}");
        eprintln!("{path}: {code} {}", answer.trim());
    }
    Ok(())
}

/// Bytes from a stranger on every TCP port that a host listens on, while a machine waits to come in.
fn a_stream_of_garbage_ends_nothing(fleet: &Fleet) -> Result<()> {
    let source = fleet.place_of("witness")?;
    let monitor = mashines_tests::monitor::of(fleet, source)?.pop().context("no monitor")?;
    let phase = mashines_vmm::api::Phase::Handshake;
    monitor.hold(phase, true)?;
    let migration: api::Migration =
        fleet.ask(&["migrate", "witness", "--to", source.peer().name(), "--no-wait"])?;
    std::thread::sleep(Duration::from_secs(1));
    let listening = run(fleet.topology.command(source.peer(), "ss").args(["-Htln6"]))?;
    let ports = listening
        .lines()
        .filter_map(|l| l.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse::<u16>().ok());
    let ports: Vec<u16> = ports.collect();
    ensure!(!ports.is_empty(), "nothing listens at the destination");
    let topology = fleet.topology.clone();
    let to = source.peer().underlay();
    let attack = std::thread::spawn(move || -> Result<()> {
        topology.enter(Place::Control)?;
        for port in ports {
            for garbage in [vec![0_u8; 64 << 10], vec![0x16, 3, 1, 255, 255], vec![b'A'; 300]] {
                let address = format!("[{to}]:{port}");
                let Ok(mut stream) = std::net::TcpStream::connect(&address) else { continue };
                stream.set_read_timeout(Some(Duration::from_millis(300)))?;
                let _ = stream.write_all(&garbage);
                let _ = stream.read(&mut [0; 256]);
            }
        }
        Ok(())
    });
    attack.join().map_err(|_| anyhow::anyhow!("the attacker died"))??;
    monitor.hold(phase, false)?;
    wait_for("the move among garbage", Duration::from_secs(60), Duration::from_millis(300), || {
        let migrations: Vec<api::Migration> = fleet.ask(&["migrations"])?;
        let found = migrations.into_iter().find(|m| m.id == migration.id).context("the migration is gone")?;
        ensure!(found.done && found.error.is_none(), "{found:?}");
        Ok(())
    })?;
    // Back, so that what is on each host can be compared with the start.
    let back = fleet.migrate("witness")?;
    ensure!(back.error.is_none(), "the way back: {:?}", back.error);
    Ok(())
}
