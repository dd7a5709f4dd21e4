//! When each secret was last used and how often: kept in memory, written behind, never waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::secret::Prefix;
use crate::store::{Counted, Counts, Store, hour_of};

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
    /// Held from when counts are read until they are written: an end in between must not write them twice.
    counting: Arc<tokio::sync::Mutex<()>>,
}

/// One for each key in use: small, for there may be very many.
struct Use {
    latest: DateTime<Utc>,
    written: Option<DateTime<Utc>>,
    /// The hour of the latest use, and its requests that are not written yet.
    hour: i32,
    tally: Tally,
    /// Those of hours before, seldom any.
    earlier: Option<Box<Earlier>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    allowed: i32,
    refused: i32,
}

#[derive(Default)]
struct Earlier(Vec<(i32, Tally)>);

impl Use {
    fn new(at: DateTime<Utc>) -> Self {
        let tally = Tally { allowed: 1, refused: 0 };
        Self { latest: at, written: None, hour: Self::hour_of(at), tally, earlier: None }
    }

    /// Enough for a quarter of a million years.
    fn hour_of(at: DateTime<Utc>) -> i32 {
        i32::try_from(hour_of(at)).unwrap_or(i32::MAX)
    }

    fn tally_at(&mut self, at: DateTime<Utc>) -> &mut Tally {
        let hour = Self::hour_of(at);
        if hour != self.hour {
            let before = (self.hour, std::mem::take(&mut self.tally));
            self.earlier.get_or_insert_default().0.push(before);
            self.hour = hour;
        }
        &mut self.tally
    }

    fn has_counts(&self) -> bool {
        self.tally != Tally::default() || self.earlier.is_some()
    }

    fn is_unwritten(&self) -> bool {
        self.written != Some(self.latest) || self.has_counts()
    }

    /// Makes one entry of each hour, even after a clock went back: what is written of an hour is then all there is of it.
    fn gather_earlier(&mut self) {
        let Some(earlier) = self.earlier.as_deref_mut() else { return };
        let mut hours = BTreeMap::<i32, Tally>::new();
        for (hour, tally) in earlier.0.drain(..) {
            let sum = if hour == self.hour { &mut self.tally } else { hours.entry(hour).or_default() };
            sum.allowed += tally.allowed;
            sum.refused += tally.refused;
        }
        earlier.0.extend(hours);
        self.forget_empty();
    }

    /// What is not written yet, by its hour.
    fn counts(&self) -> impl Iterator<Item = (i32, Tally)> {
        let earlier = self.earlier.iter().flat_map(|earlier| earlier.0.iter().copied());
        earlier.chain([(self.hour, self.tally)]).filter(|(_, tally)| *tally != Tally::default())
    }

    /// Takes away what has been written; what came meanwhile stays.
    fn subtract(&mut self, hour: i32, written: Tally) {
        let earlier = self.earlier.iter_mut().flat_map(|earlier| &mut earlier.0).find(|(before, _)| *before == hour);
        let tally = match earlier {
            Some((_, tally)) if hour != self.hour => tally,
            _ => &mut self.tally,
        };
        tally.allowed -= written.allowed;
        tally.refused -= written.refused;
        self.forget_empty();
    }

    fn forget_empty(&mut self) {
        if let Some(earlier) = self.earlier.as_deref_mut() {
            earlier.0.retain(|(_, tally)| *tally != Tally::default());
            if earlier.0.is_empty() {
                self.earlier = None;
            }
        }
    }

    /// The first use is written at once, the last one when the secret has come to rest, and those between now and then.
    fn is_due(&self, now: DateTime<Utc>) -> bool {
        match self.written {
            None => true,
            Some(written) => {
                (self.latest > written || self.has_counts())
                    && (now - self.latest >= AT_REST_AFTER || now - written >= REWRITE_AFTER)
            }
        }
    }

    fn is_done(&self, now: DateTime<Utc>) -> bool {
        !self.is_unwritten() && now - self.latest >= FORGOTTEN_AFTER
    }
}

impl LastUsed {
    /// Notes a use. The first one ever is written without waiting for the next batch.
    pub fn record(&self, prefix: Prefix, at: DateTime<Utc>, first: bool) {
        let mut uses = self.uses();
        let is_full = uses.len() >= MAX_PENDING;
        match uses.get_mut(&prefix) {
            Some(seen) => {
                seen.latest = seen.latest.max(at);
                seen.tally_at(at).allowed += 1;
            }
            None if is_full => {
                self.0.dropped.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                uses.insert(prefix, Use::new(at));
                if first {
                    self.0.first_use.notify_one();
                }
            }
        }
    }

    /// Says of a use just noted that it was beyond a limit.
    pub fn refuse(&self, prefix: Prefix, at: DateTime<Utc>) {
        if let Some(seen) = self.uses().get_mut(&prefix) {
            let tally = seen.tally_at(at);
            tally.allowed -= 1;
            tally.refused += 1;
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
        let last = self.write(&store, clock.now(), Use::is_unwritten);
        if timeout(crate::store::BOUND, last).await.is_err() {
            tracing::warn!("the last batch of last uses was not written in time");
        }
    }

    async fn write(&self, store: &Store, now: DateTime<Utc>, due: impl Fn(&Use) -> bool) {
        let turn = Arc::clone(&self.0.counting).lock_owned().await;
        let (mut batch, mut counted) = self.due(now, due);
        // The same order everywhere, so that two replicas cannot wait for each other.
        batch.sort_unstable();
        counted.sort_unstable_by_key(|counted| (counted.prefix, counted.hour));
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
        let (uses, store) = (self.clone(), store.clone());
        // In a task of its own, so that what is written is known to be, even if nobody waits for it any more.
        let counting = tokio::spawn(async move {
            for batch in counted.chunks(MAX_BATCH) {
                if let Err(error) = store.count_requests(batch.to_vec()).await {
                    tracing::warn!(%error, counts = batch.len(), "counts stay in memory until they can be written");
                    break;
                }
                uses.subtract(batch);
            }
            drop(turn);
        });
        let _ = counting.await;
    }

    fn subtract(&self, written: &[Counted]) {
        let mut uses = self.uses();
        for counted in written {
            if let Some(seen) = uses.get_mut(&counted.prefix) {
                let Counted { hour, counts, .. } = *counted;
                let narrow = |number| i32::try_from(number).expect("it was one before it was written");
                seen.subtract(narrow(hour), Tally { allowed: narrow(counts.allowed), refused: narrow(counts.refused) });
            }
        }
    }

    /// What is to be written: last uses, and counts.
    fn due(&self, now: DateTime<Utc>, due: impl Fn(&Use) -> bool) -> (Vec<(Prefix, DateTime<Utc>)>, Vec<Counted>) {
        let mut uses = self.uses();
        uses.retain(|_, seen| !seen.is_done(now));
        let (mut batch, mut counted) = (Vec::new(), Vec::new());
        for (prefix, seen) in uses.iter_mut().filter(|(_, seen)| due(seen)) {
            batch.push((*prefix, seen.latest));
            seen.gather_earlier();
            counted.extend(seen.counts().map(|(hour, Tally { allowed, refused })| Counted {
                prefix: *prefix,
                hour: hour.into(),
                counts: Counts { allowed: allowed.into(), refused: refused.into() },
            }));
        }
        (batch, counted)
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<Prefix, Use>> {
        self.0.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
