//! The time, as decisions see it: the system's, or a test's that travels.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mashines_fleet::issuance::ms;
use mashines_fleet::record::UnixMs;

/// Says what time it is.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixMs + Send + Sync>);

impl Clock {
    /// The system's.
    pub fn system() -> Self {
        Self::new(|| ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
    }

    /// One's own.
    pub fn new(now: impl Fn() -> UnixMs + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    pub fn now(&self) -> UnixMs {
        (self.0)()
    }
}
