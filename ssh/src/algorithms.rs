//! What our servers speak, and the gateway towards machines.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, cipher, compression, kex, mac};

/// Post-quantum key exchange, and the one that every client of the last ten years speaks. No finite-field groups, which cost the server
/// the most (DHEat), and no NIST curves, which ssh-audit calls failures.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// Those of [`KEX`] that a quantum computer would break.
const CLASSIC: &[kex::Name] = &[kex::CURVE25519, kex::CURVE25519_PRE_RFC_8731];

/// Authenticated ciphers first. The client's order decides; ours matters towards machines, where AES-GCM is the fastest.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// For the ciphers that do not authenticate by themselves: of the ciphertext only.
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

/// Kinds of keys that people may show. No `ssh-rsa` (SHA-1): an RSA key signs with SHA-2.
const KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::SkEd25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::SkEcdsaSha2NistP256,
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// The lists for both sides. Without compression: it costs more than it gives here, and inflating is a gift to attackers.
pub fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(KEYS),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// The same for who would rather lose clients older than the year 2025 than have what they say recorded and read once there are quantum computers
/// for it: no key exchange but the post-quantum one.
pub fn post_quantum() -> Preferred {
    let kex = KEX.iter().copied().filter(|name| !CLASSIC.contains(name)).collect();
    Preferred { kex: Cow::Owned(kex), ..preferred() }
}

/// Whether a signature algorithm is still good enough.
pub fn is_acceptable(algorithm: &Algorithm) -> bool {
    KEYS.contains(algorithm)
}
