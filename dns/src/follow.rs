//! What else follows the replica, beside the answers: machines with update keys, copies for secondaries.
//!
//! None of it is in the way of an answer: each has tasks of its own, and what looks at every machine, as all do once, does so in a thread.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mashines_fleet::rpc::Client;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answer::{Authority, Moment};
use crate::desk::{Desk, desk};
use crate::name::Name;
use crate::operations::{Operations, Parts, UpdateKeys};
use crate::server::unix_time;
use crate::transfer::secondary::Secondaries;
use crate::transfer::{Board, notify, publish};

/// How long control may take for one update.
const CONTROL: Duration = Duration::from_secs(5);

/// Following takes at most about this part of the time: a look at a million machines takes a while.
const SHARE: u32 = 4;

/// What everything here is made from.
pub struct Around {
    /// The facts.
    pub views: watch::Receiver<Arc<View>>,
    /// What opens the secrets among them.
    pub secrets: watch::Receiver<Option<EntrySecret>>,
    /// The revision that is answered from.
    pub served: watch::Receiver<u64>,
    /// What is answered from.
    pub moments: watch::Receiver<Arc<Moment>>,
    /// What was configured.
    pub authority: Arc<Authority>,
    /// Who gets copies.
    pub secondaries: Secondaries,
    /// Where updates are handed to.
    pub control: Vec<Client>,
    /// Our own addresses: secondaries are told from these.
    pub own: Vec<IpAddr>,
}

impl Around {
    /// Starts all of it. What is more than a question goes to the desk.
    pub fn start(self, tasks: &mut JoinSet<anyhow::Result<()>>) -> Desk {
        let (keys, update_keys) = watch::channel(UpdateKeys::default());
        let (domains, domain) = watch::channel(None);
        tasks.spawn(follow(self.views.clone(), move |before, view| {
            advance(&keys, before, view, UpdateKeys::follow);
            let name = view.config.as_ref().and_then(|config| config.domain.parse::<Name>().ok());
            domains.send_replace(name);
        }));
        let board = self.start_copies(tasks);
        let operations = Operations::new(Parts {
            secondaries: self.secondaries,
            board,
            update_keys,
            secret: self.secrets,
            domain,
            served: self.served,
            control: self.control.into_iter().map(|client| client.with_timeout(CONTROL)).collect(),
        });
        let (desk, clerk) = desk(operations, self.moments, self.authority);
        tasks.spawn(async move {
            clerk.work().await;
            // The desk is gone with the server that had it.
            std::future::pending().await
        });
        desk
    }

    /// Copies and who is told of them; none are made for nobody.
    fn start_copies(&self, tasks: &mut JoinSet<anyhow::Result<()>>) -> watch::Receiver<Arc<Board>> {
        let (sender, board) = watch::channel(Arc::new(Board::new()));
        if self.secondaries.iter().next().is_none() {
            return board;
        }
        for secondary in self.secondaries.iter().cloned() {
            let (own, board) = (self.own.clone(), board.clone());
            tasks.spawn(async move {
                notify::tell(secondary, own, board, unix_time).await;
                std::future::pending().await
            });
        }
        let moments = self.moments.clone();
        tasks.spawn(async move {
            publish(moments, sender, unix_time).await;
            std::future::pending().await
        });
        board
    }
}

/// Does something with each new view and the one before (none at first), as far as there is time.
pub async fn follow(
    mut views: watch::Receiver<Arc<View>>,
    with: impl Fn(Option<&View>, &View) + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let mut before: Option<Arc<View>> = None;
    loop {
        let begun = Instant::now();
        let (view, with) = (Arc::clone(&views.borrow_and_update()), with.clone());
        let work = move || {
            with(before.as_deref(), &view);
            view
        };
        before = Some(tokio::task::spawn_blocking(work).await.context("following the replica")?);
        tokio::time::sleep(begun.elapsed() * SHARE).await;
        if views.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Takes a projection one view further where it is. The first of a large fleet takes a while: it is made beside, and readers see none until then.
pub fn advance<T: Default>(
    shown: &watch::Sender<T>,
    before: Option<&View>,
    view: &View,
    step: impl Fn(&mut T, &View, &View),
) {
    match before {
        Some(before) => shown.send_modify(|projection| step(projection, before, view)),
        None => {
            let mut first = T::default();
            step(&mut first, &View::default(), view);
            shown.send_replace(first);
        }
    }
}
