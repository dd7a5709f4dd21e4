//! Until when memory may be believed, and what may be put into it: the pure part of the cache, without I/O and without a clock.
//!
//! Instants are times since the process's clock was made. The promise it keeps: while a lease lasts, memory holds nothing that a
//! change made untrue before the question was sent which led to the lease.

use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;
use std::time::Duration;

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::id::AccountId;
use crate::secret::Prefix;
use crate::store::{Feed, Subject};

/// Changes are remembered for so long after they were applied. What a read that began before then has found is not kept.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// The lease and the changes that were applied lately.
pub(super) struct Lease {
    /// In microseconds; 0 before the first lease.
    until: AtomicU64,
    applied: Mutex<Applied>,
}

#[derive(Default)]
struct Applied {
    /// `None` before the first answer: then whatever was missed, was missed.
    latest: Option<i64>,
    /// Nothing read before this change is kept: something was missed, and nobody knows what.
    floor: i64,
    recent: HashMap<Subject, i64>,
    order: VecDeque<(Duration, i64, Subject)>,
}

/// What was read from the database: of which secret, in which snapshot, and when the question was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) prefix: Prefix,
    pub(super) account: AccountId,
    pub(super) as_of: i64,
    pub(super) asked: Duration,
}

/// What must leave memory before a lease is renewed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Forget<'a> {
    Everything,
    These(&'a [(i64, Subject)]),
}

impl Lease {
    pub(super) fn new() -> Self {
        Self { until: AtomicU64::new(0), applied: Mutex::new(Applied::default()) }
    }

    /// Whether what is found in memory from now on may be believed.
    ///
    /// To be asked before memory is looked into: what was found while there was no lease may have been forgotten, and the
    /// lease renewed, before somebody asks.
    pub(super) fn is_valid(&self, now: Duration) -> bool {
        let until = self.until.load(Ordering::Acquire);
        micros(now) < until || (cfg!(feature = "flaw-lease") && until > 0)
    }

    /// When the lease ends, or ended; zero if there was none.
    pub(super) fn until(&self) -> Duration {
        Duration::from_micros(self.until.load(Ordering::Acquire))
    }

    /// The number of the last change that was applied, if any ever was.
    pub(super) fn latest(&self) -> Option<i64> {
        self.applied().latest
    }

    /// Keeps what was read, unless a change applied meanwhile may have made it untrue.
    pub(super) fn admit(&self, read: Read, now: Duration, keep: impl FnOnce()) -> bool {
        // The lock is held while it is kept: a change is applied either before, and is seen here, or after, and removes it.
        let applied = self.applied();
        let newest = [Subject::Secret(read.prefix), Subject::Account(read.account)]
            .iter()
            .filter_map(|subject| applied.recent.get(subject).copied())
            .fold(applied.floor, i64::max);
        let is_fresh = now.saturating_sub(read.asked) < REMEMBERED_FOR;
        let is_true = is_fresh && (read.as_of >= newest || cfg!(feature = "flaw-fill"));
        if is_true {
            keep();
        }
        is_true
    }

    /// Applies what the feed said: has the changes forgotten, and only then renews the lease until `until`.
    pub(super) fn apply(&self, feed: &Feed, now: Duration, until: Duration, forget: impl FnOnce(Forget<'_>)) {
        let mut applied = self.applied();
        if feed.is_complete {
            for (n, subject) in &feed.changes {
                applied.recent.insert(*subject, *n);
                applied.order.push_back((now, *n, *subject));
            }
            forget(Forget::These(&feed.changes));
        } else {
            applied.floor = feed.latest;
            forget(Forget::Everything);
        }
        applied.latest = Some(feed.latest);
        applied.drop_old(now);
        self.until.fetch_max(micros(until), Ordering::AcqRel);
    }

    /// Ends the lease at once.
    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Applied {
    fn drop_old(&mut self, now: Duration) {
        // Twice as long as reads are kept back, so that no read is younger than what is forgotten here.
        while let Some((at, n, subject)) = self.order.front().copied() {
            if now.saturating_sub(at) < REMEMBERED_FOR * 2 {
                break;
            }
            self.order.pop_front();
            if self.recent.get(&subject) == Some(&n) {
                self.recent.remove(&subject);
            }
        }
    }
}

fn micros(instant: Duration) -> u64 {
    u64::try_from(instant.as_micros()).unwrap_or(u64::MAX)
}
