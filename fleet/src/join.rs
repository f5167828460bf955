//! Joining a fleet: a single-use token buys a certificate.
//!
//! The token carries the fingerprint of the fleet's CA, so the joiner knows the fleet from an impostor before it says the
//! secret; the key never leaves the joiner; the name is the one the operator chose, if the token has one.
//!
//! ```text
//! control:  mashinesd token join        →  mjt_SECRET.FINGERPRINT
//! joiner:   POST /internal/v1/join {token, host_id, csr}  →  {ca, certificate}
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::HostId;
use crate::pki::{self, Identity, PeerName, PkiError};
use crate::rpc::{Client, RpcError};

/// The path of the call.
pub const PATH: &str = "/internal/v1/join";

/// A token as text: `mjt_SECRET.FINGERPRINT`, both hex of 32 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: String,
    fingerprint: String,
}

/// Text that is no join token. It does not repeat the text: most of it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: it looks like mjt_SECRET.FINGERPRINT, as `mashinesd token join` prints it")]
pub struct BadJoinToken;

impl JoinToken {
    /// A new random one for the fleet whose CA has this fingerprint.
    pub fn random(fingerprint: String) -> Self {
        Self { secret: hex::encode(rand::random::<[u8; 32]>()), fingerprint }
    }

    /// What control keeps of it.
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret.as_bytes()))
    }

    /// The fingerprint of the fleet's CA.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mjt_{}.{}", self.secret, self.fingerprint)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mjt_….{}", self.fingerprint)
    }
}

impl FromStr for JoinToken {
    type Err = BadJoinToken;

    fn from_str(text: &str) -> Result<Self, BadJoinToken> {
        let hex64 = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
        let (secret, fingerprint) =
            text.trim().strip_prefix("mjt_").and_then(|rest| rest.split_once('.')).ok_or(BadJoinToken)?;
        if !hex64(secret) || !hex64(fingerprint) {
            return Err(BadJoinToken);
        }
        Ok(Self { secret: secret.to_owned(), fingerprint: fingerprint.to_owned() })
    }
}

/// The call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token.
    pub token: String,
    /// What the joiner wants to be called.
    pub host_id: String,
    /// The certificate request, PEM.
    pub csr: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The CA, PEM.
    pub ca: String,
    /// The joiner's certificate, PEM.
    pub certificate: String,
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The token's text.
    #[error(transparent)]
    Token(#[from] BadJoinToken),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The call.
    #[error("control at {url} did not let this host join: {message}")]
    Call {
        /// Where.
        url: String,
        /// What it said.
        message: String,
    },
    /// The answer does not fit the token.
    #[error("control's answer has another CA than the token is for")]
    Impostor,
}

/// Joins the fleet of the token at `control` (`https://ADDRESS:PORT`) under the name `host`.
///
/// # Errors
/// [`JoinError`]. A token is used up only by a join that succeeded.
pub async fn join(control: &str, token: &str, host: &HostId) -> Result<Identity, JoinError> {
    let token: JoinToken = token.parse()?;
    let (csr, key) = pki::certificate_request()?;
    let tls = pki::pinned_client_config(token.fingerprint())?;
    let client = Client::new(tls, control, PeerName::control().server_name()?);
    let request = JoinRequest { token: token.to_string(), host_id: host.to_string(), csr };
    let failed = |error: RpcError| JoinError::Call { url: control.to_owned(), message: error.message() };
    let answer: JoinAnswer = client.post(PATH, &request).await.map_err(failed)?;
    if pki::fingerprint(&answer.ca)? != token.fingerprint {
        return Err(JoinError::Impostor);
    }
    Ok(Identity::from_pem(answer.ca, answer.certificate, key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret_in_logs() {
        let token = JoinToken::random("ab".repeat(32));
        assert_eq!(token.to_string().parse::<JoinToken>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        for bad in ["", "mjt_", "mjt_x.y", &token.to_string()[4..], &format!("{token}0")] {
            assert_eq!(bad.parse::<JoinToken>(), Err(BadJoinToken), "{bad}");
        }
    }
}
