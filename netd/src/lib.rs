//! One host's network: taps, addresses, routes, hand-over.
//!
//! - [`api`]: what netd is told and what it answers, over a unix socket of its own host.
//! - [`client`]: a blocking client for it, on the standard library alone.
//! - [`config`]: what the person who runs the host decides.
//! - [`view`]: what netd must know of the rest of the fleet, as a watched value.
//! - [`run`]: netd itself. It decides in pure code ([`ledger`]: which orders are obeyed; [`plan`]: what should be;
//!   [`reconcile`]: what to change) and acts through a thin shell around it ([`kernel`], [`filter`], [`store`]).
//!
//! ```text
//! socket ──▶ ledger ─┐
//!                    ├─▶ plan ──▶ reconcile ──▶ kernel, filters
//! records ──▶ view ──┘
//! ```

pub mod api;
pub mod client;
pub mod config;
pub mod error;
pub mod filter;
pub mod kernel;
pub mod ledger;
pub mod mac;
pub mod plan;
#[cfg(test)]
mod properties;
pub mod reconcile;
mod requests;
mod server;
mod shell;
mod startup;
pub mod store;
pub mod view;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, interval_at};

pub use crate::config::NetdConfig;
pub use crate::error::Error;
pub use crate::startup::teardown;
pub use crate::view::NetView;

/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often the kernel's routes are read back.
const AUDIT: Duration = Duration::from_secs(60);

/// Runs this host's network until `shutdown` completes or `view` is dropped by its sender. Everything stays in place then: machines
/// go on being reached, and the next start adopts what it finds. See [`teardown`] for the opposite.
///
/// It runs on a thread of its own, so that a redirect never waits for other work of the process. That thread is born in
/// the network namespace of the caller's thread.
pub fn run(
    config: NetdConfig,
    view: watch::Receiver<Arc<NetView>>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Boxed<Result<(), Error>> {
    on_a_thread(config, view, Box::pin(shutdown))
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Knows the types of all it is given, and answers a box: so it is compiled here, and not once more in each program that runs it.
fn on_a_thread(
    config: NetdConfig,
    view: watch::Receiver<Arc<NetView>>,
    shutdown: Boxed<()>,
) -> Boxed<Result<(), Error>> {
    Box::pin(async move {
        let (tell, told) = oneshot::channel();
        let thread = std::thread::Builder::new().name("netd".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(serve(config, view, shutdown)),
                Err(error) => Err(Error::Config(format!("start the runtime of netd: {error}"))),
            };
            // The receiver is gone only when the caller was cancelled.
            let _ = tell.send(result);
        });
        if let Err(error) = thread {
            return Err(Error::Config(format!("start the thread of netd: {error}")));
        }
        told.await
            .unwrap_or_else(|_| Err(Error::Config("the thread of netd ended early; its log says why".into())))
    })
}

async fn serve(
    config: NetdConfig,
    mut view: watch::Receiver<Arc<NetView>>,
    mut shutdown: Boxed<()>,
) -> Result<(), Error> {
    let socket = config.socket.clone();
    let first = view.borrow_and_update().clone();
    // The empty view until the first is followed, so that following it settles everything once.
    let shell = startup::start(config, Arc::default()).await?;
    shell.follow(first).await;
    let listener = server::bind(&socket)?;
    let server = tokio::spawn(server::serve(listener, Arc::clone(&shell)));
    let mut retry = interval_at(Instant::now() + RETRY, RETRY);
    let mut audit = interval_at(Instant::now() + AUDIT, AUDIT);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            changed = view.changed() => {
                if changed.is_err() {
                    break;
                }
                let latest = view.borrow_and_update().clone();
                shell.follow(latest).await;
            }
            _ = retry.tick() => shell.retry().await,
            _ = audit.tick() => shell.audit().await,
        }
    }
    server.abort();
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// This host's WireGuard public key, base64, for its record; the private half is made on the first call.
pub fn wireguard_public_key(config: &NetdConfig) -> Result<String, Error> {
    std::fs::create_dir_all(&config.state_dir).map_err(|source| Error::File {
        operation: "create",
        path: config.state_dir.clone(),
        source,
    })?;
    kernel::wireguard::private_key(&config.state_dir.join("wireguard.key")).map(kernel::wireguard::public_key)
}
