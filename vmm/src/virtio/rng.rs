//! The entropy device: fills the driver's buffers with `getrandom(2)`. It has no state.

use std::io::Write;

use anyhow::{Result, ensure};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tracing::debug;

use super::{Rings, VirtioDevice, Wake};

const DEVICE_ID: u32 = 4;
/// The most given for one buffer, in bytes.
const LIMIT: usize = 64 * 1024;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    fn fill(rings: &mut Rings<'_>) {
        while !rings.gate.is_closed() {
            let Some(chain) = rings.pop(0) else { return };
            let head = chain.head_index();
            let written = match chain.writer(rings.memory) {
                Ok(mut writer) => {
                    let mut random = vec![0; writer.available_bytes().min(LIMIT)];
                    let filled =
                        OsRng.try_fill_bytes(&mut random).is_ok() && writer.write_all(&random).is_ok();
                    if filled { random.len() } else { 0 }
                }
                Err(error) => {
                    debug!(%error, "an entropy buffer that cannot be written");
                    0
                }
            };
            rings.push(0, head, u32::try_from(written).unwrap_or(0));
            rings.signal(0);
        }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn activate(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn wake(&mut self, _wake: Wake, rings: &mut Rings<'_>) {
        loop {
            Self::fill(rings);
            if rings.gate.is_closed() || !rings.listen(0) {
                return;
            }
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        ensure!(state.is_empty(), "{} bytes of state for an entropy device, which has none", state.len());
        Ok(())
    }
}
