//! What a key in memory costs.

use std::sync::Arc;

use super::load::{CONNECTIONS, Load};
use super::progress;
use super::requests;
use super::rows::Setup;
use super::world::World;

/// As many as the service keeps by default.
const KEYS: usize = 100_000;
const WARM_UP: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Growth {
    /// How many keys were looked up.
    pub(crate) keys: usize,
    /// Resident bytes before and after.
    pub(crate) before: u64,
    pub(crate) after: u64,
}

impl Growth {
    #[expect(clippy::cast_precision_loss, reason = "no memory holds 2⁵² bytes")]
    pub(crate) fn bytes_per_key(&self) -> f64 {
        self.after.saturating_sub(self.before) as f64 / self.keys as f64
    }
}

/// Looks up many keys, after all that connections need is there already.
pub(crate) async fn measure(world: &mut World<'_>) -> anyhow::Result<Growth> {
    progress("looking up keys that then are in memory");
    let fleet = world.start(Setup::USUAL).await?;
    let load = |requests| {
        let addresses = fleet.addresses(true);
        Arc::new(Load { addresses, requests, once: true, status: 200, connections: CONNECTIONS })
    };
    // One key again and again, until every connection has been at work.
    let one = requests::forward_auth(&world.on_postgres, 1);
    load(one.into_iter().cycle().take(WARM_UP).collect()).send_once(usize::MAX).await?;
    let before = fleet.memory()?;
    let many = requests::forward_auth(&world.on_postgres, KEYS);
    let keys = many.len();
    load(many).send_once(usize::MAX).await?;
    Ok(Growth { keys, before, after: fleet.memory()? })
}
