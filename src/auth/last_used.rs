//! When each secret was last used: kept in memory, written behind, never waited for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::secret::Prefix;
use crate::store::Store;

/// A batch is written this often, if there is anything to write.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// A secret in use all the time is written this often; until then the list shows the time from memory.
const REWRITE_AFTER: TimeDelta = TimeDelta::seconds(60);
/// A secret not used for this long is written with the next batch. Shorter, and very many keys that are each used now and then
/// would be written at each use.
const AT_REST_AFTER: TimeDelta = TimeDelta::seconds(5);
/// What is written stays in memory for longer than a list may take to read what was there before.
const FORGOTTEN_AFTER: TimeDelta = TimeDelta::seconds(10);
/// Secrets written by one statement or transaction: after an outage there may be many, and requests must not wait for them all.
const MAX_BATCH: usize = 1_000;
/// Secrets in memory at once; while the database is away and more are used, their uses are lost and counted.
const MAX_PENDING: usize = 100_000;

/// The uses of all secrets that are not in the database yet.
#[derive(Clone, Default)]
pub struct LastUsed(Arc<Shared>);

#[derive(Default)]
struct Shared {
    uses: Mutex<HashMap<Prefix, Use>>,
    first_use: Notify,
    dropped: AtomicU64,
}

#[derive(Clone, Copy)]
struct Use {
    latest: DateTime<Utc>,
    written: Option<DateTime<Utc>>,
}

impl Use {
    /// The first use is written at once, the last one when the secret has come to rest, and those between now and then.
    fn is_due(&self, now: DateTime<Utc>) -> bool {
        match self.written {
            None => true,
            Some(written) => {
                self.latest > written && (now - self.latest >= AT_REST_AFTER || now - written >= REWRITE_AFTER)
            }
        }
    }

    fn is_done(&self, now: DateTime<Utc>) -> bool {
        self.written == Some(self.latest) && now - self.latest >= FORGOTTEN_AFTER
    }
}

impl LastUsed {
    /// Notes a use. The first one ever is written without waiting for the next batch.
    pub fn record(&self, prefix: Prefix, at: DateTime<Utc>, first: bool) {
        let mut uses = self.uses();
        let is_full = uses.len() >= MAX_PENDING;
        match uses.get_mut(&prefix) {
            Some(seen) => seen.latest = seen.latest.max(at),
            None if is_full => {
                self.0.dropped.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                uses.insert(prefix, Use { latest: at, written: None });
                if first {
                    self.0.first_use.notify_one();
                }
            }
        }
    }

    /// The last use that this process knows of, if it is not sure to be in the database.
    pub fn latest(&self, prefix: Prefix) -> Option<DateTime<Utc>> {
        self.uses().get(&prefix).map(|seen| seen.latest)
    }

    /// Secrets in memory now.
    pub fn pending(&self) -> usize {
        self.uses().len()
    }

    /// Uses lost because too many secrets were waiting.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Writes batches until `stop`, and then what is left.
    pub async fn run(self, store: Store, clock: Clock, stop: CancellationToken) {
        // Not `interval`, whose first tick comes at once.
        let mut ticks = interval_at(Instant::now() + WRITE_EVERY, WRITE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.first_use.notified() => (),
                _ = ticks.tick() => (),
            }
            let now = clock.now();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.write(&store, now, |seen| seen.is_due(now)) => (),
            }
        }
        let last = self.write(&store, clock.now(), |seen| seen.written != Some(seen.latest));
        if timeout(crate::store::BOUND, last).await.is_err() {
            tracing::warn!("the last batch of last uses was not written in time");
        }
    }

    async fn write(&self, store: &Store, now: DateTime<Utc>, due: impl Fn(&Use) -> bool) {
        let mut batch: Vec<_> = {
            let mut uses = self.uses();
            uses.retain(|_, seen| !seen.is_done(now));
            uses.iter().filter(|(_, seen)| due(seen)).map(|(prefix, seen)| (*prefix, seen.latest)).collect()
        };
        // The same order everywhere, so that two replicas cannot wait for each other.
        batch.sort_unstable();
        for batch in batch.chunks(MAX_BATCH) {
            if let Err(error) = store.touch_secrets(batch.to_vec()).await {
                tracing::warn!(%error, secrets = batch.len(), "last uses stay in memory until they can be written");
                return;
            }
            let mut uses = self.uses();
            for (prefix, at) in batch {
                if let Some(seen) = uses.get_mut(prefix) {
                    seen.written = Some(*at);
                }
            }
        }
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<Prefix, Use>> {
        self.0.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
