//! May this key go on now, and if not, when? Counted in this process.
//!
//! It must not know of HTTP: it is given a key and a plan, and answers with numbers.

mod address;
mod bucket;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;

pub use self::address::FailedKeys;
use self::bucket::{Bucket, Minute};
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// With the window that has the fewest requests left; `None` if the plan has no window at all.
    Go(Option<Quota>),
    /// With the window that makes the caller wait longest, and for how long.
    Wait(Quota, Duration),
}

/// The limits of every key, counted in this process.
///
/// All of a plan's windows or none: a request that one window refuses takes nothing from the others.
pub struct Limiter {
    clock: Clock,
    plans: [PlanLimits; Plan::ALL.len()],
    /// Bounded: where more keys are active than fit, those that are seldom seen start afresh.
    usage: Cache<KeyId, Arc<Mutex<Usage>>>,
}

struct PlanLimits {
    minute: Option<Minute>,
    hour: u32,
    day: u32,
}

struct Usage {
    plan: Plan,
    minute: Bucket,
    hour: Count,
    day: Count,
}

/// Requests counted in one clock window.
#[derive(Clone, Copy, Default)]
struct Count {
    /// Which window since the epoch; it never goes back, so that a clock set back gives nothing away.
    index: i64,
    used: u32,
}

impl Limiter {
    /// `max_keys` bounds how many keys' usage is remembered at once.
    pub fn new(plans: &Plans, max_keys: usize, clock: Clock) -> Self {
        let plans = Plan::ALL.map(|plan| {
            let allowance = plans.of(plan);
            PlanLimits {
                minute: Minute::new(allowance.per_minute, &clock),
                hour: allowance.per_hour,
                day: allowance.per_day,
            }
        });
        Self { clock, plans, usage: bounded(max_keys) }
    }

    /// Judges one request, and counts it if it may go on.
    pub fn check(&self, key: KeyId, plan: Plan) -> Decision {
        let now = self.clock.now();
        let limits = &self.plans[plan as usize];
        let usage = get_or_insert(&self.usage, &key, || Mutex::new(Usage::new(plan)));
        let mut usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.enter(plan, now);
        limits.judge(&mut usage, now)
    }

    /// Forgets keys whose windows are all full again: they are as good as new.
    pub fn prune(&self) {
        let now = self.clock.now();
        self.usage.retain(|_, usage| {
            let usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
            let minute = self.plans[usage.plan as usize].minute.as_ref();
            let minute_is_full = minute.is_none_or(|minute| minute.is_full(&usage.minute));
            let hour_is_over = usage.hour.index < index(Window::Hour, now);
            let day_is_over = usage.day.index < index(Window::Day, now);
            !(minute_is_full && hour_is_over && day_is_over)
        });
    }

    /// How many keys' usage is remembered.
    pub fn tracked(&self) -> usize {
        self.usage.len()
    }
}

impl Usage {
    fn new(plan: Plan) -> Self {
        Self { plan, minute: Bucket::default(), hour: Count::default(), day: Count::default() }
    }

    /// Moves on to the plan and the clock windows of this request.
    fn enter(&mut self, plan: Plan, now: DateTime<Utc>) {
        if self.plan != plan {
            // A bucket is measured against its plan's limit; a key that changes its plan gets a full one.
            self.plan = plan;
            self.minute = Bucket::default();
        }
        self.hour.enter(index(Window::Hour, now));
        self.day.enter(index(Window::Day, now));
    }
}

impl Count {
    fn enter(&mut self, index: i64) {
        if index > self.index {
            *self = Self { index, used: 0 };
        }
    }
}

impl PlanLimits {
    fn judge(&self, usage: &mut Usage, now: DateTime<Utc>) -> Decision {
        let counted = [(Window::Hour, self.hour, &mut usage.hour), (Window::Day, self.day, &mut usage.day)];
        let counted = counted.map(|(window, limit, count)| (limit > 0).then_some(Counted { window, limit, count }));

        let mut longest = None;
        for counted in counted.iter().flatten().filter(|counted| counted.is_full()) {
            let quota = counted.quota(now);
            keep_longest(&mut longest, quota, quota.reset_after);
        }
        // A look takes nothing: the token is only for a request that the other windows let through.
        let judge_minute = if longest.is_some() { Minute::look } else { Minute::take };
        let mut fewest = None;
        match self.minute.as_ref().map(|minute| judge_minute(minute, &usage.minute)) {
            Some(Ok(quota)) => fewest = Some(quota),
            Some(Err((quota, wait))) => keep_longest(&mut longest, quota, wait),
            None => (),
        }
        if let Some((quota, wait)) = longest {
            return Decision::Wait(quota, wait);
        }
        for counted in counted.into_iter().flatten() {
            counted.count.used += 1;
            let quota = counted.quota(now);
            if fewest.is_none_or(|fewest: Quota| quota.remaining <= fewest.remaining) {
                fewest = Some(quota);
            }
        }
        Decision::Go(fewest)
    }
}

/// A clock window with its limit and what it has counted.
struct Counted<'a> {
    window: Window,
    limit: u32,
    count: &'a mut Count,
}

impl Counted<'_> {
    fn is_full(&self) -> bool {
        self.count.used >= self.limit
    }

    fn quota(&self, now: DateTime<Utc>) -> Quota {
        Quota {
            window: self.window,
            limit: self.limit,
            remaining: self.limit.saturating_sub(self.count.used),
            reset_after: until_end(self.window, self.count.index, now),
        }
    }
}

fn keep_longest(longest: &mut Option<(Quota, Duration)>, quota: Quota, wait: Duration) {
    if longest.is_none_or(|(_, longest)| longest < wait) {
        *longest = Some((quota, wait));
    }
}

fn index(window: Window, now: DateTime<Utc>) -> i64 {
    now.timestamp().div_euclid(window.seconds().into())
}

fn until_end(window: Window, index: i64, now: DateTime<Utc>) -> Duration {
    let end = DateTime::from_timestamp((index + 1) * i64::from(window.seconds()), 0).unwrap_or(now);
    (end - now).to_std().unwrap_or_default()
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
