//! The public REST API's bodies, for control, the CLI and the lobby.
//!
//! Shape: the Fly Machines API under `/v1`, and in its style what it lacks. M = `/v1/apps/{app}/machines`.
//!
//! | call | body → answer |
//! | --- | --- |
//! | `GET /v1/account` | → [`Account`] |
//! | `POST /v1/account/keys` | [`AddKey`] → [`Account`] |
//! | `GET /v1/account/keys`; `DELETE …/{id}` | → [`SshKey`]s; DELETE takes `last` |
//! | `GET, POST /v1/account/cas`; `DELETE …/{id}` | [`AddCa`] → [`SshCa`]s |
//! | `GET, POST /v1/account/members`; `DELETE …/{account}` | [`SetMember`] → [`Member`]s |
//! | `GET, POST /v1/account/invites`; `DELETE …/{id}` | [`CreateInvite`] → [`InviteMade`]; [`Invite`]s |
//! | `POST /v1/invites/accept` | [`AcceptInvite`] → [`Accepted`] |
//! | `GET /v1/account/tokens`; `DELETE …/{id}`; `POST …/revoke` | [`RevokeToken`]; → [`Token`]s |
//! | `GET /v1/whoami` | → [`WhoAmI`] |
//! | `GET, POST /v1/fleet/sign-up` | [`SignUpPolicy`]; administrators |
//! | `GET /v1/usage` | → [`Usage`] of each machine that runs |
//! | `GET, POST M/{id}/shares`; `DELETE …/{account}` | [`SetShare`] → [`Share`]s |
//! | `GET /v1/tokens/current` | → [`CurrentToken`] |
//! | `GET /v1/platform/regions` | → [`Regions`] |
//! | `GET, POST /v1/apps`; `GET, DELETE /v1/apps/{app}` | [`CreateApp`] → [`App`], [`Apps`] |
//! | `GET, POST M` | [`CreateMachine`] → [`Machine`]; the list takes `state`, `region`, `include_deleted`, `metadata.K=V` |
//! | `GET, POST, DELETE M/{id}` | [`UpdateMachine`] → [`Machine`]; DELETE takes `force` |
//! | `POST M/{id}/start`, `stop`, `restart` | [`StopMachine`] → [`Done`]; restart takes `?timeout=S` |
//! | `GET M/{id}/wait?state=S&timeout=SECONDS` | → [`Done`], or 408 with the state in words |
//! | `POST M/{id}/exec` | [`Exec`] → [`ExecAnswer`] |
//! | `GET M/{id}/events` | → `[MachineEvent]` |
//! | `GET M/{id}/logs` | → [`Logs`]: the console |
//! | `GET, PUT, PATCH M/{id}/metadata`; `GET, POST, DELETE …/{key}` | `{key: value}`; POST [`MetadataValue`] |
//! | `GET, POST, DELETE M/{id}/lease` | [`LeaseRequest`] → [`LeaseAnswer`] |
//! | `GET, POST, DELETE M/{id}/dns/records` | [`AddRecord`] → [`DnsRecords`]; DELETE takes [`RemoveRecords`] as query |
//! | `POST, DELETE M/{id}/dns/update-key` | → [`UpdateKeyMade`] |
//! | `POST M/{id}/migrate` | [`Migrate`] → [`Migration`] |
//! | `GET, POST /v1/apps/{app}/volumes`; `GET, DELETE …/{id}` | [`CreateVolume`] → [`Volume`] |
//! | `GET /v1/apps/{app}/certificates`, `…/{hostname}` | → [`Certificates`], [`Certificate`] |
//! | `POST /v1/apps/{app}/certificates/acme` | [`AddCertificate`] → [`Certificate`] |
//! | `POST /v1/apps/{app}/certificates/custom` | [`ImportCertificate`] → [`Certificate`] |
//! | `POST /v1/apps/{app}/certificates/{hostname}/check` | → [`Certificate`]: looks at the domain's zone now |
//! | `DELETE /v1/apps/{app}/certificates/{hostname}` | → [`Done`] |
//! | `GET /v1/certificates` | → [`Certificates`] of the account, flat; with the platform's for administrators |
//! | `GET /v1/orgs/{account}/machines` | → [`OrgMachines`] |
//! | `GET /v1/machines`, `/v1/machines/{id or slug}` | → [`Machine`]s of the account, flat |
//! | `GET /v1/volumes` | → [`Volume`]s of the account, flat |
//! | `GET /v1/migrations?machine=ID`, `/v1/migrations/{id}` | → [`Migration`] |
//! | `POST /v1/migrations/{id}/cancel` | → [`Migration`] |
//! | `GET /v1/fleet/zones`; `POST …/{zone}/rollover`, `…/{zone}/ds-seen` | → [`Zone`]s; administrators |
//! | `GET /v1/hosts`, `/v1/hosts/{id}` | → [`Host`] |
//! | `POST /v1/hosts/{id}/cordon`, `uncordon` | → [`Host`] |
//! | `POST /v1/hosts/{id}/drain`; `GET` the same | → [`Drain`] |
//!
//! A request is for the account of its token, or for the one that [`ACT_FOR_HEADER`] names; what it may do there depends on the role
//! ([`crate::access`]). Reading takes a viewer; entering, starting, stopping, moving an operator; making, removing and sharing an
//! admin; keys, tokens and admins the owner. `GET /v1/machines` and `M/{id}` also know machines that are shared with the account.
//!
//! Every machine path takes the id or the slug. Errors are [`ErrorBody`]. Answers carry `fly-request-id`.
//! `POST M` takes `Idempotency-Key`: the same key within a day answers with the same machine.

mod certificates;
mod machine;
mod names;
mod people;
mod place;

use serde::{Deserialize, Serialize};

pub use certificates::*;
pub use machine::*;
pub use names::*;
pub use people::*;
pub use place::*;

use crate::id::{AccountId, AppName};

/// The app that machines belong to when nobody says otherwise; every account has it.
pub const DEFAULT_APP: &str = "default";

/// Header of an entry's request on behalf of an account (the lobby): the account's id.
pub const ACCOUNT_HEADER: &str = "x-mashines-account";

/// Header that says for which account a request is: one that lists the asking account among its members. Its own when absent.
pub const ACT_FOR_HEADER: &str = "mashines-act-for";

/// Header of an entry's request that lowers what the person may (`viewer`, `operator`, `admin`): they came with a certificate of the
/// account's own authority. It never raises.
pub const ROLE_HEADER: &str = "mashines-role";

/// Any answer from 400 up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was tried, on which object, what came back, what to do.
    pub error: String,
    /// For programs: `invalid`, `not-found`, `conflict`, `no-room`, `unauthorized`, `forbidden`, `timeout`, `internal`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// It was done, or is being done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}

/// The account that the token belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The id.
    pub id: AccountId,
    /// Public keys that enter its machines.
    pub ssh_keys: Vec<String>,
    /// May administer the fleet.
    pub admin: bool,
    /// The apex: machines are at `slug.domain`.
    pub domain: String,
    /// The platform's SSH CA, for a `@cert-authority` line.
    pub ssh_ca: Option<String>,
}

/// A public key for the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddKey {
    /// In OpenSSH's one-line form.
    pub public_key: String,
}

/// Who the token speaks for, in Fly's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentToken {
    /// One entry.
    pub tokens: Vec<TokenInfo>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// The account.
    pub org_slug: AccountId,
    /// The account, again: Fly has organisations and users.
    pub organization: AccountId,
    /// May administer the fleet.
    #[serde(default)]
    pub admin: bool,
}

/// The regions of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regions {
    /// By code.
    #[serde(rename = "Regions")]
    pub regions: Vec<Region>,
}

/// A region: hosts that share a prefix and a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its code, the hosts' `region`.
    pub code: String,
    /// Its name.
    pub name: String,
    /// Room for machines, MiB of memory.
    pub capacity: u64,
}

/// Makes an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateApp {
    /// Its name.
    #[serde(alias = "app_name")]
    pub name: String,
    /// The account, when given it must be the token's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
}

/// An app: a group of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The name is the id.
    pub id: AppName,
    /// Unique in the account.
    pub name: AppName,
    /// Machines that are not destroyed.
    pub machine_count: usize,
    /// Volumes.
    pub volume_count: usize,
    /// The account's private network.
    pub network: String,
    /// The account.
    pub organization: Organization,
    /// `deployed` with machines, else `pending`.
    pub status: String,
}

/// An account as Fly's clients expect it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// The id.
    pub name: AccountId,
    /// The id.
    pub slug: AccountId,
}

/// The account's apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apps {
    /// How many.
    pub total_apps: usize,
    /// They.
    pub apps: Vec<App>,
}
