//! Certificate chains from outside: what is in one, and whether it can serve.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::id::DomainName;
use crate::record::UnixMs;

/// The longest chain and the longest key that are read, bytes of PEM.
pub const MAX_PEM: usize = 64 << 10;

/// The longest chain, certificates.
const MAX_CERTIFICATES: usize = 10;

/// A chain or key that cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// Not PEM, or not certificates.
    #[error("the chain is not understood: {0}; give PEM, the certificate first and then who signed it")]
    Unreadable(String),
    /// Too much of it.
    #[error("the chain is longer than {MAX_CERTIFICATES} certificates or {MAX_PEM} bytes")]
    TooLong,
    /// A certificate is not signed by the one after it.
    #[error(
        "certificate {0} of the chain is not issued by the next: put the certificate first, then each one's issuer"
    )]
    OutOfOrder(usize),
    /// The key is of another certificate, or none.
    #[error(
        "the private key is not understood or of no kind that TLS uses: give PEM of a P-256, P-384, Ed25519 or RSA key"
    )]
    BadKey,
    /// The key is of another certificate.
    #[error("the private key is not the one of the certificate")]
    KeyMismatch,
    /// A name is missing.
    #[error("the certificate is not for {0}: it is for {1}")]
    NotFor(DomainName, String),
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
}

/// A chain, and what a server needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The certificates, the server's own first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// What it is for.
    pub names: Vec<DomainName>,
    /// From when it is good.
    pub not_before: UnixMs,
    /// Until when.
    pub not_after: UnixMs,
    /// Who signed it: the organisation, else the common name.
    pub issuer: String,
}

impl Chain {
    /// Reads PEM.
    ///
    /// # Errors
    /// [`BadChain`]: it is no chain, or out of order.
    pub fn parse(pem: &str) -> Result<Self, BadChain> {
        if pem.len() > MAX_PEM {
            return Err(BadChain::TooLong);
        }
        let unreadable = |why: String| BadChain::Unreadable(why);
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unreadable(error.to_string()))?;
        if certificates.len() > MAX_CERTIFICATES {
            return Err(BadChain::TooLong);
        }
        let mut parsed = Vec::new();
        for der in &certificates {
            let (_, certificate) =
                X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
            parsed.push(certificate);
        }
        for (n, pair) in parsed.windows(2).enumerate() {
            if let [one, next] = pair
                && one.issuer().as_raw() != next.subject().as_raw()
            {
                return Err(BadChain::OutOfOrder(n + 1));
            }
        }
        let leaf = parsed.first().ok_or_else(|| unreadable("there is no certificate in it".to_owned()))?;
        let seconds = |at: i64| u64::try_from(at).unwrap_or(0).saturating_mul(1000);
        let (names, issuer) = (names_of(leaf), issuer_of(leaf));
        let validity = leaf.validity();
        let (not_before, not_after) =
            (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
        drop(parsed);
        Ok(Self { certificates, names, not_before, not_after, issuer })
    }

    /// Whether it can serve these names now.
    ///
    /// # Errors
    /// [`BadChain::NotFor`], [`BadChain::Expired`].
    pub fn serves(&self, wanted: &[DomainName], now: UnixMs) -> Result<(), BadChain> {
        if let Some(missing) = wanted.iter().find(|name| !self.names.iter().any(|has| has.covers(name))) {
            let has: Vec<&str> = self.names.iter().take(20).map(DomainName::as_str).collect();
            let has = if has.is_empty() { "no name".to_owned() } else { has.join(", ") };
            return Err(BadChain::NotFor(missing.clone(), has));
        }
        if self.not_after <= now {
            return Err(BadChain::Expired);
        }
        Ok(())
    }

    /// Whether that private key (PEM) is the certificate's; both as TLS uses them.
    ///
    /// # Errors
    /// [`BadChain::BadKey`], [`BadChain::KeyMismatch`].
    pub fn with_key(&self, key_pem: &[u8]) -> Result<CertifiedKey, BadChain> {
        if key_pem.len() > MAX_PEM {
            return Err(BadChain::BadKey);
        }
        let der = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| BadChain::BadKey)?;
        let key = any_supported_type(&der).map_err(|_| BadChain::BadKey)?;
        let pair = CertifiedKey::new(self.certificates.clone(), key);
        pair.keys_match().map_err(|_| BadChain::KeyMismatch)?;
        Ok(pair)
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<DomainName> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => name.to_ascii_lowercase().parse().ok(),
        _ => None,
    });
    dns.collect()
}

fn issuer_of(certificate: &X509Certificate<'_>) -> String {
    let issuer = certificate.issuer();
    let text =
        issuer.iter_organization().chain(issuer.iter_common_name()).find_map(|part| part.as_str().ok());
    text.unwrap_or_default().chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    /// Chain and key for those names.
    fn issued(names: &[&str]) -> (String, String) {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca_certificate.pem(), ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
        let leaf = params.signed_by(&key, &issuer).unwrap();
        (format!("{}{}", leaf.pem(), ca_certificate.pem()), key.serialize_pem())
    }

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn a_chain_with_its_key_serves_its_names_for_its_time() {
        let (pem, key) = issued(&["a.example", "*.b.example"]);
        let chain = Chain::parse(&pem).unwrap();
        assert_eq!(chain.certificates.len(), 2);
        let now = chain.not_before + 1;
        assert_eq!(chain.serves(&[name("a.example"), name("x.b.example")], now), Ok(()));
        let error = chain.serves(&[name("c.example")], now).unwrap_err().to_string();
        assert!(error.contains("not for c.example") && error.contains("a.example, *.b.example"), "{error}");
        assert_eq!(chain.serves(&[name("a.example")], chain.not_after), Err(BadChain::Expired));
        assert!(chain.with_key(key.as_bytes()).is_ok());
    }

    #[test]
    fn another_key_no_key_and_a_chain_in_the_wrong_order_are_told_apart() {
        let (pem, _) = issued(&["a.example"]);
        let chain = Chain::parse(&pem).unwrap();
        let other = KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(chain.with_key(other.as_bytes()).unwrap_err(), BadChain::KeyMismatch);
        assert_eq!(chain.with_key(b"nonsense").unwrap_err(), BadChain::BadKey);
        let cut = pem.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
        let (leaf, ca) = pem.split_at(cut);
        assert_eq!(Chain::parse(&format!("{ca}{leaf}")), Err(BadChain::OutOfOrder(1)));
        assert!(matches!(Chain::parse(""), Err(BadChain::Unreadable(_))));
        assert!(matches!(
            Chain::parse("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"),
            Err(BadChain::Unreadable(_))
        ));
        assert_eq!(Chain::parse(&"x".repeat(MAX_PEM + 1)), Err(BadChain::TooLong));
    }
}
