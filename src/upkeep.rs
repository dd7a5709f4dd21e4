//! What is done from time to time, so much at once: warning of keys that expire, and removing what was kept for long enough.

use std::time::Duration;

use crate::clock::Clock;
use crate::store::{REMOVED_AT_ONCE, Result, Store};

/// Keys removed in one round.
const KEYS_A_ROUND: u32 = 100;
/// Statements that remove other things in one round: more rows than can have come since the one before.
const BATCHES_A_ROUND: u32 = 1_000;

pub struct Upkeep {
    pub store: Store,
    pub clock: Clock,
    /// How long events are kept; `None` for ever.
    pub event_retention: Option<Duration>,
    /// How long keys stay after their end; `None` for ever.
    pub key_retention: Option<Duration>,
}

impl Upkeep {
    /// One round. Whatever fails or is left has time until the next one.
    pub async fn run(&self) {
        let outcomes = [
            ("warnings", self.warn().await),
            ("kept answers", in_batches(|| self.store.sweep_answers(self.clock.now())).await),
            ("counts", in_batches(|| self.store.remove_usage(self.clock.now())).await),
            ("events", self.remove_events().await),
            ("keys", self.remove_keys().await),
        ];
        for (what, outcome) in outcomes {
            if let Err(error) = outcome {
                tracing::debug!(%error, "{what} wait for the next round");
            }
        }
    }

    async fn warn(&self) -> Result<()> {
        for warning in self.store.warn_of_expiry(self.clock.now()).await? {
            tracing::info!(
                key = %warning.key_id,
                account = %warning.account_id,
                expires_at = %warning.expires_at,
                "a key expires within {} days",
                warning.days,
            );
        }
        Ok(())
    }

    async fn remove_events(&self) -> Result<()> {
        let Some(retention) = self.event_retention else { return Ok(()) };
        in_batches(|| self.store.remove_events(self.clock.now() - retention)).await
    }

    async fn remove_keys(&self) -> Result<()> {
        let Some(retention) = self.key_retention else { return Ok(()) };
        let now = self.clock.now();
        for _ in 0..KEYS_A_ROUND {
            if !self.store.remove_key_from_before(now - retention, now).await? {
                break;
            }
        }
        Ok(())
    }
}

/// Removes again and again, until there is nothing left or the round has been long enough.
async fn in_batches<F: Future<Output = Result<u64>>>(remove: impl Fn() -> F) -> Result<()> {
    for _ in 0..BATCHES_A_ROUND {
        if remove().await? < u64::from(REMOVED_AT_ONCE) {
            break;
        }
    }
    Ok(())
}
