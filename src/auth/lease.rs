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
use crate::store::{Feed, FeedPosition, Subject};

/// Changes are remembered for so long after they were applied. What a read that began before then has found is not kept.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// Changes that are noted, or dropped, under one hold of the lock, which every fill needs: well under a millisecond.
const AT_ONCE: usize = 500;

/// The lease and the changes that were applied lately.
pub(super) struct Lease {
    /// In microseconds; 0 before the first lease.
    until: AtomicU64,
    applied: Mutex<Applied>,
}

#[derive(Default)]
struct Applied {
    /// `None` before the first answer: then whatever was missed, was missed.
    latest: Option<FeedPosition>,
    /// Nothing read before this change is kept: something was missed, and it is not known what.
    floor: i64,
    /// Nor what was asked for before this instant, when numbers may have belonged to another history.
    reset_at: Duration,
    /// How often a lease was ended. Answers to questions from before do not renew it.
    ended: u64,
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

/// A question to the feed: until when its answer gives a lease, and which leases were ended before it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    until: Duration,
    ended: u64,
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

    /// The last change that was applied, if any ever was.
    pub(super) fn latest(&self) -> Option<FeedPosition> {
        self.applied().latest
    }

    /// To be called before a question is sent to the feed whose answer gives a lease of this length.
    pub(super) fn ask(&self, now: Duration, length: Duration) -> Asked {
        Asked { until: now + length, ended: self.applied().ended }
    }

    /// Keeps what was read, unless a change applied meanwhile may have made it untrue.
    pub(super) fn admit(&self, read: Read, now: Duration, keep: impl FnOnce()) -> bool {
        // The lock is held while it is kept: a change is applied either before, and is seen here, or after, and removes it.
        let applied = self.applied();
        let newest = [Subject::Secret(read.prefix), Subject::Account(read.account)]
            .iter()
            .filter_map(|subject| applied.recent.get(subject).copied())
            .fold(applied.floor, i64::max);
        let is_fresh = now.saturating_sub(read.asked) < REMEMBERED_FOR && read.asked >= applied.reset_at;
        let is_true = is_fresh && (read.as_of >= newest || cfg!(feature = "flaw-fill"));
        if is_true {
            keep();
        }
        is_true
    }

    /// Applies what the feed answered, and renews the lease from when the question was sent.
    ///
    /// 1. Notes the changes, so that no read from before them is kept from now on.
    /// 2. Has them forgotten, without the lock, since that takes as long as memory is large. What is kept meanwhile is newer.
    /// 3. Renews the lease, unless it was ended since the question was sent.
    pub(super) fn apply(&self, feed: &Feed, asked: Asked, now: Duration, forget: impl FnOnce(Forget<'_>)) {
        if feed.is_complete {
            for changes in feed.changes.chunks(AT_ONCE) {
                self.applied().note(changes, now);
            }
            forget(Forget::These(&feed.changes));
        } else {
            let before = self.applied().reset(feed.latest.n, now);
            drop(before);
            forget(Forget::Everything);
        }
        while self.applied().drop_old(now) {}
        let mut applied = self.applied();
        applied.latest = Some(feed.latest);
        if applied.ended == asked.ended {
            self.until.fetch_max(micros(asked.until), Ordering::AcqRel);
        }
    }

    /// Ends the lease at once; only a question that is sent afterwards can renew it.
    pub(super) fn end(&self) {
        let mut applied = self.applied();
        applied.ended += 1;
        self.until.store(0, Ordering::Release);
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Noted = (HashMap<Subject, i64>, VecDeque<(Duration, i64, Subject)>);

impl Applied {
    fn note(&mut self, changes: &[(i64, Subject)], now: Duration) {
        for (n, subject) in changes {
            self.recent.insert(*subject, *n);
            self.order.push_back((now, *n, *subject));
        }
    }

    /// Starts anew from this change, and gives back what was noted before.
    fn reset(&mut self, floor: i64, now: Duration) -> Noted {
        (self.floor, self.reset_at) = (floor, now);
        (std::mem::take(&mut self.recent), std::mem::take(&mut self.order))
    }

    /// Drops some of what is old enough; whether there may be more of it.
    fn drop_old(&mut self, now: Duration) -> bool {
        for _ in 0..AT_ONCE {
            // Twice as long as reads are kept back, so that no read is younger than what is forgotten here.
            let Some((at, n, subject)) = self.order.front().copied() else { return false };
            if now.saturating_sub(at) < REMEMBERED_FOR * 2 {
                return false;
            }
            self.order.pop_front();
            if self.recent.get(&subject) == Some(&n) {
                self.recent.remove(&subject);
            }
        }
        true
    }
}

fn micros(instant: Duration) -> u64 {
    u64::try_from(instant.as_micros()).unwrap_or(u64::MAX)
}
