//! The sockets, and what keeps the names behind them in step with the replica.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context as _;
use mashines_fleet::rpc::Client;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::Config;
use crate::answer::{Authority, Moment};
use crate::cookie::Cookies;
use crate::follow::Around;
use crate::limit::ResponseLimit;
use crate::signer::OnlineSigner;
use crate::stream::{self, IDLE, Places, Service};
use crate::tls::{self, Shown};
use crate::transfer::secondary::Secondaries;
use crate::udp::{self, Worker};
use crate::zone::{Complaint, Projector};

/// Sockets that are bound, so that whoever started them can say where before the first question comes.
pub struct Server {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<TcpListener>,
    tls: Vec<TcpListener>,
    authority: Arc<Authority>,
    limit: Arc<Option<ResponseLimit>>,
    secondaries: Secondaries,
    control: Vec<Client>,
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Server {
    /// Binds UDP and TCP at each address. Port 0 takes a free one, the same for both.
    ///
    /// # Errors
    /// An address cannot be bound; the error says which and what to look at.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        anyhow::ensure!(!config.listen.is_empty(), "[dns] listen is empty: name the addresses to answer at");
        let authority = Authority {
            identity: config.identity.clone(),
            version: config.version.clone(),
            idle: IDLE,
            signer: OnlineSigner::new(config.signatures_kept, config.signatures_per_second),
        };
        let mut server = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
            tls: Vec::new(),
            authority: Arc::new(authority),
            limit: Arc::new(ResponseLimit::new(config.responses_per_second)),
            secondaries: Secondaries::load(&config.secondaries)?,
            control: Vec::new(),
        };
        let threads = match config.threads {
            0 => thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        for address in &config.listen {
            if address.ip().is_unspecified() {
                warn!(%address, "listening at any address: on a host with several, answers may leave from another one than was asked");
            }
            // TCP first: it does not share its address, so that a second server is noticed.
            let tcp = listen(*address).await?;
            let bound = tcp.local_addr()?;
            for _ in 0..threads {
                let udp =
                    udp::bind(bound).with_context(|| format!("listening for DNS on UDP {bound}: {HINT}"))?;
                server.udp.push(udp);
            }
            server.tcp.push(tcp);
        }
        for address in &config.tls_listen {
            server.tls.push(listen(*address).await?);
        }
        Ok(server)
    }

    /// With control, to which dynamic updates are handed. Without it they fail.
    #[must_use]
    pub fn with_control(mut self, control: Vec<Client>) -> Self {
        self.control = control;
        self
    }

    /// Where it listens for UDP and TCP.
    ///
    /// # Errors
    /// The socket's.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.tcp.iter().map(TcpListener::local_addr).collect()
    }

    /// Where it listens for TLS.
    ///
    /// # Errors
    /// The socket's.
    pub fn tls_addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.tls.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves what `views` says until `shutdown`.
    ///
    /// # Errors
    /// A socket failed, or the replica ended.
    pub async fn serve(
        self,
        mut views: watch::Receiver<Arc<View>>,
        mut secrets: watch::Receiver<Option<EntrySecret>>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        let shown = Shown::self_signed()?;
        let mut names = Names::new(&shown);
        let (view, secret) = (Arc::clone(&views.borrow_and_update()), secrets.borrow_and_update().clone());
        let revision = view.revision;
        let first;
        (names, first) = names.follow(view, secret).await?;
        let (moments, current) = watch::channel(Arc::new(first.unwrap_or_else(|| names.moment())));
        let mut tasks = JoinSet::new();
        let (served, _) = watch::channel(revision);
        let own = self.addresses()?.iter().map(SocketAddr::ip).collect();
        let around = Around {
            views: views.clone(),
            secrets: secrets.clone(),
            served: served.subscribe(),
            moments: current.clone(),
            authority: Arc::clone(&self.authority),
            own,
            secondaries: self.secondaries,
            control: self.control,
        };
        let desk = around.start(&mut tasks);
        let service = Service {
            moments: current.clone(),
            authority: Arc::clone(&self.authority),
            places: Places::default(),
            desk: desk.clone(),
        };
        let stop = Stop::default();
        for (number, socket) in self.udp.into_iter().enumerate() {
            let worker = Worker {
                socket: Arc::new(socket),
                desk: desk.clone(),
                moments: current.clone(),
                authority: Arc::clone(&self.authority),
                limit: Arc::clone(&self.limit),
                stop: Arc::clone(&stop.0),
            };
            tasks.spawn(thread_of(worker, number)?);
        }
        for listener in self.tcp {
            let service = service.clone();
            tasks.spawn(async move { Ok(stream::serve(listener, None, service).await?) });
        }
        let acceptor = TlsAcceptor::from(tls::server_config(shown)?);
        for listener in self.tls {
            let (service, acceptor) = (service.clone(), acceptor.clone());
            tasks.spawn(async move { Ok(stream::serve(listener, Some(acceptor), service).await?) });
        }
        let mut secret_told = true;
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                changed = views.changed() => changed.context("the replica ended")?,
                // The sender's end says no more than that there will be no other secret.
                told = secrets.changed(), if secret_told => secret_told = told.is_ok(),
                Some(ended) = tasks.join_next() => {
                    ended.context("a DNS socket's task")?.context("a DNS socket")?;
                    continue;
                }
            }
            let (view, secret) =
                (Arc::clone(&views.borrow_and_update()), secrets.borrow_and_update().clone());
            let revision = view.revision;
            let next;
            (names, next) = names.follow(view, secret).await?;
            if let Some(next) = next {
                moments.send_replace(Arc::new(next));
            }
            served.send_replace(revision);
        }
    }
}

const HINT: &str = "is another name server running there, or is this not one of the host's addresses?";

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening for DNS on TCP {address}: {HINT}"))
}

/// Tells the threads to end when the server does, whichever way.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts a thread; what comes back ends with it.
fn thread_of(worker: Worker, number: usize) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let (sender, ended) = oneshot::channel();
    thread::Builder::new()
        .name(format!("dns-udp-{number}"))
        .spawn(move || {
            // Nobody listens any more when the server has ended first.
            let _ended = sender.send(worker.run());
        })
        .context("starting a thread for UDP")?;
    Ok(async move { Ok(ended.await.context("a thread for UDP panicked")??) })
}

/// The names, and what they were made of.
struct Names {
    projector: Projector,
    cookies: Arc<Cookies>,
    secret: Option<EntrySecret>,
    known: Vec<Complaint>,
    shown: Arc<Shown>,
}

impl Names {
    fn new(shown: &Arc<Shown>) -> Self {
        Self {
            projector: Projector::default(),
            cookies: Arc::new(Cookies::new(None)),
            secret: None,
            known: Vec::new(),
            shown: Arc::clone(shown),
        }
    }

    fn moment(&self) -> Moment {
        Moment { zones: self.projector.zones(), cookies: Arc::clone(&self.cookies) }
    }

    /// Takes a view and a secret; what is to be served from now on, when that is something else. The first view of a large fleet takes a while, so
    /// it is not done between other tasks.
    async fn follow(
        mut self,
        view: Arc<View>,
        secret: Option<EntrySecret>,
    ) -> anyhow::Result<(Self, Option<Moment>)> {
        let work = move || {
            let is_new_secret = self.secret != secret;
            if is_new_secret {
                self.cookies = Arc::new(Cookies::new(secret.clone()));
                self.secret = secret;
            }
            let mut applied = self.projector.apply(&view, self.secret.as_ref());
            let replaced = applied.replaced.take();
            tokio::task::spawn_blocking(move || drop(replaced));
            self.shown.update(&view, self.secret.as_ref());
            for Complaint(text) in
                applied.complaints.iter().filter(|complaint| !self.known.contains(complaint))
            {
                warn!(revision = view.revision, "{text}");
            }
            // Only what was looked at is told again: the last complaints that differ are enough to not repeat them.
            if !applied.complaints.is_empty() {
                self.known = applied.complaints;
            }
            let changed = is_new_secret || !applied.touched.is_empty();
            debug!(revision = view.revision, touched = applied.touched.len(), "names projected");
            let moment = changed.then(|| self.moment());
            (self, moment)
        };
        tokio::task::spawn_blocking(work).await.context("projecting the names")
    }
}
