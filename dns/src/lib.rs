//! Authoritative names.
