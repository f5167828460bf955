//! Questions to the resolvers that `[control]` names: whether a domain's owner wants it here, whether a zone's parent has its DS.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};

use crate::failure::{Failure, Result};

/// How long one question may take in all.
const PATIENCE: Duration = Duration::from_secs(8);

/// What DNS says about one name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// These.
    There(T),
    /// There is none: an authority said so.
    Absent,
    /// Nobody could say.
    Unknown(String),
}

/// The resolvers that are asked.
pub struct Dns(TokioResolver);

impl Dns {
    /// Those, or the system's when there are none.
    ///
    /// # Errors
    /// `/etc/resolv.conf` cannot be read.
    pub fn new(resolvers: &[SocketAddr]) -> Result<Self> {
        let failed = |error: NetError| {
            let text = "no resolver to look at domains with: set `resolvers` in [control]";
            Failure::internal(format!("{text}: {error}"))
        };
        let mut builder = if resolvers.is_empty() {
            TokioResolver::builder_tokio().map_err(failed)?
        } else {
            let servers = resolvers.iter().map(|address| {
                let at = |mut connection: ConnectionConfig| {
                    connection.port = address.port();
                    connection
                };
                let both = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
                NameServerConfig::new(address.ip(), true, both)
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options: &mut ResolverOpts = builder.options_mut();
        // A record that was just added is to be seen; the resolver that is asked has a cache of its own.
        options.cache_size = 0;
        options.preserve_intermediates = true;
        options.timeout = Duration::from_secs(2);
        options.attempts = 2;
        Ok(Self(builder.build().map_err(failed)?))
    }

    /// What there is of that type at that name, with the CNAMEs that lead there.
    pub async fn ask(&self, name: &str, kind: RecordType) -> Found<Vec<RData>> {
        let Ok(mut asked) = Name::from_ascii(name) else { return Found::Absent };
        asked.set_fqdn(true);
        let answer = tokio::time::timeout(PATIENCE, self.0.lookup(asked, kind)).await;
        match answer {
            Ok(Ok(lookup)) => {
                Found::There(lookup.answers().iter().map(|record| record.data.clone()).collect())
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => match none.response_code {
                ResponseCode::NXDomain | ResponseCode::NoError => Found::Absent,
                code => Found::Unknown(format!("{kind} of {name}: {code}")),
            },
            Ok(Err(error)) => Found::Unknown(format!("{kind} of {name}: {error}")),
            Err(_) => Found::Unknown(format!("{kind} of {name}: no answer within {PATIENCE:?}")),
        }
    }
}
