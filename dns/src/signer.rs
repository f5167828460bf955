//! Signing on line: signatures are made when they are first asked for, and kept.
//!
//! Invariants: what is kept is bounded and never wrong (the key is a keyed 128-bit hash of all that is signed, the day included); names
//! that anybody can make up neither push out what is kept of true ones nor take all of the time that signing may take.

use std::hash::Hasher as _;
use std::sync::Mutex;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::limit::Bucket;
use crate::rrset::RrSet;
use crate::sign::{KeyError, KeySet, Validity};

/// Entries that one hash may be in.
const WAYS: usize = 4;

/// Locks, so that cores seldom wait for each other.
const SHARDS: usize = 64;

/// Whose name it is that is signed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// One of our names: there are only so many.
    Ours,
    /// One that does not exist, or that a wildcard stands for.
    MadeUp,
}

/// No signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// Too many were made in the last second.
    Exhausted,
    /// The cryptographic library refused.
    Failed,
}

/// Makes and keeps signatures.
#[derive(Debug)]
pub struct OnlineSigner {
    ours: Part,
    made_up: Part,
}

#[derive(Debug)]
struct Part {
    kept: Kept,
    bucket: Bucket,
}

impl OnlineSigner {
    /// Keeps `kept` signatures of true names (80 bytes each) and a quarter of that of others, and makes at most `per_second`
    /// of each kind.
    pub fn new(kept: usize, per_second: u32) -> Self {
        let part = |kept| Part { kept: Kept::new(kept), bucket: Bucket::new(per_second) };
        Self { ours: part(kept), made_up: part(kept / 4) }
    }

    /// Hands the data of each RRSIG of `set` at `owner` to `each`.
    ///
    /// # Errors
    /// [`Unsigned`].
    pub fn sign<E: From<Unsigned>>(
        &self,
        keys: &KeySet,
        owner: &[u8],
        set: &RrSet<'_>,
        now: u64,
        origin: Origin,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let part = match origin {
            Origin::Ours => &self.ours,
            Origin::MadeUp => &self.made_up,
        };
        let validity = Validity::of_day(now);
        let mut text = Vec::with_capacity(512);
        for tag in keys.signers(set.kind) {
            text.clear();
            let head = keys.text_to_sign(tag, owner, set, validity, &mut text);
            let hash = part.kept.hash(&text);
            let signature = match part.kept.get(hash) {
                Some(signature) => signature,
                None if !part.bucket.take() => return Err(Unsigned::Exhausted.into()),
                None => {
                    let made = keys.signature(tag, &text).map_err(|_: KeyError| Unsigned::Failed)?;
                    part.kept.put(hash, made);
                    made
                }
            };
            text.truncate(head);
            text.extend_from_slice(&signature);
            each(&text)?;
        }
        Ok(())
    }
}

/// Signatures by what they are over: a table of fixed size, in which a new one takes the place of one of four.
struct Kept {
    key: [u8; 16],
    sets: usize,
    shards: Vec<Mutex<Shard>>,
}

struct Shard {
    /// 0 where there is none.
    hashes: Vec<u128>,
    signatures: Vec<[u8; 64]>,
    turn: usize,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("sets", &self.sets).finish_non_exhaustive()
    }
}

impl Kept {
    fn new(capacity: usize) -> Self {
        let sets = capacity.div_ceil(SHARDS * WAYS).max(1);
        let shard =
            || Shard { hashes: vec![0; sets * WAYS], signatures: vec![[0; 64]; sets * WAYS], turn: 0 };
        Self { key: rand::random(), sets, shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect() }
    }

    fn hash(&self, text: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(text);
        hasher.finish128().as_u128().max(1)
    }

    /// The shard, and where its set begins.
    fn place(&self, hash: u128) -> (usize, usize) {
        let [first, .., a, b, c, d] = hash.to_le_bytes();
        let set = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(0) % self.sets;
        (usize::from(first) % SHARDS, set * WAYS)
    }

    fn get(&self, hash: u128) -> Option<[u8; 64]> {
        let (shard, begin) = self.place(hash);
        let shard = self.shards.get(shard)?.lock().ok()?;
        let way = shard.hashes.get(begin..begin + WAYS)?.iter().position(|known| *known == hash)?;
        shard.signatures.get(begin + way).copied()
    }

    fn put(&self, hash: u128, signature: [u8; 64]) {
        let (shard, begin) = self.place(hash);
        let Some(Ok(mut shard)) = self.shards.get(shard).map(Mutex::lock) else { return };
        let free =
            shard.hashes.get(begin..begin + WAYS).and_then(|ways| ways.iter().position(|known| *known == 0));
        shard.turn = shard.turn.wrapping_add(1);
        let at = begin + free.unwrap_or(shard.turn % WAYS);
        if let Some(place) = shard.hashes.get_mut(at) {
            *place = hash;
        }
        if let Some(place) = shard.signatures.get_mut(at) {
            *place = signature;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_never_more_than_there_is_room_for() {
        let kept = Kept::new(1000);
        let hashes: Vec<u128> = (0..5000u32).map(|n| kept.hash(&n.to_be_bytes())).collect();
        for (at, hash) in hashes.iter().enumerate() {
            let byte = u8::try_from(at % 251).unwrap();
            kept.put(*hash, [byte; 64]);
            assert_eq!(kept.get(*hash), Some([byte; 64]));
        }
        let found = hashes.iter().filter(|hash| kept.get(**hash).is_some()).count();
        assert!((500..=1024).contains(&found), "{found}");
        assert_eq!(kept.get(kept.hash(b"never")), None);
    }
}
