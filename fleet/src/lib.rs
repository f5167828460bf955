//! What is true: ids, records, the store, the change stream, replicas, and the contracts between daemons.
//!
//! One ordered stream of facts; everything else is a projection of it. `control` is the only writer.

pub mod access;
pub mod api;
pub mod chain;
pub mod daemon;
pub mod dns_update;
pub mod entry_api;
pub mod host_api;
pub mod id;
pub mod issuance;
pub mod join;
pub mod key;
pub mod own_record;
pub mod pki;
pub mod rdata;
pub mod record;
pub mod replica;
pub mod resolver;
pub mod rpc;
pub mod sealed;
pub mod store;
pub mod stream;
pub mod view;
pub mod zone_key;
pub mod zones;
