//! Which TLS 1.3 cipher is the fastest here: timed, since it depends on the CPU. With AES instructions AES-128-GCM wins by far;
//! where they are missing or emulated ChaCha20-Poly1305 does. All are equally acceptable.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{self, AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// One TLS record is a quarter of this; large enough to drown the key schedule.
const SAMPLE: usize = 64 << 10;
const TRIES: usize = 3;

/// Whether ChaCha20-Poly1305 is faster than AES-128-GCM on this CPU. Takes a few milliseconds the first time.
#[must_use]
pub fn chacha_is_faster() -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    *FASTER.get_or_init(|| match (time(&CHACHA20_POLY1305), time(&AES_128_GCM)) {
        (Some(chacha), Some(aes)) => chacha < aes,
        _ => false,
    })
}

/// The best of a few sealings of a sample with a key that protects nothing.
fn time(algorithm: &'static Algorithm) -> Option<Duration> {
    let key = vec![7; algorithm.key_len()];
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &key).ok()?);
    let mut sample = vec![0; SAMPLE];
    let mut seal = || {
        let start = Instant::now();
        let nonce = Nonce::assume_unique_for_key([0; aead::NONCE_LEN]);
        let _tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut sample).ok()?;
        Some(start.elapsed())
    };
    (0..TRIES).filter_map(|_| seal()).min()
}
