//! The doors of the web.

mod audit;
mod balancers;
mod bandwidth;
mod browser;
mod http;
mod pair;
mod smuggling;
mod tls;
mod upgrades;
mod waiting;
