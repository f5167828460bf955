//! What goes wrong below netd: one type, so that every message names the operation, the object and what came back.

use std::io;
use std::path::PathBuf;

/// A failure of this host's network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a change.
    #[error("{operation} {object}: {source}")]
    Kernel {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A tap cannot be removed or taken over, because a process still has it open.
    #[error("tap {tap} is still held by {holders}: end the machine's monitor first")]
    TapHeld {
        /// The tap.
        tap: String,
        /// `process 12 (mashines-vmm)`, or `a process` where none could be named.
        holders: String,
    },
    /// `nft` refused a change of the filters.
    #[error(
        "load the packet filters: nft: {0}; is the nftables package installed and does the kernel have nf_tables?"
    )]
    Filters(String),
    /// A file or the socket.
    #[error("{operation} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// The configuration cannot work.
    #[error("configuration of netd: {0}")]
    Config(String),
    /// Some of many steps failed; the others were done.
    #[error("{} of the steps failed: {}", .0.len(), join(.0))]
    Several(Vec<Error>),
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } | Self::File { source, .. } => source.raw_os_error(),
            Self::TapHeld { .. } | Self::Filters(_) | Self::Config(_) | Self::Several(_) => None,
        }
    }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
