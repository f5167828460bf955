//! `https://SLUG.mashine.dev` of a machine that moves: a certificate from a real issuer, and every kind of connection through the edge.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MigrationStep;
use mashines_tests::daemons::{DOMAIN, Fleet};
use mashines_tests::issuer::Issuer;
use mashines_tests::names;
use mashines_tests::person::Door;
use mashines_tests::run::wait_for;
use mashines_tests::web::Visitor;

/// It speaks HTTP/1.1 at its port 80, as a machine without services does.
const WEB: &str = "web-otter";
/// It speaks HTTP/2 without TLS.
const RPC: &str = "rpc-otter";
const MOVES: usize = 2;
#[test]
fn a_machine_is_fetched_by_name_while_it_moves() -> Result<()> {
    let mut issuer = None;
    let fleet = Fleet::up_with("web", &mut |step| eprintln!("{step}"), &mut |topology, directory| {
        Ok(issuer.insert(Issuer::start(topology, directory)?).section())
    })?;
    let issuer = issuer.context("no issuer")?;
    let begun = Instant::now();
    let _: api::Machine = fleet.ask(&["launch", "--name", WEB, "--memory", "256M", "--wait"])?;
    let words = ["launch", "--name", RPC, "--memory", "256M", "--service", "443:8000/h2", "--wait"];
    let _: api::Machine = fleet.ask(&words)?;
    serve_in(&fleet, WEB, 80)?;
    serve_in(&fleet, RPC, 8000)?;
    names::one_finds_the_other(&fleet, WEB, RPC)?;
    let visitor = Visitor::new(&fleet.topology, &issuer.root()?);
    let page = format!("https://{WEB}.{DOMAIN}/");
    wait_for("the platform's certificate", Duration::from_secs(90), Duration::from_millis(500), || {
        visitor.curl(&["--fail", "-4", &page]).map(drop)
    })?;
    eprintln!("https works {:.1} s after the first launch began", begun.elapsed().as_secs_f64());
    pages_by_both_families(&visitor, &page)?;
    connections_live_on_through_moves(&fleet, &visitor)?;
    names::one_finds_the_other(&fleet, WEB, RPC)
}

/// Runs [`mashines-web`] in a machine.
fn serve_in(fleet: &Fleet, slug: &str, port: u16) -> Result<()> {
    let program = std::env::var("MASHINES_BIN").context("MASHINES_BIN")? + "/mashines-web";
    fleet.person.scp(&program, &format!("root@{slug}.{DOMAIN}:/usr/local/bin/web-server"))?;
    let run = format!("systemd-run --quiet --unit=web /usr/local/bin/web-server {port}");
    fleet.person.sh(slug, Door::Ipv6, &run).map(drop)
}

fn pages_by_both_families(visitor: &Visitor, page: &str) -> Result<()> {
    for family in ["-4", "-6"] {
        for (version, told) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let words = ["--fail", family, version, "--write-out", "%{http_version}", page];
            let answer = visitor.curl(&words)?;
            ensure!(answer.ends_with(&format!("\n{told}")), "{family} {version}: {answer}");
            ensure!(answer.contains("x-forwarded-proto: https"), "{family} {version}: {answer}");
            let client = if family == "-4" { "198.51.100.2" } else { "2001:db8:1::2" };
            ensure!(answer.contains(&format!("x-forwarded-for: {client}")), "{family} {version}: {answer}");
        }
        let plain = page.replacen("https", "http", 1);
        let sent = visitor.curl(&[
            family,
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code} %{redirect_url}",
            &plain,
        ])?;
        ensure!(sent == format!("308 {page}"), "{family}: {sent}");
    }
    Ok(())
}

/// A WebSocket, server-sent events, a download and a gRPC stream; and the first three once more, in a browser's page.
fn connections_live_on_through_moves(fleet: &Fleet, visitor: &Visitor) -> Result<()> {
    let mut browser = visitor.browser(&format!("https://{WEB}.{DOMAIN}/browser"))?;
    let begun = Instant::now();
    let socket = visitor.websocket(&format!("wss://{WEB}.{DOMAIN}/socket"))?;
    let mut events = visitor.events(&format!("https://{WEB}.{DOMAIN}/events"))?;
    let mut download = visitor.download(&format!("https://{WEB}.{DOMAIN}/bytes/1000000"))?;
    let mut calls = visitor.grpc(&format!("{RPC}.{DOMAIN}:443"))?;
    events.read(5)?;
    let opened = Instant::now();
    let seen = browser.receive(5)?;
    ensure!(seen.protocol == "h2", "the browser has its page over {}", seen.protocol);
    eprintln!("the browser's page has all its connections after {:.1} s", opened.elapsed().as_secs_f64());
    for number in 1..=MOVES {
        for slug in [WEB, RPC] {
            let begun = Instant::now();
            let migration = fleet.migrate(slug)?;
            ensure!(migration.step == MigrationStep::Completed, "move {number} of {slug}: {migration:?}");
            eprintln!("move {number} of {slug}: {:.1} s", begun.elapsed().as_secs_f64());
            let stream = if slug == WEB { &mut download } else { &mut calls };
            ensure!(stream.goes_on()?, "the stream from {slug} ended in move {number}");
            browser.look().with_context(|| format!("move {number} of {slug}"))?;
        }
    }
    for (what, stream) in [("the WebSocket", socket), ("the gRPC stream", calls), ("the download", download)]
    {
        let told = stream.told().context(what)?;
        eprintln!("{what}: {} messages, longest silence {} ms", told.count, told.largest_gap_ms);
    }
    let seen = browser.receive(5)?;
    for (what, told) in seen.kinds() {
        eprintln!(
            "the browser's {what}: {} messages, longest silence {} ms",
            told.count, told.largest_gap_ms
        );
    }
    drop(browser);
    // All that were sent since, in order: one a tick for as long as the moves took.
    events.read(u64::try_from(begun.elapsed().as_millis() / 100)?)?;
    ensure!(events.go_on()?, "the events ended");
    Ok(())
}
