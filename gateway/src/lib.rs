//! Every public door: SSH (lobby, machines, jump), shared IPv4 ports.

pub mod dial;
pub mod directory;
pub mod limits;
pub mod ports;
pub mod route;
pub mod splice;
