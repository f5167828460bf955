//! placeholder
use anyhow::Result;
pub fn start() -> Result<()> {
    Ok(())
}
