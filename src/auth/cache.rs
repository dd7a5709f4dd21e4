//! Keys kept near, under a lease, and how they are found. Whether a key is live is not decided here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::{Cache as Map, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter};
use tokio::sync::Notify;

use super::Share;
use super::lease::{Asked, Forget, Lease, Read};
use crate::clock::Clock;
use crate::key::Credential;
use crate::secret::Prefix;
use crate::store::{BOUND, Feed, FeedPosition, Result, Store, StoreError, Subject};

/// Keys in one part of the map at the most. A part is locked while it is searched for what a bulk change has made untrue.
const KEYS_A_SHARD: usize = 1_024;
/// Changes of single keys up to so many are applied at once, and more of them off the threads that answer requests.
const FEW_CHANGES: usize = 100;

/// How keys are kept in memory.
#[derive(Clone, Copy, Debug)]
pub struct CacheSettings {
    /// Keys in memory at once; those seldom seen leave first.
    pub max_keys: usize,
    /// How long memory is believed after the question which found it up to date was sent.
    pub lease: Duration,
    /// How often that question is sent.
    pub renew: Duration,
    /// How much longer the last known answer stands while the database is away. Zero is never.
    pub stale_grace: Duration,
}

/// Keys in memory.
pub struct Cache {
    keys: Map<Prefix, Arc<Credential>>,
    lease: Lease,
    clock: Clock,
    pub(super) settings: CacheSettings,
    /// Rings when this process has changed something, so that it hears of it without waiting.
    pub(super) changed: Notify,
    hits: AtomicU64,
    misses: AtomicU64,
    /// Answers from before the database went away.
    stale: AtomicU64,
    /// Whether the log has said so of the time without the database that it is now.
    is_told: AtomicBool,
    /// When a look-up in the database last failed, in microseconds.
    failed: AtomicU64,
}

/// What the cache does, for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheUse {
    /// Keys in memory.
    pub keys: usize,
    /// How much longer memory is believed; zero if it is not.
    pub lease_left: Duration,
    /// Look-ups answered from memory, and by the database, since the start.
    pub hits: u64,
    pub misses: u64,
    /// Answers from before the database went away, which a grace lets stand.
    pub stale: u64,
}

impl Cache {
    pub(super) fn new(settings: CacheSettings, clock: Clock) -> Self {
        let (hits, misses, stale, is_told, failed) = Default::default();
        let (lease, changed) = (Lease::new(), Notify::new());
        Self { keys: new_map(settings.max_keys), lease, clock, settings, changed, hits, misses, stale, is_told, failed }
    }

    /// The key with this prefix: from memory while the lease lasts, else from the database. However many ask at once, one reads.
    pub(super) async fn find(&self, store: &Store, prefix: Prefix, share: Share) -> Result<Option<Arc<Credential>>> {
        let began = self.clock.elapsed();
        let is_leased = self.lease.is_valid(began);
        if let Some(known) = self.keys.get(&prefix) {
            if is_leased {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(known));
            }
            return match self.read(store, prefix).await {
                Err(StoreError::Unavailable(_)) if self.is_in_grace() => {
                    self.stale.fetch_add(1, Ordering::Relaxed);
                    if !self.is_told.swap(true, Ordering::Relaxed) {
                        tracing::warn!("the database is away; for the grace that is set, the last known answers stand");
                    }
                    Ok(Some(known))
                }
                outcome => outcome,
            };
        }
        if share == Share::Reserved {
            // It must not stand behind one that stands in the common line.
            return self.read(store, prefix).await;
        }
        match self.keys.get_value_or_guard_async(&prefix).await {
            // Somebody else's read may have begun before ours should have, but it was kept only if it is true under our lease.
            Ok(known) if is_leased => Ok(Some(known)),
            Ok(_) => self.read(store, prefix).await,
            Err(place) => {
                let asked = self.clock.elapsed();
                // Whoever stood in line behind reads that failed, or took all its time, would only hold up those behind it.
                let failed = Duration::from_micros(self.failed.load(Ordering::Relaxed));
                if failed > began || asked.saturating_sub(began) >= BOUND {
                    return Err(StoreError::Unavailable("another request's look-up of the same key failed".to_owned()));
                }
                let found = self.read(store, prefix).await?;
                if let Some(found) = &found {
                    self.admit(found, asked, || drop(place.insert(Arc::clone(found))));
                }
                Ok(found)
            }
        }
    }

    /// Whether memory may be believed now.
    pub fn is_leased(&self) -> bool {
        self.lease.is_valid(self.clock.elapsed())
    }

    pub fn usage(&self) -> CacheUse {
        CacheUse {
            keys: self.keys.len(),
            lease_left: self.lease.until().saturating_sub(self.clock.elapsed()),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            stale: self.stale.load(Ordering::Relaxed),
        }
    }

    pub(super) fn applied(&self) -> Option<FeedPosition> {
        self.lease.latest()
    }

    /// To be called before a question is sent to the feed.
    pub(super) fn ask(&self) -> Asked {
        self.lease.ask(self.clock.elapsed(), self.settings.lease)
    }

    /// Applies what the feed answered to a question, and renews the lease.
    pub(super) async fn apply(self: &Arc<Self>, feed: Feed, asked: Asked) {
        self.is_told.store(false, Ordering::Relaxed);
        let is_of_keys = feed.changes.iter().all(|(_, subject)| matches!(subject, Subject::Secret(_)));
        if feed.is_complete && is_of_keys && feed.changes.len() <= FEW_CHANGES {
            return self.apply_now(&feed, asked);
        }
        // All of memory is searched, which takes some milliseconds.
        let cache = Arc::clone(self);
        if tokio::task::spawn_blocking(move || cache.apply_now(&feed, asked)).await.is_err() {
            tracing::error!("changes could not be applied to the keys in memory");
        }
    }

    fn apply_now(&self, feed: &Feed, asked: Asked) {
        self.lease.apply(feed, asked, self.clock.elapsed(), |forget| match forget {
            Forget::Everything => self.keys.clear(),
            Forget::These(changes) => self.forget(changes),
        });
    }

    pub(super) fn end_lease(&self) {
        self.lease.end();
    }

    /// One pass for all accounts among the changes.
    fn forget(&self, changes: &[(i64, Subject)]) {
        let mut accounts = HashMap::new();
        for (n, subject) in changes {
            match subject {
                Subject::Secret(prefix) => drop(self.keys.remove_if(prefix, |known| known.as_of < *n)),
                // The numbers ascend: the last one is the greatest.
                Subject::Account(account) => drop(accounts.insert(*account, *n)),
            }
        }
        if !accounts.is_empty() {
            self.keys.retain(|_, known| accounts.get(&known.account_id).is_none_or(|n| known.as_of >= *n));
        }
    }

    async fn read(&self, store: &Store, prefix: Prefix) -> Result<Option<Arc<Credential>>> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let found = store.find_credential(prefix).await;
        if found.is_err() {
            let now = u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.failed.store(now, Ordering::Relaxed);
        }
        Ok(found?.map(Arc::new))
    }

    fn admit(&self, found: &Credential, asked: Duration, keep: impl FnOnce()) {
        let read = Read { prefix: found.prefix, account: found.account_id, as_of: found.as_of, asked };
        self.lease.admit(read, self.clock.elapsed(), keep);
    }

    fn is_in_grace(&self) -> bool {
        self.settings.stale_grace > Duration::ZERO
            && self.clock.elapsed() < self.lease.until() + self.settings.stale_grace
    }
}

/// A map that takes memory as it fills, in parts that are each searched in far less than a millisecond.
fn new_map(max_keys: usize) -> Map<Prefix, Arc<Credential>> {
    /// The map has no part for fewer keys than these.
    const SMALLEST_SHARD: usize = 32;
    let shards = max_keys.div_ceil(KEYS_A_SHARD).next_power_of_two();
    let options = OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity((shards * SMALLEST_SHARD).min(max_keys))
        .weight_capacity(max_keys as u64)
        .build()
        .expect("both capacities are given");
    Map::with_options(options, UnitWeighter, DefaultHashBuilder::default(), DefaultLifecycle::default())
}
