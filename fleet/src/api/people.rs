//! Bodies about who may enter: members, shares, invites, keys, certificate authorities, tokens, sign-up.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::access::Standing;
use crate::id::{AccountId, MachineId, Slug};
use crate::record::{Role, SignUp};

/// Who asks, for whom, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// The account that asks.
    pub me: AccountId,
    /// The account that it asks for.
    pub account: AccountId,
    /// What it is there.
    pub standing: Standing,
    /// May see the fleet's hosts, and administer them when the standing allows it.
    pub admin: bool,
    /// The apex.
    pub domain: String,
    /// Accounts that list `me` among their members: `--account` names one.
    pub acts_for: Vec<Member>,
    /// What the token is limited to, when it is a signed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenLimits>,
}

/// What a signed token is limited to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenLimits {
    /// RFC 3339.
    pub expires_at: String,
    /// The machines it is for; all of the account's when empty.
    #[serde(default)]
    pub machines: Vec<String>,
}

/// An account and a role: one that acts for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The account.
    pub account: AccountId,
    /// As what.
    pub role: Role,
}

/// Makes an account a member, or changes its role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetMember {
    /// The account's id.
    pub account: String,
    /// As what.
    pub role: Role,
}

/// Shares a machine with an account, or changes the share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetShare {
    /// The account's id.
    pub account: String,
    /// Viewer or operator.
    pub role: Role,
    /// Seconds until it ends; for good when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
}

/// A share of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// With whom.
    pub account: AccountId,
    /// As what.
    pub role: Role,
    /// When it ends, RFC 3339; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// In a machine that is another account's and shared with the one that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// As what.
    pub role: Role,
    /// When it ends, RFC 3339; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// What an invite is good for. Each also lets a newcomer in where sign-up is by invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum InviteTo {
    /// An account of one's own in the fleet; made by the fleet's administrators.
    Fleet,
    /// Membership of the account that made it.
    Account {
        /// As what.
        role: Role,
    },
    /// A share of a machine.
    Machine {
        /// Its name or id.
        machine: String,
        /// Viewer or operator.
        role: Role,
        /// Seconds from the making of the invite to the end of the share; for good when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl: Option<u64>,
    },
}

/// The secret of an invite. Whoever has it is let in: it belongs in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub String);

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code(…)")
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateInvite {
    /// What for.
    #[serde(flatten)]
    pub to: InviteTo,
    /// Seconds it may be used for; a week when absent, 90 days at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<u64>,
    /// How often it may be used; once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
}

/// An invite in a list: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// A short id, for `mashines invites rm`.
    pub id: String,
    /// What for.
    pub gives: Given,
    /// RFC 3339.
    pub expires_at: String,
    /// How often it may still be used.
    pub uses: u32,
    /// Who made it.
    pub by: AccountId,
}

/// A new invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteMade {
    /// The secret: shown this once and not kept.
    pub code: Code,
    /// The invite.
    #[serde(flatten)]
    pub invite: Invite,
}

/// What an invite gives, or gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum Given {
    /// Sign-up, and nothing more.
    Fleet,
    /// Membership.
    Account {
        /// Of this account.
        account: AccountId,
        /// As what.
        role: Role,
    },
    /// A share of a machine.
    Machine {
        /// The machine.
        machine: MachineId,
        /// Its name; empty once it is gone.
        slug: String,
        /// Whose it is.
        owner: AccountId,
        /// As what.
        role: Role,
        /// When the share ends, RFC 3339; never when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
    },
}

/// Uses an invite: `POST /v1/invites/accept`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptInvite {
    /// The code.
    pub invite: Code,
}

/// An entry's word for somebody who uses an invite: `POST /internal/v1/invites/accept`. One of `account` and `public_key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptFor {
    /// The account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// A key that the person proved, OpenSSH's one-line form; it must be in one account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The code.
    pub invite: Code,
}

/// An invite was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// By whom.
    pub account: AccountId,
    /// What they have now.
    pub given: Given,
}

/// A newcomer, as an entry saw them: `POST /internal/v1/sign-up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignUpRequest {
    /// The key that they proved, OpenSSH's one-line form.
    pub public_key: String,
    /// The account's id; made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An invite's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<Code>,
    /// Where they came from: sign-up without an invite is limited by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
}

/// An account was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedUp {
    /// It.
    pub account: AccountId,
    /// What the invite gave besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
}

/// How the fleet takes newcomers: `GET, POST /v1/fleet/sign-up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignUpPolicy {
    /// The policy.
    pub sign_up: SignUp,
}

/// A key of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKey {
    /// A short id, for `mashines keys rm`: the beginning of the key's SHA-256 in hex.
    pub id: String,
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// As `ssh-keygen -l` shows it: `SHA256:…`.
    pub fingerprint: String,
    /// One line.
    pub public_key: String,
}

/// Trusts a certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddCa {
    /// Its public key, OpenSSH's one-line form.
    pub public_key: String,
    /// Principals that enter all of the account's machines; the account's id when there is none.
    #[serde(default)]
    pub principals: Vec<String>,
    /// As what its people come.
    pub role: Role,
}

/// A certificate authority that the account trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshCa {
    /// The key.
    #[serde(flatten)]
    pub key: SshKey,
    /// Principals that enter all of the account's machines.
    pub principals: Vec<String>,
    /// As what its people come.
    pub role: Role,
}

/// A token of the account, or one that was signed and is revoked. Never the token itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// A short id, for `mashines tokens rm`.
    pub id: String,
    /// `kept`: in the store, until removed. `revoked`: a signed token's, refused.
    pub kind: TokenKind,
    /// RFC 3339.
    pub created_at: String,
    /// When a revocation may be forgotten, since the token is no good any more: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// The one that asks.
    #[serde(default)]
    pub this: bool,
}

/// What a token in the list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenKind {
    /// In the store, until removed.
    Kept,
    /// A signed token that is refused.
    Revoked,
}

/// Revokes a signed token: `POST /v1/account/tokens/revoke`. The nonce that is in it, or all of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeToken {
    /// Its nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl std::fmt::Debug for RevokeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RevokeToken").finish_non_exhaustive()
    }
}

/// What a signed token says: the JSON that is signed, see [`TOKEN_NAMESPACE`]. Unknown fields are refused.
///
/// The token is `mss_`, the JSON in base64url without padding, `.`, and the same of the signature (the bytes between the lines
/// of what `ssh-keygen -Y sign` writes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The account it is for: the one that has the key, or one that has that account as a member.
    pub account: AccountId,
    /// Unix seconds; at most a year from now.
    pub exp: u64,
    /// At most this, and at most what the key's owner is in the account.
    pub role: Standing,
    /// Names or ids of the machines it is for; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<String>,
    /// Random, so that this token can be revoked alone.
    pub nonce: String,
}

/// What a signed token begins with.
pub const SIGNED_TOKEN: &str = "mss_";

/// `ssh-keygen -Y sign -n api@DOMAIN`: this and the fleet's domain.
pub const TOKEN_NAMESPACE: &str = "api@";

/// What the machines use, as their hosts reported it last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// The machine.
    pub machine: MachineId,
    /// Its name.
    pub slug: Slug,
    /// CPU time between the last two reports, in percent of one CPU: 200 is two busy ones. None until there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// CPU time of its vCPUs since the instance began, microseconds.
    pub cpu_time_us: u64,
    /// Resident memory of its monitor, bytes.
    pub resident_bytes: u64,
}
