//! The daemons of a fleet, one process a role.
