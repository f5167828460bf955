//! A new key for our account at an issuer (RFC 8555 §7.3.5), asked for by an administrator.
//!
//! ```text
//! asked ──▶ next key: sealed, in the records ──▶ does the issuer know it? ──no──▶ keyChange ──▶ it is the account's key, in the records
//!                                                         └──────────yes──────────────────────────▶┘
//! ```
//!
//! Invariants:
//! - The issuer never learns of a key that is not in the records yet: whoever is killed at any point leaves both keys behind, and any
//!   entry finds out which of them the issuer knows.
//! - Entries may do this at the same time: the next key is the first that control took, and the issuer changes to it once.
//!
//! instant-acme has `Account::update_key`, which makes the key and uses it in one call: nobody could store it in between. So the two
//! signatures (JWS, RFC 7515; P-256) are made here; everything else is the library's.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, header};
use instant_acme::{Account, BodyWrapper, Error, HttpClient as _, Key, Problem};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fault::is_unknown_account;
use crate::http::Http;
use crate::past_nonces;

/// An account's address and key, as instant-acme's `AccountCredentials` are written. It belongs in no log.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    id: String,
    /// PKCS#8 DER, base64url.
    key_pkcs8: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
}

/// What is needed of an issuer's directory (RFC 8555 §7.1.1).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    new_nonce: String,
    key_change: Option<String>,
}

impl Credentials {
    /// The same account with a key that nobody knows yet.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn with_new_key(&self) -> Result<Self, Error> {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let key = key.map_err(|_| Error::Crypto)?;
        Ok(Self { key_pkcs8: URL_SAFE_NO_PAD.encode(key.as_ref()), ..self.clone() })
    }

    fn pkcs8(&self) -> Result<Vec<u8>, Error> {
        URL_SAFE_NO_PAD.decode(&self.key_pkcs8).map_err(|_| Error::KeyRejected)
    }

    fn pair(&self) -> Result<EcdsaKeyPair, Error> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.pkcs8()?)
            .map_err(|_| Error::KeyRejected)
    }
}

/// Whether the issuer knows the account by that key.
///
/// # Errors
/// It does not answer, or with something else.
pub async fn is_known(http: &Http, directory: &str, credentials: &Credentials) -> Result<bool, Error> {
    let pkcs8 = credentials.pkcs8()?;
    let asked = past_nonces!({
        let key = Key::from_pkcs8_der(PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.clone()));
        Account::builder_with_http(Box::new(http.clone())).from_key((key, der), directory.to_owned())
    });
    match asked {
        Ok((account, _)) => Ok(account.id() == credentials.id),
        Err(error) if is_unknown_account(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has the issuer change the account's key from `old` to `new`.
///
/// # Errors
/// It does not answer, refuses, or cannot do this at all.
pub async fn change(http: &Http, directory: &str, old: &Credentials, new: &Credentials) -> Result<(), Error> {
    let listed: Directory = serde_json::from_slice(&ask(http, Method::GET, directory, None).await?.1)?;
    let url = listed.key_change.ok_or(Error::Unsupported("a change of an account's key"))?;
    let (old_key, new_key) = (old.pair()?, new.pair()?);
    let payload = json!({"account": old.id, "oldKey": jwk(&old_key)});
    let inner = signed(&new_key, &json!({"alg": "ES256", "jwk": jwk(&new_key), "url": url}), &payload)?;
    past_nonces!(async {
        let (nonce, _) = ask(http, Method::HEAD, &listed.new_nonce, None).await?;
        let nonce = nonce.ok_or(Error::Str("the issuer gives no nonce"))?;
        let header = json!({"alg": "ES256", "kid": old.id, "nonce": nonce, "url": url});
        ask(http, Method::POST, &url, Some(&signed(&old_key, &header, &inner)?)).await.map(drop)
    })
}

/// The public half (RFC 7518 §6.2.1).
fn jwk(pair: &EcdsaKeyPair) -> Value {
    // An uncompressed point: 4, x, y.
    let point = pair.public_key().as_ref();
    let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
    json!({"crv": "P-256", "kty": "EC", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
}

/// A JWS in the flattened form (RFC 7515 §7.2.2).
fn signed(pair: &EcdsaKeyPair, header: &Value, payload: &Value) -> Result<Value, Error> {
    let protected = URL_SAFE_NO_PAD.encode(header.to_string());
    let payload = URL_SAFE_NO_PAD.encode(payload.to_string());
    let signature = pair.sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(signature.map_err(|_| Error::Crypto)?);
    Ok(json!({"protected": protected, "payload": payload, "signature": signature}))
}

/// One call; the nonce and the body of a good answer.
async fn ask(
    http: &Http,
    method: Method,
    url: &str,
    jose: Option<&Value>,
) -> Result<(Option<String>, Bytes), Error> {
    let body =
        jose.map_or_else(BodyWrapper::default, |jose| BodyWrapper::from(jose.to_string().into_bytes()));
    let request =
        Request::builder().method(method).uri(url).header(header::CONTENT_TYPE, "application/jose+json");
    let mut answer = http.request(request.body(body)?).await?;
    let body = answer.body.into_bytes().await.map_err(Error::Other)?;
    if !answer.parts.status.is_success() {
        return Err(Error::Api(serde_json::from_slice::<Problem>(&body)?));
    }
    let nonce = answer.parts.headers.get("replay-nonce").and_then(|nonce| nonce.to_str().ok());
    Ok((nonce.map(str::to_owned), body))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    #[test]
    fn a_signature_verifies_by_the_key_that_it_names_and_the_account_stays_the_same() {
        let none = Credentials { id: "https://ca/1".to_owned(), key_pkcs8: String::new(), directory: None };
        assert!(none.pair().is_err());
        let (one, two) = (none.with_new_key().unwrap(), none.with_new_key().unwrap());
        assert!(one.key_pkcs8 != two.key_pkcs8 && one.id == two.id);
        let pair = one.pair().unwrap();
        let jws = signed(&pair, &json!({"alg": "ES256"}), &json!({"a": 1})).unwrap();
        let of = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
        let named = jwk(&pair);
        let point = [&[4][..], &of(&named["x"]), &of(&named["y"])].concat();
        let text = format!("{}.{}", jws["protected"].as_str().unwrap(), jws["payload"].as_str().unwrap());
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(text.as_bytes(), &of(&jws["signature"])).unwrap();
        assert_eq!(of(&jws["payload"]), br#"{"a":1}"#);
    }
}
