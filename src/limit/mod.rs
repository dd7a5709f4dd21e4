//! May this key go on now, and if not, when? Counted in this process, or in Redis for all replicas together.
//!
//! It must not know of HTTP: it is given a key and a plan, and answers with numbers.

mod address;
mod bucket;
mod local;
mod redis_url;
mod shared;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;

pub use self::address::FailedKeys;
use self::local::Local;
pub use self::redis_url::{InvalidUrl, RedisSettings, RedisUrl};
use self::shared::Shared;
use crate::account::{Plan, Plans};
use crate::clock::Clock;
use crate::id::KeyId;

/// A span of time in which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// A token bucket: a burst of the whole limit, refilled evenly.
    Minute,
    /// A clock hour in UTC.
    Hour,
    /// A day in UTC.
    Day,
}

impl Window {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    pub fn seconds(self) -> u32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// Which of these windows since the epoch `now` is in.
    fn index(self, now: DateTime<Utc>) -> u32 {
        u32::try_from(now.timestamp() / i64::from(self.seconds())).unwrap_or_default()
    }

    fn until_end(self, index: u32, now: DateTime<Utc>) -> Duration {
        let end = (i64::from(index) + 1) * i64::from(self.seconds());
        let end = DateTime::from_timestamp(end, 0).unwrap_or(now);
        (end - now).to_std().unwrap_or_default()
    }
}

/// How one window stands after a request was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub window: Window,
    /// Requests per window.
    pub limit: u32,
    /// Requests that may still be made now.
    pub remaining: u32,
    /// Until the window is full again.
    pub reset_after: Duration,
}

impl Quota {
    /// Of a bucket of `limit` tokens with so many in it.
    fn of_minute(limit: u32, remaining: u32) -> Self {
        let missing = limit.saturating_sub(remaining);
        let reset_after = Duration::from_secs(Window::Minute.seconds().into()) * missing / limit;
        Self { window: Window::Minute, limit, remaining, reset_after }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// With the window that has the fewest requests left; `None` if the plan has no window at all.
    Go(Option<Quota>),
    /// With the window that makes the caller wait longest, and for how long.
    Wait(Quota, Duration),
}

impl Decision {
    /// From how each window stands now that the request was judged, and counted if it goes. `None` if it shall not go and no
    /// window says why.
    fn of(
        goes: bool,
        minute: Option<Result<Quota, (Quota, Duration)>>,
        counted: [Option<Counted>; 2],
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let counted = counted.into_iter().flatten();
        if goes {
            let quotas = minute.and_then(Result::ok).into_iter().chain(counted.map(|counted| counted.quota(now)));
            // Of two with as few left, the longer window is missed for longer.
            return Some(Self::Go(
                quotas.reduce(|fewest, next| if next.remaining > fewest.remaining { fewest } else { next }),
            ));
        }
        let full = counted.filter(Counted::is_full).map(|counted| counted.quota(now));
        let waits = full.map(|quota| (quota, quota.reset_after)).chain(minute.and_then(Result::err));
        let (quota, wait) = waits.reduce(|longest, next| if next.1 > longest.1 { next } else { longest })?;
        Some(Self::Wait(quota, wait))
    }
}

/// A clock window with its limit and what was counted in it.
#[derive(Clone, Copy)]
struct Counted {
    window: Window,
    limit: u32,
    /// Which of these windows since the epoch.
    index: u32,
    used: u32,
}

impl Counted {
    /// A limit of 0 is no window.
    fn new(window: Window, limit: u32, index: u32, used: u32) -> Option<Self> {
        (limit > 0).then_some(Self { window, limit, index, used })
    }

    fn is_full(&self) -> bool {
        self.used >= self.limit
    }

    fn quota(&self, now: DateTime<Utc>) -> Quota {
        let remaining = self.limit.saturating_sub(self.used);
        let reset_after = self.window.until_end(self.index, now);
        Quota { window: self.window, limit: self.limit, remaining, reset_after }
    }
}

/// The limits of every key.
///
/// All of a plan's windows or none: a request that one window refuses takes nothing from the others.
pub struct Limiter {
    local: Local,
    shared: Option<Shared>,
}

/// Who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// Each replica for itself, because nothing else is set.
    Alone,
    /// All replicas together.
    Together,
    /// Each replica for itself, because Redis cannot be asked.
    AloneForNow,
}

impl Limiter {
    /// `max_keys` bounds how many keys' usage is remembered at once.
    pub fn new(plans: &Plans, max_keys: usize, redis: Option<RedisSettings>, clock: Clock) -> Self {
        let shared = redis.map(|settings| Shared::new(settings, *plans, max_keys, clock.clone()));
        Self { local: Local::new(plans, max_keys, clock), shared }
    }

    /// Judges one request, and counts it if it may go on. It always has an answer, and soon: where Redis has none, this process
    /// counts.
    pub async fn check(&self, key: KeyId, plan: Plan) -> Decision {
        if let Some(shared) = &self.shared
            && let Some(decision) = shared.check(key, plan).await
        {
            return decision;
        }
        self.local.check(key, plan)
    }

    /// Keeps the connection to Redis, for as long as it is polled; without Redis it has nothing to do.
    pub async fn keep_linked(&self) {
        match &self.shared {
            Some(shared) => shared.keep_linked().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until Redis was looked for once: from then on limits are shared, if they can be. It takes two seconds at the most.
    pub async fn looked_for_redis(&self) {
        if let Some(shared) = &self.shared {
            shared.looked().await;
        }
    }

    /// Forgets what is as good as new.
    pub fn prune(&self) {
        self.local.prune();
        if let Some(shared) = &self.shared {
            shared.prune();
        }
    }

    /// How many keys' usage is remembered here.
    pub fn tracked(&self) -> usize {
        self.local.tracked()
    }

    pub fn counting(&self) -> Counting {
        match &self.shared {
            None => Counting::Alone,
            Some(shared) if shared.is_linked() => Counting::Together,
            Some(_) => Counting::AloneForNow,
        }
    }
}

/// A map of so many entries at the most; what is seldom used leaves first. It takes memory as it fills.
fn bounded<K: Eq + std::hash::Hash, V: Clone>(max_entries: usize) -> Cache<K, V> {
    const EXPECTED: usize = 1_000;
    Cache::with_weighter(EXPECTED.min(max_entries), max_entries as u64, UnitWeighter)
}

fn get_or_insert<K, V>(map: &Cache<K, Arc<V>>, key: &K, new: impl FnOnce() -> V) -> Arc<V>
where
    K: Eq + std::hash::Hash + Clone,
{
    let Ok(value) = map.get_or_insert_with(key, || Ok::<_, Infallible>(Arc::new(new())));
    value
}

#[cfg(test)]
mod tests;
