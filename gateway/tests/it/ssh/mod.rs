//! The doors of SSH, and the shared ports.

mod audit;
mod balancers;
mod certificates;
mod control;
mod dropbear;
mod editors;
mod entrances;
mod files;
mod git;
mod git_door;
mod keys;
mod lobby;
mod machine_door;
mod newcomers;
mod ports;
mod putty;
mod python;
mod regress;
mod stalls;
