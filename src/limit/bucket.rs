//! The minute's token bucket: governor's arithmetic (GCRA) on state that lives beside a key's other counts.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::RateLimiter;
use governor::middleware::{NoOpMiddleware, StateInformationMiddleware};
use governor::nanos::Nanos;
use governor::state::StateStore;

use super::Quota;
use crate::clock::Clock;

/// A limit a minute, of which a whole burst may be used at once.
pub(super) struct Minute {
    limit: NonZeroU32,
    limiter: RateLimiter<Bucket, InKey, Clock, StateInformationMiddleware>,
}

/// When the bucket will be full again, in nanoseconds since its limiter was made; 0 until it is first used.
///
/// governor finds state by a key that it hashes. Here the state is the key: whoever holds it has found it already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket(Cell<u64>);

impl Hash for Bucket {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.get().hash(hasher);
    }
}

/// Keeps no state of its own.
struct InKey;

impl StateStore for InKey {
    type Key = Bucket;

    fn measure_and_replace<T, F, E>(&self, bucket: &Bucket, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let state = bucket.0.get();
        let (outcome, full_at) = judge((state > 0).then(|| Nanos::new(state)))?;
        bucket.0.set(full_at.as_u64());
        Ok(outcome)
    }
}

impl Minute {
    /// `None` if the limit is 0: then there is no such window.
    pub(super) fn new(limit: u32, clock: &Clock) -> Option<Self> {
        let limit = NonZeroU32::new(limit)?;
        let limiter = RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(
            governor::Quota::per_minute(limit),
            InKey,
            clock.clone(),
        );
        Some(Self { limit, limiter: limiter.with_middleware() })
    }

    /// Takes a token, or says how long until there is one.
    pub(super) fn take(&self, bucket: &Bucket) -> Result<Quota, (Quota, Duration)> {
        match self.limiter.check_key(bucket) {
            Ok(state) => Ok(self.quota(state.remaining_burst_capacity())),
            Err(not_until) => {
                let now = governor::clock::Clock::now(self.limiter.clock());
                Err((self.quota(0), not_until.wait_time_from(now)))
            }
        }
    }

    /// What [`Minute::take`] would say now.
    pub(super) fn look(&self, bucket: &Bucket) -> Result<Quota, (Quota, Duration)> {
        self.take(&bucket.clone())
    }

    /// Whether the bucket is as good as new.
    pub(super) fn is_full(&self, bucket: &Bucket) -> bool {
        self.look(bucket).is_ok_and(|quota| quota.remaining + 1 == quota.limit)
    }

    fn quota(&self, remaining: u32) -> Quota {
        Quota::of_minute(self.limit.get(), remaining)
    }
}
