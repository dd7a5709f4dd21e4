//! Limits counted in this process.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use quick_cache::sync::Cache;

use super::bucket::{Bucket, Minute};
use super::{Counted, Decision, Window, bounded, get_or_insert};
use crate::account::{Plan, Plans};
use crate::clock::Clock;
use crate::id::KeyId;

/// What each key has used, as far as this process has seen.
pub(super) struct Local {
    clock: Clock,
    plans: [Limits; Plan::ALL.len()],
    /// Bounded: where more keys are active than fit, those that are seldom seen start afresh.
    usage: Cache<KeyId, Arc<Mutex<Usage>>>,
}

struct Limits {
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
    /// Which window since the epoch. It does not go back, so that a clock set back a little gives nothing away.
    index: u32,
    used: u32,
}

impl Local {
    pub(super) fn new(plans: &Plans, max_keys: usize, clock: Clock) -> Self {
        let plans = Plan::ALL.map(|plan| {
            let allowance = plans.of(plan);
            let minute = Minute::new(allowance.per_minute, &clock);
            Limits { minute, hour: allowance.per_hour, day: allowance.per_day }
        });
        Self { clock, plans, usage: bounded(max_keys) }
    }

    pub(super) fn check(&self, key: KeyId, plan: Plan) -> Decision {
        let now = self.clock.now();
        let usage = get_or_insert(&self.usage, &key, || Mutex::new(Usage::new(plan)));
        let mut usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.enter(plan, now);
        self.plans[plan as usize].judge(&mut usage, now)
    }

    /// Forgets keys whose windows are all full again: they are as good as new.
    pub(super) fn prune(&self) {
        let now = self.clock.now();
        self.usage.retain(|_, usage| {
            let usage = usage.lock().unwrap_or_else(PoisonError::into_inner);
            let minute = self.plans[usage.plan as usize].minute.as_ref();
            let minute_is_full = minute.is_none_or(|minute| minute.is_full(&usage.minute));
            let hour_is_over = usage.hour.index < Window::Hour.index(now);
            let day_is_over = usage.day.index < Window::Day.index(now);
            !(minute_is_full && hour_is_over && day_is_over)
        });
    }

    pub(super) fn tracked(&self) -> usize {
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
        self.hour.enter(Window::Hour.index(now));
        self.day.enter(Window::Day.index(now));
    }
}

impl Count {
    fn enter(&mut self, index: u32) {
        // One from further ahead than the next was counted by a clock that was wrong then.
        if index > self.index || index + 1 < self.index {
            *self = Self { index, used: 0 };
        }
    }
}

impl Limits {
    fn judge(&self, usage: &mut Usage, now: DateTime<Utc>) -> Decision {
        let is_full = self.counted(usage).into_iter().flatten().any(|counted| counted.is_full());
        // A look takes nothing: the token is only for a request that the other windows let through.
        let judge_minute = if is_full { Minute::look } else { Minute::take };
        let minute = self.minute.as_ref().map(|minute| judge_minute(minute, &usage.minute));
        let goes = !is_full && !matches!(minute, Some(Err(_)));
        if goes {
            usage.hour.used += 1;
            usage.day.used += 1;
        }
        Decision::of(goes, minute, self.counted(usage), now).expect("what refuses a request is one of its windows")
    }

    fn counted(&self, usage: &Usage) -> [Option<Counted>; 2] {
        let counted = |window, limit, count: Count| Counted::new(window, limit, count.index, count.used);
        [counted(Window::Hour, self.hour, usage.hour), counted(Window::Day, self.day, usage.day)]
    }
}
