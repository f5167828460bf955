//! One order, from the names to the chain.
//!
//! ```text
//! order ─▶ each name still to be proved: challenge ─▶ control ─▶ all servers show it ─▶ tell the issuer ─▶ poll
//!       ─▶ key and request (or the machine's) ─▶ finalize ─▶ poll ─▶ chain, looked at before anybody uses it
//! ```

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, AuthorizedIdentifier, CertificateIdentifier, ChallengeType, Identifier,
    NewOrder, Order, OrderStatus,
};
use mashines_fleet::chain::Chain;
use mashines_fleet::entry_api::ShowChallenge;
use mashines_fleet::id::{ChallengeId, DomainName};
use mashines_fleet::issuance::is_keyed_here;
use mashines_fleet::record::{Certificate, Show};
use mashines_fleet::view::View;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::Mutex;

use crate::account::{Door, with_account};
use crate::fault::{Fault, kind_of};
use crate::worker::Surroundings;
use crate::{past_nonces, ready};

/// Between two questions whether the issuer is done.
const FIRST_POLL: Duration = Duration::from_millis(250);
const LAST_POLL: Duration = Duration::from_secs(5);

/// What came of an order.
pub struct Got {
    /// The chain.
    pub chain: Chain,
    /// As the issuer gave it.
    pub chain_pem: String,
    /// The private key in PEM; none when the machine holds it. It belongs in no log.
    pub key_pem: Option<String>,
}

/// Challenges that are shown, to be removed whatever happens.
pub type Shown = Arc<Mutex<Vec<ChallengeId>>>;

/// Makes the order.
///
/// # Errors
/// [`Fault`].
pub async fn order(
    certificate: &Certificate,
    door: &Door,
    around: &Surroundings,
    shown: &Shown,
) -> Result<Got, Fault> {
    let view = around.view();
    let (control, secret, clock) = (&around.control, around.secret()?, &around.clock);
    // The account must be there before the order can be counted against it.
    door.account(&view, control, &secret, clock).await?;
    control.order(&certificate.id, &door.issuer.name).await.map_err(|error| around.ours(&error))?;
    let around_account = (&*around.view(), control, &secret, clock);
    let mut order =
        with_account(door, around_account, |account| new_order(account, certificate, door)).await?;
    prove(&mut order, certificate, door, around, &view, shown).await?;
    let (request, key_pem) = request(certificate, around).await?;
    let acme = |error| door.fault(&error, clock);
    past_nonces!(order.finalize_csr(&request)).map_err(acme)?;
    let chain_pem = finished(&mut order, door, around).await?;
    let bad = |error: &dyn std::fmt::Display| Fault::Refused {
        what: format!("its certificate cannot serve: {error}"),
        kind: "certificate".to_owned(),
    };
    let chain = Chain::parse(&chain_pem).map_err(|error| bad(&error))?;
    chain.serves(&certificate.names, chain.not_before).map_err(|error| bad(&error))?;
    if let Some(key) = &key_pem {
        chain.with_key(key.as_bytes()).map_err(|error| bad(&error))?;
    }
    Ok(Got { chain, chain_pem, key_pem })
}

/// A new order; of a renewal it is said what it replaces, which exempts it from limits (RFC 9773 §5).
async fn new_order(
    account: Account,
    certificate: &Certificate,
    door: &Door,
) -> Result<Order, instant_acme::Error> {
    let names: Vec<Identifier> =
        certificate.names.iter().map(|name| Identifier::Dns(name.to_string())).collect();
    let plain = || {
        let order = NewOrder::new(&names);
        match &door.issuer.profile {
            Some(profile) => order.profile(profile),
            None => order,
        }
    };
    let same = certificate.issuer.as_deref() == Some(door.issuer.name.as_str());
    let chain = certificate.chain_pem.as_deref().filter(|_| same).and_then(|pem| Chain::parse(pem).ok());
    let replaced = chain.as_ref().and_then(|chain| chain.certificates.first());
    if let Some(id) = replaced.and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()) {
        match past_nonces!(account.new_order(&plain().replaces(id.clone()))) {
            Ok(order) => return Ok(order),
            // No ARI there, or it was replaced already, or it is too old to be known: a plain order is always right.
            Err(instant_acme::Error::Unsupported(_)) => {}
            Err(instant_acme::Error::Api(problem))
                if matches!(kind_of(&problem), "alreadyReplaced" | "malformed" | "unauthorized") =>
            {
                tracing::debug!(name = %certificate.id, ?problem, "the issuer takes no replacement");
            }
            Err(error) => return Err(error),
        }
    }
    past_nonces!(account.new_order(&plain()))
}

/// The kinds of challenge for a name, the better first. Failures in a row lead to the other.
fn kinds(certificate: &Certificate, view: &View) -> Vec<ChallengeType> {
    let apex = view.config.as_ref().map(|config| config.domain.as_str()).unwrap_or_default();
    if !apex.is_empty() && certificate.id.is_within(apex) {
        return vec![ChallengeType::Dns01];
    }
    match certificate.failures % 2 {
        0 => vec![ChallengeType::TlsAlpn01, ChallengeType::Http01],
        _ => vec![ChallengeType::Http01, ChallengeType::TlsAlpn01],
    }
}

fn dns_name(identifier: &AuthorizedIdentifier<'_>) -> Result<DomainName, Fault> {
    match identifier.identifier {
        Identifier::Dns(name) => {
            name.parse().map_err(|error: mashines_fleet::id::BadId| Fault::Ours(error.to_string()))
        }
        other => {
            Err(Fault::Ours(format!("the issuer asks for the proof of {other:?}, which was not ordered")))
        }
    }
}

/// Has every name proved that is not yet.
async fn prove(
    order: &mut Order,
    certificate: &Certificate,
    door: &Door,
    around: &Surroundings,
    view: &View,
    shown: &Shown,
) -> Result<(), Fault> {
    let acme = |error| door.fault(&error, &around.clock);
    let kinds = kinds(certificate, view);
    let mut asked = Vec::new();
    past_nonces!(fetched(order)).map_err(acme)?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization.map_err(acme)?;
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            status @ (AuthorizationStatus::Invalid
            | AuthorizationStatus::Deactivated
            | AuthorizationStatus::Expired
            | AuthorizationStatus::Revoked) => {
                return Err(Fault::Refused {
                    what: format!("an authorization is {status:?}"),
                    kind: String::new(),
                });
            }
        }
        let mut authorization = authorization;
        let kind = kinds.iter().find(|kind| authorization.challenges.iter().any(|c| c.r#type == **kind));
        let Some(kind) = kind.cloned() else {
            let what = format!("it offers no challenge for {} that we have", certificate.id);
            return Err(Fault::Refused { what, kind: "challenge".to_owned() });
        };
        let Some(challenge) = authorization.challenge(kind.clone()) else { continue };
        let name = dns_name(challenge.identifier())?;
        let key = challenge.key_authorization();
        let show = match kind {
            ChallengeType::Dns01 => Show::Dns01 { value: key.dns_value() },
            ChallengeType::Http01 => {
                Show::Http01 { token: challenge.token.clone(), authorization: key.as_str().to_owned() }
            }
            _ => Show::TlsAlpn01 { digest: hex::encode(key.digest()) },
        };
        asked.push((kind, name, show));
    }
    drop(authorizations);
    for (_, name, show) in &asked {
        let body =
            ShowChallenge { certificate: certificate.id.clone(), name: name.clone(), show: show.clone() };
        let id = around.control.show(&body).await.map_err(|error| around.ours(&error))?;
        shown.lock().await.push(id);
    }
    for (kind, name, show) in &asked {
        ready::wait(view, around.ports, name, show).await?;
        tracing::debug!(%name, ?kind, "the fleet shows the challenge");
    }
    let mut authorizations = order.authorizations();
    let mut next = asked.iter();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(acme)?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let Some((kind, ..)) = next.next() else { break };
        let Some(mut challenge) = authorization.challenge(kind.clone()) else { continue };
        past_nonces!(challenge.set_ready()).map_err(acme)?;
    }
    drop(authorizations);
    let names: Vec<DomainName> = asked.into_iter().map(|(_, name, _)| name).collect();
    proved(order, names, door, around).await
}

/// Fetches all authorizations, which the order keeps. To be done again as a whole after an error: the iterator goes on behind the one
/// that failed, and a name that is passed over is never proved.
async fn fetched(order: &mut Order) -> Result<(), instant_acme::Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

/// Waits until the issuer has looked.
async fn proved(
    order: &mut Order,
    names: Vec<DomainName>,
    door: &Door,
    around: &Surroundings,
) -> Result<(), Fault> {
    let acme = |error| door.fault(&error, &around.clock);
    let mut pause = FIRST_POLL;
    loop {
        let status = past_nonces!(refreshed(order)).map_err(acme)?;
        tracing::debug!(name = ?names, ?status, "an order");
        match status {
            OrderStatus::Ready | OrderStatus::Valid => return Ok(()),
            OrderStatus::Invalid => return Err(why_invalid(order, names, door, around).await),
            OrderStatus::Pending | OrderStatus::Processing => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_POLL);
    }
}

async fn refreshed(order: &mut Order) -> Result<OrderStatus, instant_acme::Error> {
    order.refresh().await.map(|state| state.status)
}

/// What the issuer says about the names that it could not validate.
async fn why_invalid(order: &mut Order, names: Vec<DomainName>, door: &Door, around: &Surroundings) -> Fault {
    let mut said: Vec<String> = Vec::new();
    let mut invalid: Vec<DomainName> = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if past_nonces!(authorization.refresh()).is_err()
            || authorization.status != AuthorizationStatus::Invalid
        {
            continue;
        }
        if let Ok(name) = dns_name(&authorization.identifier()) {
            invalid.push(name);
        }
        let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.clone());
        said.extend(errors.map(|problem| door.fault(&instant_acme::Error::Api(problem), &around.clock)).map(
            |fault| match fault {
                Fault::Refused { what, .. } | Fault::Limited { what, .. } => what,
                other => other.to_string(),
            },
        ));
    }
    said.dedup();
    let invalid = if invalid.is_empty() { names } else { invalid };
    let what = if said.is_empty() { "no reason given".to_owned() } else { said.join("; ") };
    Fault::Invalid { names: invalid, what }
}

/// The certificate request (DER), and the key when it is ours to make.
async fn request(
    certificate: &Certificate,
    around: &Surroundings,
) -> Result<(Vec<u8>, Option<String>), Fault> {
    if !is_keyed_here(certificate.source) {
        let pem = around.control.request(&certificate.id).await;
        let pem = pem.map_err(|error| Fault::Machine(error.message()))?;
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|error| Fault::Machine(format!("its request is not understood: {error}")))?;
        return Ok((der.to_vec(), None));
    }
    let ours = |error: rcgen::Error| Fault::Ours(format!("a key for {}: {error}", certificate.id));
    let names: Vec<String> = certificate.names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).map_err(ours)?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate().map_err(ours)?;
    let request = params.serialize_request(&key).map_err(ours)?;
    Ok((request.der().to_vec(), Some(key.serialize_pem())))
}

/// Waits for the chain.
async fn finished(order: &mut Order, door: &Door, around: &Surroundings) -> Result<String, Fault> {
    let acme = |error| door.fault(&error, &around.clock);
    let mut pause = FIRST_POLL;
    loop {
        match past_nonces!(refreshed(order)).map_err(acme)? {
            OrderStatus::Valid => {
                if let Some(pem) = past_nonces!(order.certificate()).map_err(acme)? {
                    return Ok(pem);
                }
            }
            OrderStatus::Invalid => {
                let what = match &order.state().error {
                    Some(problem) => problem.to_string(),
                    None => "the order became invalid without a reason".to_owned(),
                };
                return Err(Fault::Refused { what, kind: String::new() });
            }
            OrderStatus::Pending | OrderStatus::Ready | OrderStatus::Processing => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_POLL);
    }
}
