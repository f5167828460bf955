//! Zonemaster, undelegated, finds no error in the fleet's zone as two of our servers serve it.
//!
//! They and zonemaster are in a network namespace of their own, on port 53, with a root that knows nobody: what zonemaster asks of the
//! world outside has no answer there, so only the delegation that it is told of counts.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod programs;

use std::sync::Arc;

use common::{entry, machine, put, zone_keys};
use mashines_dns::{Config, Server};
use mashines_fleet::sealed::EntrySecret;
use programs::{eventually, run, short};
use serde_json::json;
use tokio::sync::watch;

/// Set in the copy of this test that runs within the namespace.
const WITHIN: &str = "MASHINES_TEST_NAMESPACE";

/// Addresses of no special use, which it would call an error; nothing of this leaves the namespace.
const SERVERS: [(&str, &str); 2] = [("ns1.mashine.dev", "45.10.20.53"), ("ns2.mashine.dev", "185.30.40.53")];

#[test]
fn zonemaster_finds_no_error() {
    if std::env::var_os(WITHIN).is_none() {
        let own = std::env::current_exe().unwrap().display().to_string();
        let within = format!("{WITHIN}=1");
        let (content, said) = run(
            "unshare",
            &["--net", "env", &within, &own, "--exact", "zonemaster_finds_no_error", "--nocapture"],
        );
        println!("{said}");
        assert!(content);
        return;
    }
    let (up, said) = run("ip", &["link", "set", "lo", "up"]);
    assert!(up, "{said}");
    for (_, address) in SERVERS {
        assert!(run("ip", &["address", "add", &format!("{address}/16"), "dev", "lo"]).0);
    }
    let secret = EntrySecret::random();
    let servers = SERVERS.map(|(name, address)| json!({"name": name, "addresses": [address]}));
    let config = put(
        "config".into(),
        json!({"domain": "mashine.dev", "prefix": "2001:db8:160::/48", "name_servers": servers, "ssh_ports": [1, 2], "ssh_ca": null,
               "zones": [{"name": "mashine.dev", "records": [{"name": "", "type": "MX", "ttl": 3600, "data": "10 web.mashine.dev."}]}]}),
    );
    let changes = vec![
        config,
        entry(),
        machine(1, "web", "2001:db8:160::1", json!({})),
        zone_keys("mashine.dev", &["active"], &secret),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let view = common::view(changes);
    let mut alive = Vec::new();
    for (name, address) in SERVERS {
        let settings = Config {
            listen: vec![format!("{address}:53").parse().unwrap()],
            threads: 1,
            identity: name.to_owned(),
            ..Config::default()
        };
        let server = runtime.block_on(Server::bind(&settings)).unwrap();
        let (views, secrets) = (watch::channel(Arc::clone(&view)), watch::channel(Some(secret.clone())));
        runtime.spawn(async move { server.serve(views.1, secrets.1, std::future::pending()).await.unwrap() });
        alive.push((views.0, secrets.0));
    }
    let first = format!("{}:53", SERVERS[0].1).parse().unwrap();
    eventually("our servers answer", || (!short(first, &["mashine.dev", "SOA"]).is_empty()).then_some(()));
    let cds = short(first, &["mashine.dev", "CDS"]);
    let ds: Vec<&str> = cds[0].split(' ').collect();
    let ds = format!("{},{},{},{}", ds[0], ds[1], ds[2], ds[3..].concat());
    let directory = tempfile::tempdir().unwrap();
    let hints = directory.path().join("hints");
    std::fs::write(&hints, ". 3600 IN NS nobody.root.test.\nnobody.root.test. 3600 IN A 45.10.255.1\n")
        .unwrap();
    let mut arguments =
        vec!["--no-ipv6".to_owned(), "--level".into(), "INFO".into(), "--no-time".into(), "--raw".into()];
    arguments.extend(["--hints".into(), hints.display().to_string(), "--ds".into(), ds]);
    arguments
        .extend(SERVERS.iter().flat_map(|(name, address)| ["--ns".to_owned(), format!("{name}/{address}")]));
    arguments.push("mashine.dev".into());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (_, said) = run("zonemaster-cli", &arguments);
    println!("{said}");
    let bad = said.lines().filter(|line| line.contains("ERROR") || line.contains("CRITICAL"));
    let bad: Vec<&str> = bad.collect();
    assert!(bad.is_empty(), "{said}");
    for looked in ["DS10_HAS_NSEC", "ONE_SOA_SERIAL", "EDNS0_SUPPORT", "ADDRESSES_MATCH", "QNAME_CASE_SENSITIVE"] {
        assert!(said.contains(looked), "it did not come to look at {looked}: {said}");
    }
    runtime.shutdown_background();
    drop(alive);
}
