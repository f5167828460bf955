//! `ssh -R`: ports and sockets that a machine listens on for a client.
//!
//! russh wants the answer to these requests from its handler, so the client's session waits here for the machine: [`PATIENCE`] at most.

use std::time::Duration;

use russh::server;
use tokio::time::timeout;

use super::{Gateway, handler::Guest};
use crate::route::{Destination, Door};
use crate::upstream::{Listening, Place, Taker};

/// For the connection to the machine and its answer together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ports and sockets of one client.
const MAX_PLACES: usize = 16;

/// What one client has its machine listen on.
#[derive(Default)]
pub struct Remote {
    listening: Option<Listening>,
    places: usize,
}

impl Remote {
    /// Begins to listen; the port that was chosen, or why not.
    pub async fn begin(
        &mut self,
        gateway: &Gateway,
        guest: &Guest,
        client: server::Handle,
        place: Place,
    ) -> Result<u32, String> {
        if self.places >= MAX_PLACES {
            return Err(format!("no more than {MAX_PLACES} remote forwards in one connection"));
        }
        let (door, person) = guest.door(&gateway.directory.borrow(), Destination::Listen);
        let machine = match door {
            Door::Machine(machine) => machine,
            Door::Refuse(why) => return Err(why),
            Door::Lobby(_) | Door::Port(..) => return Err("only a machine listens for you".to_owned()),
        };
        if self.listening.as_ref().is_some_and(Listening::is_over) {
            (self.listening, self.places) = (None, 0);
        }
        let payer = person.as_ref().and_then(|person| person.home.as_ref()).unwrap_or(&machine.account);
        let purse = gateway.accounts.purse(payer);
        let begun = async {
            let listening = match &mut self.listening {
                Some(listening) => listening,
                none => {
                    let connected = gateway.pool.listen_for(&machine, Taker { client, purse }).await;
                    none.insert(connected.map_err(|error| error.to_string())?)
                }
            };
            listening
                .begin(place)
                .await
                .map_err(|_refused| format!("machine {} does not listen there", machine.slug))
        };
        let chosen = timeout(PATIENCE, begun).await;
        let chosen = chosen.map_err(|_late| format!("no answer within {PATIENCE:?}"))??;
        self.places += 1;
        Ok(chosen)
    }

    /// Listens there no longer; whether it did.
    pub async fn end(&mut self, place: Place) -> bool {
        let Some(listening) = &self.listening else { return false };
        let ended = matches!(timeout(PATIENCE, listening.end(place)).await, Ok(Ok(())));
        self.places -= usize::from(ended && self.places > 0);
        ended
    }
}
