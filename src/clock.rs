//! The only reader of time; everything else is given an instant or a [`Clock`], so that a test can hold it still.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use governor::nanos::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// Wall time and monotonic time from one source.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { started: Duration },
    Held(Arc<Held>),
}

#[derive(Debug)]
struct Held {
    start: DateTime<Utc>,
    elapsed_nanos: AtomicU64,
    /// How far the wall clock was set forward or back, in milliseconds.
    stepped_millis: AtomicI64,
}

impl Clock {
    /// The machine's own clocks.
    pub fn system() -> Self {
        Self(Source::System { started: since_boot() })
    }

    /// A clock that stands at `start` until it is advanced.
    pub fn held(start: DateTime<Utc>) -> Self {
        Self(Source::Held(Arc::new(Held {
            start,
            elapsed_nanos: AtomicU64::default(),
            stepped_millis: AtomicI64::default(),
        })))
    }

    /// Moves a held clock, and all its clones, forward.
    ///
    /// # Panics
    /// On the system clock, which nobody here can move.
    pub fn advance(&self, by: Duration) {
        self.hands().elapsed_nanos.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Sets the wall time of a held clock forward or back, as an operator might; no time passes.
    ///
    /// # Panics
    /// On the system clock, which nobody here can set.
    pub fn step(&self, millis: i64) {
        self.hands().stepped_millis.fetch_add(millis, Ordering::SeqCst);
    }

    fn hands(&self) -> &Held {
        match &self.0 {
            Source::Held(held) => held,
            Source::System { .. } => panic!("only a held clock can be moved"),
        }
    }

    /// The time in UTC, cut to the millisecond: what is judged is then exactly what is shown and stored.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may ask the system")]
    pub fn now(&self) -> DateTime<Utc> {
        let now = match &self.0 {
            Source::System { .. } => Utc::now(),
            Source::Held(held) => {
                held.start + self.elapsed() + TimeDelta::milliseconds(held.stepped_millis.load(Ordering::SeqCst))
            }
        };
        now.trunc_subsecs(3)
    }

    /// Monotonic time since this clock was made, time in which the machine slept included: a machine that wakes up must find
    /// its leases gone.
    pub fn elapsed(&self) -> Duration {
        match &self.0 {
            Source::System { started } => since_boot().saturating_sub(*started),
            Source::Held(held) => Duration::from_nanos(held.elapsed_nanos.load(Ordering::SeqCst)),
        }
    }
}

impl governor::clock::Clock for Clock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(nanos(self.elapsed()))
    }
}

/// Where the system has it, the clock that goes on while the machine sleeps.
fn since_boot() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;
    let time = clock_gettime(CLOCK);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// 2⁶⁴ nanoseconds are 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
