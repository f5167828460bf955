//! Tokens that people sign with their SSH key: `mss_` JSON `.` signature, made by `ssh-keygen -Y sign` without asking anybody.
//!
//! ```text
//!   mss_eyJhY2NvdW50Ijoi….U1NIU0lHAAAA…
//!       └── Claims, JSON    └── SSHSIG (OpenSSH, PROTOCOL.sshsig), namespace api@DOMAIN
//! ```
//!
//! Nothing of a token is kept: it is good for as long as its key is in an account and its time is not over, unless its nonce was
//! revoked. What the claims allow is a limit; what the key's owner is in the account is looked up at each request.
//!
//! RSA is checked with aws-lc, whatever features the SSH library was built with; FIDO keys must have been touched.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mashines_fleet::api::{Claims, SIGNED_TOKEN, TOKEN_NAMESPACE};
use mashines_fleet::record::UnixMs;
use russh::keys::PublicKey;
use russh::keys::ssh_encoding::Decode;
use russh::keys::ssh_key::public::{KeyData, RsaPublicKey};
use russh::keys::ssh_key::{Algorithm, HashAlg, SshSig};

use crate::failure::{Failure, Kind, Result};

/// The longest token, bytes: an RSA key of 8192 bits and 64 machines fit.
const LONGEST: usize = 8192;
/// The longest JSON in it, bytes.
const LONGEST_JSON: usize = 4096;
/// The longest life, seconds: a leap year.
pub const LONGEST_LIFE_S: u64 = 366 * 24 * 3600;
/// The most machines that one names.
const MOST_MACHINES: usize = 64;
/// FIDO: the key was touched (`SSH_SK_USER_PRESENCE_REQD`).
const TOUCHED: u8 = 1;
/// FIDO: flags and counter at the end of a signature, bytes.
const FIDO_TRAILER: usize = 5;

/// A token whose signature and form are good. Whose key it is, and what they may, is not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub claims: Claims,
    /// The key that signed it, as accounts keep it.
    pub key: String,
}

fn refused(why: &str) -> Failure {
    Failure::new(
        Kind::Unauthorized,
        format!("the signed token is refused: {why}; `mashines tokens new` makes one"),
    )
}

/// Reads and checks a token.
///
/// # Errors
/// [`Kind::Unauthorized`] and what is wrong with it.
pub fn check(token: &str, domain: &str, now: UnixMs) -> Result<Signed> {
    let (json, signature) = parts(token)?;
    let claims = claims(&json, now)?;
    let mut rest = signature.as_slice();
    let signature =
        SshSig::decode(&mut rest).map_err(|error| refused(&format!("its signature is damaged ({error})")))?;
    // The version is not covered by the signature, and the library takes any that is not newer.
    if signature.version() != SshSig::VERSION {
        return Err(refused("its signature is of an unknown version"));
    }
    if !rest.is_empty() {
        return Err(refused("something follows its signature"));
    }
    let namespace = format!("{TOKEN_NAMESPACE}{domain}");
    if signature.namespace() != namespace {
        let made: String = signature.namespace().chars().take(80).collect();
        return Err(refused(&format!(
            "it was signed for {made:?}, not for {namespace:?} (ssh-keygen -Y sign -n)"
        )));
    }
    let key = PublicKey::from(signature.public_key().clone());
    verify(&key, &namespace, &json, &signature)?;
    let line = key.to_openssh().map_err(|error| refused(&format!("its key cannot be written ({error})")))?;
    Ok(Signed { claims, key: line.trim().to_owned() })
}

/// The JSON and the signature.
fn parts(token: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    if token.len() > LONGEST {
        return Err(refused(&format!("it is longer than {LONGEST} bytes")));
    }
    let body = token.strip_prefix(SIGNED_TOKEN).ok_or_else(|| refused("it does not begin with mss_"))?;
    let (json, signature) =
        body.split_once('.').ok_or_else(|| refused("it has no `.` before the signature"))?;
    let decode = |what: &str, text: &str| {
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| refused(&format!("its {what} is no base64url without padding")))
    };
    let (json, signature) = (decode("JSON", json)?, decode("signature", signature)?);
    if json.len() > LONGEST_JSON {
        return Err(refused(&format!("its JSON is longer than {LONGEST_JSON} bytes")));
    }
    Ok((json, signature))
}

fn claims(json: &[u8], now: UnixMs) -> Result<Claims> {
    let claims: Claims =
        serde_json::from_slice(json).map_err(|error| refused(&format!("its JSON does not fit: {error}")))?;
    let now_s = now / 1000;
    if claims.exp <= now_s {
        return Err(refused("it has expired"));
    }
    if claims.exp > now_s + LONGEST_LIFE_S {
        return Err(refused("it would live for more than a year"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !(8..=64).contains(&claims.nonce.len()) || !claims.nonce.chars().all(plain) {
        return Err(refused("its nonce is not of 8 to 64 letters, digits, - and _"));
    }
    if claims.machines.len() > MOST_MACHINES {
        return Err(refused(&format!("it names more than {MOST_MACHINES} machines")));
    }
    Ok(claims)
}

fn verify(key: &PublicKey, namespace: &str, json: &[u8], signature: &SshSig) -> Result<()> {
    let wrong = || refused("its signature does not fit its JSON");
    match key.key_data() {
        KeyData::Rsa(rsa) => {
            let signed = SshSig::signed_data(namespace, signature.hash_alg(), json).map_err(|_| wrong())?;
            verify_rsa(rsa, &signed, signature)
        }
        KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => {
            let bytes = signature.signature_bytes();
            let flags = bytes.len().checked_sub(FIDO_TRAILER).and_then(|at| bytes.get(at)).copied();
            if flags.unwrap_or_default() & TOUCHED == 0 {
                return Err(refused("its FIDO key was not touched"));
            }
            key.verify(namespace, json, signature).map_err(|_| wrong())
        }
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) => {
            key.verify(namespace, json, signature).map_err(|_| wrong())
        }
        other => Err(refused(&format!("keys of {} sign no tokens", other.algorithm()))),
    }
}

fn verify_rsa(key: &RsaPublicKey, signed: &[u8], signature: &SshSig) -> Result<()> {
    let parameters = match signature.algorithm() {
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) } => &RSA_PKCS1_2048_8192_SHA512,
        other => {
            return Err(refused(&format!("{other} is no signature for a token: rsa-sha2-256 and -512 are")));
        }
    };
    let number =
        |number: Option<&[u8]>| number.map(<[u8]>::to_vec).ok_or_else(|| refused("its RSA key is none"));
    let key = RsaPublicKeyComponents {
        n: number(key.n().as_positive_bytes())?,
        e: number(key.e().as_positive_bytes())?,
    };
    let outcome = key.verify(parameters, signed, signature.signature_bytes());
    outcome.map_err(|_| refused("its signature does not fit its JSON (RSA keys have 2048 to 8192 bits)"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use russh::keys::PrivateKey;
    use russh::keys::ssh_encoding::Encode;
    use russh::keys::ssh_key::private::Ed25519Keypair;

    use super::*;

    const NOW: UnixMs = 1_790_000_000_000;

    fn key() -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))
    }

    fn token(json: &str, namespace: &str) -> String {
        let signature = key().sign(namespace, HashAlg::Sha512, json.as_bytes()).unwrap();
        let mut blob = Vec::new();
        signature.encode(&mut blob).unwrap();
        format!("mss_{}.{}", URL_SAFE_NO_PAD.encode(json), URL_SAFE_NO_PAD.encode(blob))
    }

    fn json(exp: u64, rest: &str) -> String {
        format!(r#"{{"account":"ann","exp":{exp},"role":"operator","nonce":"abcdefgh"{rest}}}"#)
    }

    #[test]
    fn a_good_token_says_what_was_signed_and_by_which_key() {
        let signed = check(
            &token(&json(1_790_000_060, r#","machines":["web"]"#), "api@mashine.dev"),
            "mashine.dev",
            NOW,
        );
        let signed = signed.unwrap();
        assert_eq!(signed.claims.machines, ["web"]);
        assert_eq!(signed.key, key().public_key().to_openssh().unwrap());
    }

    #[test]
    fn each_refusal_says_why() {
        let good = json(1_790_000_060, "");
        let of = |json: &str| token(json, "api@mashine.dev");
        let tampered = {
            let other = URL_SAFE_NO_PAD.encode(json(1_790_000_061, ""));
            format!("mss_{other}.{}", of(&good).split_once('.').unwrap().1)
        };
        let cases = [
            ("mss_x".to_owned(), "no `.`"),
            ("msh_x.y".to_owned(), "begin with mss_"),
            (format!("mss_{}.", "A".repeat(LONGEST)), "longer than"),
            (format!("mss_{}.!", URL_SAFE_NO_PAD.encode(&good)), "signature is no base64url"),
            (format!("mss_{}.AAAA", URL_SAFE_NO_PAD.encode(&good)), "signature is damaged"),
            (format!("{}AAAA", of(&good)), "refused"),
            (tampered, "does not fit its JSON"),
            (token(&good, "file"), "signed for \"file\""),
            (token(&good, "api@other.dev"), "not for \"api@mashine.dev\""),
            (of(&json(1_790_000_000, "")), "expired"),
            (of(&json(1_790_000_000 + 400 * 86400, "")), "more than a year"),
            (of(&json(1_790_000_060, r#","admin":true"#)), "unknown field `admin`"),
            (of(r#"{"account":"ann","role":"operator","nonce":"abcdefgh"}"#), "missing field `exp`"),
            (of(&good.replace("operator", "root")), "is no role"),
            (of(&good.replace("abcdefgh", "a b")), "nonce"),
        ];
        for (token, says) in cases {
            let error = check(&token, "mashine.dev", NOW).unwrap_err();
            assert_eq!(error.kind, Kind::Unauthorized);
            assert!(error.message.contains(says), "{says}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_token_or_a_panic(body in ".{0,200}", blob in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(check(&body, "mashine.dev", NOW).is_err());
            let json = URL_SAFE_NO_PAD.encode(json(1_790_000_060, ""));
            let token = format!("mss_{json}.{}", URL_SAFE_NO_PAD.encode(&blob));
            prop_assert!(check(&token, "mashine.dev", NOW).is_err());
        }

        #[test]
        fn a_bit_turned_anywhere_is_noticed(at in 4_usize..300, bit in 0_u8..8) {
            let token = token(&json(1_790_000_060, ""), "api@mashine.dev");
            let mut bytes = token.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(changed) = String::from_utf8(bytes) {
                // base64's last character has bits that mean nothing, and the decoder insists on zeros there.
                prop_assert!(check(&changed, "mashine.dev", NOW).is_err(), "{changed}");
            }
        }
    }
}
