//! Two entries: either may die under load, and nothing fails but what was in flight on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::clients::tool;
use crate::common::edge::{EdgeStage, WebCa, serve};
use crate::common::{finish, free_port};
use axum::Router;
use axum::routing::get;
use mashines_fleet::sealed::EntrySecret;

/// An entry on an address of its own, in a runtime of its own: dropping that closes its sockets at once, as the end of a process does.
fn entry(
    ca: &Arc<WebCa>,
    secret: &EntrySecret,
    address: &str,
    port: u16,
    machine: u16,
) -> (tokio::runtime::Runtime, EdgeStage) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (ca, secret, listen) = (Arc::clone(ca), secret.clone(), format!("{address}:{port}").parse().unwrap());
    let stage = runtime.block_on(async {
        let stage = EdgeStage::sharing(ca, secret, |config| config.tls_listen = vec![listen]).await;
        stage.machine("web", machine).await;
        stage
    });
    (runtime, stage)
}

/// Requests one after another, each by a connection of its own to the first of the addresses that answers. The times at which those that failed
/// were begun.
async fn visit(
    ca: String,
    port: u16,
    addresses: String,
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
) -> Vec<Instant> {
    let mut failed = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut curl = tool("curl", "curl");
        curl.args(["-sS", "--max-time", "20", "--noproxy", "*", "--cacert", &ca]);
        curl.args(["--resolve", &format!("web.mashine.dev:{port}:{addresses}")]);
        curl.arg(format!("https://web.mashine.dev:{port}/"));
        if finish(curl, b"").await.text() == "web" {
            answered.fetch_add(1, Ordering::Relaxed);
        } else {
            failed.push(begun);
        }
    }
    failed
}

#[test]
fn either_of_two_entries_may_die_under_load() {
    let here = tokio::runtime::Runtime::new().unwrap();
    // A moment's pause, so that there always is something in flight.
    let page = || async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        "web"
    };
    let machine = here.block_on(serve(Router::new().route("/", get(page))));
    let (ca, secret, port) = (Arc::new(WebCa::new()), EntrySecret::random(), free_port());
    for (first, second) in [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")] {
        let (dying, stage) = entry(&ca, &secret, first, port, machine);
        let (_staying, _stage) = entry(&ca, &secret, second, port, machine);
        let file = stage.path("ca.pem").to_str().unwrap().to_owned();
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let visitors: Vec<_> = (0..4)
            .map(|n| {
                let order =
                    if n % 2 == 0 { format!("{first},{second}") } else { format!("{second},{first}") };
                here.spawn(visit(file.clone(), port, order, Arc::clone(&end), Arc::clone(&answered)))
            })
            .collect();
        let reach = |wanted: u32| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while answered.load(Ordering::Relaxed) < wanted {
                assert!(Instant::now() < deadline, "the entries do not answer");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        reach(20);
        dying.shutdown_background();
        let dead = Instant::now();
        reach(answered.load(Ordering::Relaxed) + 20);
        end.store(true, Ordering::Relaxed);
        let failed: Vec<Instant> =
            visitors.into_iter().flat_map(|visitor| here.block_on(visitor).unwrap()).collect();
        // A connection that the dying one had taken from the queue may have begun a moment before it was dead.
        let later = failed.iter().filter(|begun| **begun > dead).count();
        assert_eq!(later, 0, "requests failed that began after {first} had died");
        assert!(failed.len() <= 4, "more failed than was in flight: {}", failed.len());
    }
}
