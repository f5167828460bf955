//! Certificates of the replica, ready for handshakes: chains parsed, keys opened with the entries' secret.
//!
//! A name's own certificate comes before the wildcard that covers it. A certificate that cannot be used is told to the log once and
//! left out: the name then has the wildcard, or none.

use std::collections::HashMap;
use std::sync::Arc;

use mashines_fleet::key::Key;
use mashines_fleet::record::Certificate;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tracing::warn;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Its key was sealed with something else.
    #[error(transparent)]
    Sealed(#[from] mashines_fleet::sealed::SealError),
    /// The chain or the key is no PEM, or none of the kind.
    #[error("its chain or key cannot be read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Chain and key do not belong together, or are of a kind that TLS here does not know.
    #[error("chain and key do not make a certificate: {0}")]
    Key(#[from] rustls::Error),
}

#[derive(Debug)]
struct Ready {
    record: Arc<Certificate>,
    key: Option<Arc<CertifiedKey>>,
}

/// All certificates, by the names they are for.
#[derive(Debug, Default)]
pub struct Certs {
    by_record: HashMap<String, Ready>,
    by_name: HashMap<String, Arc<CertifiedKey>>,
    secret: Option<EntrySecret>,
}

impl Certs {
    /// The certificates of `view`; what did not change is taken from `before`, since opening costs.
    pub fn project(view: &View, secret: Option<&EntrySecret>, before: &Self) -> Self {
        let same_secret = before.secret.as_ref() == secret;
        let mut certs = Self { secret: secret.cloned(), ..Self::default() };
        for record in view.certificates.values() {
            let id = record.id.to_string();
            let known =
                before.by_record.get(&id).filter(|ready| same_secret && Arc::ptr_eq(&ready.record, record));
            let key = match known {
                Some(ready) => ready.key.clone(),
                None => secret.and_then(|secret| usable(secret, record)),
            };
            if let Some(key) = &key {
                for name in &record.names {
                    // The record whose first name it is has it before others that merely list it.
                    if *name == record.id || !certs.by_name.contains_key(name.as_str()) {
                        certs.by_name.insert(name.to_string(), Arc::clone(key));
                    }
                }
            }
            certs.by_record.insert(id, Ready { record: Arc::clone(record), key });
        }
        certs
    }

    /// The certificate for a name: its own, or the wildcard's.
    pub fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.by_name.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        })
    }

    /// Whether secrets can be opened at all.
    pub fn has_secret(&self) -> bool {
        self.secret.is_some()
    }
}

fn usable(secret: &EntrySecret, record: &Certificate) -> Option<Arc<CertifiedKey>> {
    match open(secret, record) {
        Ok(key) => key,
        Err(error) => {
            warn!(name = %record.id, %error, "edge: a certificate cannot be used; see: mashines certs");
            None
        }
    }
}

/// Opens one certificate; none where there is none yet, or its key is the machine's.
///
/// # Errors
/// [`Unusable`].
pub fn open(secret: &EntrySecret, record: &Certificate) -> Result<Option<Arc<CertifiedKey>>, Unusable> {
    let (Some(chain), Some(key)) = (&record.chain_pem, &record.key) else { return Ok(None) };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = secret.open(&Key::Certificate(record.id.clone()), key)?;
    let key = any_supported_type(&PrivateKeyDer::from_pem_slice(&key)?)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(Some(Arc::new(certified)))
}

#[cfg(test)]
mod tests {
    use mashines_fleet::sealed::EntrySecret;
    use serde_json::json;

    use super::*;
    use crate::directory::tests::view;
    use crate::edge::sites::tests::with;

    fn record(secret: &EntrySecret, id: &str, names: &[&str]) -> (String, serde_json::Value) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        let key = Key::Certificate(id.parse().unwrap());
        let sealed = secret.seal(&key, made.signing_key.serialize_pem().as_bytes()).unwrap();
        let value = json!({"id": id, "names": names, "source": "acme", "chain_pem": made.cert.pem(),
                           "key": sealed, "created_at": 0});
        (key.to_string(), value)
    }

    #[test]
    fn a_names_own_certificate_comes_before_the_wildcard() {
        let secret = EntrySecret::random();
        let mut view = view(&[]);
        for (key, value) in [
            record(&secret, "*.mashine.dev", &["*.mashine.dev", "mashine.dev"]),
            record(&secret, "web.mashine.dev", &["web.mashine.dev", "*.web.mashine.dev"]),
        ] {
            with(&mut view, &[(&key, value)]);
        }
        let certs = Certs::project(&view, Some(&secret), &Certs::default());
        let same = |one, two| Arc::ptr_eq(certs.find(one).unwrap(), certs.find(two).unwrap());
        assert!(same("web.mashine.dev", "www.web.mashine.dev") && same("other.mashine.dev", "mashine.dev"));
        assert!(!same("web.mashine.dev", "other.mashine.dev"));
        for name in ["a.b.mashine.dev", "example.org", "dev", ""] {
            assert!(certs.find(name).is_none(), "{name}");
        }
        let later = Certs::project(&view, Some(&secret), &certs);
        assert!(Arc::ptr_eq(later.find("mashine.dev").unwrap(), certs.find("mashine.dev").unwrap()));
    }

    #[test]
    fn what_cannot_be_opened_is_left_out_until_it_can() {
        let (ours, theirs) = (EntrySecret::random(), EntrySecret::random());
        let mut view = view(&[]);
        let (key, value) = record(&ours, "a.example", &["a.example"]);
        with(&mut view, &[(&key, value.clone())]);
        let closed = Certs::project(&view, Some(&theirs), &Certs::default());
        assert!(closed.find("a.example").is_none());
        assert!(Certs::project(&view, None, &closed).find("a.example").is_none());
        assert!(Certs::project(&view, Some(&ours), &closed).find("a.example").is_some());
        let mut foreign = value;
        foreign["chain_pem"] =
            json!(rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap().cert.pem());
        with(&mut view, &[(&key, foreign)]);
        assert!(
            Certs::project(&view, Some(&ours), &closed).find("a.example").is_none(),
            "another key's chain"
        );
    }
}
