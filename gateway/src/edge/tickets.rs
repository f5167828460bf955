//! Session tickets that every entry of the fleet can read (RFC 8446 §4.6.1, RFC 5077): nothing is kept, the client carries its session.
//!
//! Keys follow from the entries' secret and the time: an epoch's key seals the tickets of that epoch, and opens them for one epoch
//! more. Nobody has to pass keys around, and an entry that was just started resumes what another one began. rustls itself refuses a
//! session that was another name's (RFC 6066 §3).
//!
//! ```text
//! ticket = epoch (4 bytes) ‖ nonce (12) ‖ AES-256-GCM(session, aad = epoch)
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use mashines_fleet::sealed::EntrySecret;
use rustls::server::ProducesTickets;
use tokio::sync::watch;

/// An epoch's length: what a stolen key of an epoch opens is as much as this, twice.
pub const EPOCH: Duration = Duration::from_secs(6 * 3600);

/// Epochs whose keys are kept ready: the current one, the one before, and the next for entries whose clocks differ.
const KEPT: usize = 3;

/// Makes and reads tickets.
pub struct Tickets {
    secret: watch::Receiver<Option<EntrySecret>>,
    keys: Mutex<Keys>,
    clock: fn() -> SystemTime,
}

#[derive(Default)]
struct Keys {
    of: Option<EntrySecret>,
    ready: Vec<(u32, std::sync::Arc<RandomizedNonceKey>)>,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets(…)")
    }
}

impl Tickets {
    /// With keys of whatever the secret is at the moment.
    pub fn new(secret: watch::Receiver<Option<EntrySecret>>) -> Self {
        Self { secret, keys: Mutex::default(), clock: SystemTime::now }
    }

    fn epoch(&self) -> u32 {
        let since = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        u32::try_from(since.as_secs() / EPOCH.as_secs()).unwrap_or(u32::MAX)
    }

    fn key(&self, epoch: u32) -> Option<std::sync::Arc<RandomizedNonceKey>> {
        let secret = self.secret.borrow().clone()?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.of.as_ref() != Some(&secret) {
            *keys = Keys { of: Some(secret.clone()), ready: Vec::new() };
        }
        if let Some((_, key)) = keys.ready.iter().find(|(known, _)| *known == epoch) {
            return Some(key.clone());
        }
        let bytes = secret.derive(&format!("tickets/{epoch}")).ok()?;
        let key = std::sync::Arc::new(RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()?);
        if keys.ready.len() >= KEPT {
            keys.ready.remove(0);
        }
        keys.ready.push((epoch, key.clone()));
        Some(key)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(EPOCH.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.epoch();
        let named = epoch.to_be_bytes();
        let mut sealed = plain.to_vec();
        let nonce = self.key(epoch)?.seal_in_place_append_tag(Aad::from(named), &mut sealed).ok()?;
        Some([&named[..], nonce.as_ref(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (named, rest) = ticket.split_first_chunk::<4>()?;
        let (nonce, sealed) = rest.split_first_chunk::<12>()?;
        let (epoch, now) = (u32::from_be_bytes(*named), self.epoch());
        // Whoever makes up epochs makes no keys.
        if epoch.checked_add(1)? < now || epoch > now.checked_add(1)? {
            return None;
        }
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key(epoch)?.open_in_place(nonce, Aad::from(*named), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tickets(secret: &EntrySecret, clock: fn() -> SystemTime) -> Tickets {
        Tickets { clock, ..Tickets::new(watch::channel(Some(secret.clone())).1) }
    }

    fn at(epochs: u32) -> SystemTime {
        UNIX_EPOCH + EPOCH * (80_000 + epochs)
    }

    #[test]
    fn another_entry_reads_it_and_another_fleet_does_not() {
        let secret = EntrySecret::random();
        let (one, two) = (tickets(&secret, || at(0)), tickets(&secret, || at(0)));
        let ticket = one.encrypt(b"session").unwrap();
        assert_eq!(two.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(tickets(&EntrySecret::random(), || at(0)).decrypt(&ticket), None);
        let (_, nobody) = watch::channel(None);
        assert_eq!(Tickets::new(nobody).encrypt(b"session"), None, "without a secret there are no tickets");
    }

    #[test]
    fn a_ticket_is_good_for_its_epoch_and_the_next() {
        let secret = EntrySecret::random();
        let ticket = tickets(&secret, || at(5)).encrypt(b"session").unwrap();
        for (clock, good) in [
            ((|| at(3)) as fn() -> SystemTime, false),
            (|| at(4), true),
            (|| at(5), true),
            (|| at(6), true),
            (|| at(7), false),
        ] {
            assert_eq!(tickets(&secret, clock).decrypt(&ticket).is_some(), good);
        }
    }

    proptest! {
        #[test]
        fn changed_tickets_open_nothing(at_byte in 0usize..200, bit in 0u8..8, rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let secret = EntrySecret::random();
            let tickets = tickets(&secret, || at(0));
            let mut ticket = tickets.encrypt(&[7; 150]).unwrap();
            let place = at_byte % ticket.len();
            ticket[place] ^= 1 << bit;
            prop_assert_eq!(tickets.decrypt(&ticket), None);
            prop_assert_eq!(tickets.decrypt(&rest), None);
        }
    }
}
