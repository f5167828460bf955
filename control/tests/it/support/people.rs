//! People of several accounts, as an entry speaks for them.

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Method};
use mashines_fleet::api;
use mashines_fleet::pki::{Identity, PeerName, anonymous_client_config};
use mashines_fleet::record::HostRole;
use mashines_fleet::rpc::{Client, RpcError};
use serde_json::{Value, json};

use super::Fleet;

/// A key's line, from a number.
pub fn key(n: u8) -> String {
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::private::Ed25519Keypair;
    PrivateKey::from(Ed25519Keypair::from_seed(&[n; 32])).public_key().to_openssh().unwrap()
}

pub struct People {
    pub fleet: Fleet,
    pub entry: Identity,
    /// Of a host that is no entry.
    pub host: Identity,
}

impl People {
    /// ann, the fleet's administrator, and by sign-up bob, cem and team.
    pub async fn up(hosts: &[&str]) -> Self {
        Self::of_fleet(Fleet::up(hosts).await).await
    }

    /// The same people in that fleet.
    pub async fn of_fleet(mut fleet: Fleet) -> Self {
        let entry = fleet.join("entry160", vec![HostRole::Entry]).await;
        let host = fleet.join("hostz", vec![HostRole::Host]).await;
        let people = Self { fleet, entry, host };
        people.policy("open").await;
        for (n, name) in ["bob", "cem", "team"].into_iter().enumerate() {
            let key = key(u8::try_from(n).unwrap());
            let body = json!({"public_key": key, "name": name, "source": format!("192.0.2.{n}")});
            people.entry_post::<api::SignedUp>("/internal/v1/sign-up", body).await.unwrap();
        }
        people
    }

    pub async fn policy(&self, policy: &str) {
        self.fleet.post::<api::SignUpPolicy>("/v1/fleet/sign-up", json!({"sign_up": policy})).await.unwrap();
    }

    pub async fn entry_post<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: Value,
    ) -> Result<T, RpcError> {
        Client::to_control(&self.entry, &self.fleet.url).unwrap().post(path, &body).await
    }

    /// As the lobby calls for `me`, with further headers.
    pub fn client(&self, me: &str, headers: &[(&'static str, &str)]) -> Client {
        let all =
            std::iter::once(&(api::ACCOUNT_HEADER, me)).chain(headers.iter()).copied().collect::<Vec<_>>();
        let client = Client::to_control(&self.entry, &self.fleet.url).unwrap();
        all.into_iter().fold(client, |client, (name, value)| {
            client.with_header(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        })
    }

    pub fn of(&self, me: &str) -> Client {
        self.client(me, &[])
    }

    pub fn acting(&self, me: &str, account: &str) -> Client {
        self.client(me, &[(api::ACT_FOR_HEADER, account)])
    }

    pub fn bearer(&self, token: &str) -> Client {
        let tls = anonymous_client_config(self.fleet.identity.ca_pem()).unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        Client::new(tls, &self.fleet.url, PeerName::control().server_name().unwrap())
            .with_header(AUTHORIZATION, bearer)
    }

    pub async fn member(&self, account: &str, member: &str, role: &str) {
        let body = json!({"account": member, "role": role});
        self.of(account).post::<_, Value>("/v1/account/members", &body).await.unwrap();
    }
}

pub async fn ask(client: &Client, method: Method, path: &str, body: Value) -> Result<Value, RpcError> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(method, path, &[], body.into()).await?;
    Ok(serde_json::from_slice(answer.body()).unwrap_or(Value::Null))
}

/// The call is refused with that status and these words.
pub async fn refused(client: &Client, method: Method, path: &str, body: Value, status: u16, says: &str) {
    let error = ask(client, method.clone(), path, body).await.err();
    let error = error.unwrap_or_else(|| panic!("{method} {path} was not refused"));
    let here = format!("{method} {path}: {error}");
    assert_eq!(error.status().map(|status| status.as_u16()), Some(status), "{here}");
    assert!(error.message().contains(says), "{here}");
}

pub fn launch(name: &str) -> Value {
    json!({"name": name, "config": {"image": "container-os", "guest": {"memory_mb": 256}, "env": {"SECRET": "s3"}}})
}
