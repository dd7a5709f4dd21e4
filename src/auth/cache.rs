//! Keys kept near, under a lease, and how they are found. Whether a key is live is not decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::UnitWeighter;
use quick_cache::sync::Cache as Map;
use tokio::sync::Notify;

use super::Share;
use super::lease::{Forget, Lease, Read};
use crate::clock::Clock;
use crate::key::Credential;
use crate::secret::Prefix;
use crate::store::{BOUND, Feed, Result, Store, StoreError, Subject};

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
        // The map takes memory as it fills.
        const EXPECTED: usize = 1_000;
        let keys = Map::with_weighter(EXPECTED.min(settings.max_keys), settings.max_keys as u64, UnitWeighter);
        let (hits, misses, stale, is_told, failed) = Default::default();
        let (lease, changed) = (Lease::new(), Notify::new());
        Self { keys, lease, clock, settings, changed, hits, misses, stale, is_told, failed }
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

    pub(super) fn applied(&self) -> Option<i64> {
        self.lease.latest()
    }

    /// Applies what the feed said to a question sent at `asked`, and believes memory from then on.
    pub(super) fn apply(&self, feed: &Feed, asked: Duration) {
        self.is_told.store(false, Ordering::Relaxed);
        let until = asked + self.settings.lease;
        self.lease.apply(feed, self.clock.elapsed(), until, |forget| match forget {
            Forget::Everything => self.keys.clear(),
            Forget::These(changes) => changes.iter().for_each(|(n, subject)| self.forget(*n, *subject)),
        });
    }

    pub(super) fn end_lease(&self) {
        self.lease.end();
    }

    fn forget(&self, n: i64, subject: Subject) {
        match subject {
            Subject::Secret(prefix) => drop(self.keys.remove_if(&prefix, |known| known.as_of < n)),
            Subject::Account(account) => self.keys.retain(|_, known| known.account_id != account || known.as_of >= n),
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
