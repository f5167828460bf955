//! What our two SSH servers have in common, the gateway and the one inside machines of a single process: which algorithms are good
//! enough ([`algorithms`]), and how a connection is ended from outside ([`Severable`]).

pub mod algorithms;
mod severable;

pub use severable::Severable;
