//! What is done from time to time, so much at once: warning of keys that expire, and removing what was kept for long enough.

use std::time::Duration;

use crate::clock::Clock;
use crate::store::{Result, Store};

/// Keys removed in one round.
const REMOVED_AT_ONCE: u32 = 100;

pub(crate) struct Upkeep {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    /// How long events are kept; `None` for ever.
    pub(crate) event_retention: Option<Duration>,
    /// How long keys stay after their end; `None` for ever.
    pub(crate) key_retention: Option<Duration>,
}

impl Upkeep {
    /// One round. Whatever fails or is left has time until the next one.
    pub(crate) async fn run(&self) {
        let outcomes = [
            ("warnings", self.warn().await),
            ("kept answers", self.store.sweep_answers(self.clock.now()).await.map(drop)),
            ("counts", self.store.remove_usage(self.clock.now()).await),
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
        self.store.remove_events(self.clock.now() - retention).await.map(drop)
    }

    async fn remove_keys(&self) -> Result<()> {
        let Some(retention) = self.key_retention else { return Ok(()) };
        let now = self.clock.now();
        for _ in 0..REMOVED_AT_ONCE {
            if !self.store.remove_key_from_before(now - retention, now).await? {
                break;
            }
        }
        Ok(())
    }
}
