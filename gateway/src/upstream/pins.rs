//! Which host key each machine must show.
//!
//! The record's `host_key_public` where there is one; else the key seen first, for as long as this gateway runs
//! and the machine is not updated: a new image brings a new root disk, and a new key with it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use mashines_fleet::id::MachineId;
use mashines_fleet::record::Machine;
use russh::keys::PublicKey;

/// The machine showed another key than it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "machine {slug} shows the host key {shown}, not {expected}: something else answers at its address, or its host key was changed"
)]
pub struct HostKeyMismatch {
    slug: String,
    shown: String,
    expected: String,
}

/// Keys seen so far.
#[derive(Debug, Default)]
pub struct Pins {
    /// By machine and instance.
    seen: Mutex<HashMap<(MachineId, String), PublicKey>>,
}

impl Pins {
    /// Checks the key that `machine` showed.
    pub fn check(&self, machine: &Machine, shown: &PublicKey) -> Result<(), HostKeyMismatch> {
        let recorded = machine.host_key_public.as_deref().and_then(|line| PublicKey::from_openssh(line).ok());
        let expected = match recorded {
            Some(key) => key,
            None => {
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                let instance = (machine.id.clone(), machine.instance_id.clone());
                seen.entry(instance).or_insert_with(|| shown.clone()).clone()
            }
        };
        if expected.key_data() == shown.key_data() {
            return Ok(());
        }
        let print = |key: &PublicKey| key.fingerprint(Default::default()).to_string();
        Err(HostKeyMismatch {
            slug: machine.slug.to_string(),
            shown: print(shown),
            expected: print(&expected),
        })
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::key::safe_rng;
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;
    use crate::directory::tests::machine;

    fn key() -> PublicKey {
        PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap().public_key().clone()
    }

    #[test]
    fn the_first_key_is_the_key_until_the_record_says_otherwise() {
        let (pins, web, first, second) = (Pins::default(), machine("web", "ann"), key(), key());
        assert_eq!(pins.check(&web, &first), Ok(()));
        assert_eq!(pins.check(&web, &first), Ok(()));
        assert!(
            pins.check(&web, &second).unwrap_err().to_string().contains("machine web shows the host key")
        );
        let updated = Machine { instance_id: "01J00000000000000000000001".into(), ..web.clone() };
        assert_eq!(pins.check(&updated, &second), Ok(()), "a new root disk may have a new key");
        let recorded = Machine { host_key_public: Some(second.to_openssh().unwrap()), ..web };
        assert_eq!(pins.check(&recorded, &second), Ok(()));
        assert!(pins.check(&recorded, &first).is_err());
    }
}
