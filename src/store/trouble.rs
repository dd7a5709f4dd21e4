//! What the log says of a database that fails: the cause, once, and not with each request; and that it is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Result, StoreError};

/// A cause that lasts is told again after this time.
const REPEATED_AFTER: Duration = Duration::from_mins(1);
/// Another cause is told at once, but no two of them take turns in the log any faster.
const PAUSE: Duration = Duration::from_secs(1);
/// It is over when something succeeds so long after the last failure: on a disk that is almost full some changes still fit.
const OVER_AFTER: Duration = Duration::from_secs(3);

/// Of one pool of connections.
pub(super) struct Trouble {
    begins: &'static str,
    ends: &'static str,
    is_there: AtomicBool,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    failed: Option<Instant>,
    /// The causes that were told, and when.
    told: Vec<(String, Instant)>,
}

impl Trouble {
    /// With the words for its beginning and its end.
    pub(super) fn new(begins: &'static str, ends: &'static str) -> Self {
        Self { begins, ends, is_there: AtomicBool::new(false), last: Mutex::default() }
    }

    pub(super) fn note<T>(&self, outcome: &Result<T>) {
        match outcome {
            Err(StoreError::Unavailable(cause)) => self.begin(cause),
            Ok(_) if self.is_there.load(Ordering::Relaxed) => self.end(),
            _ => (),
        }
    }

    fn begin(&self, cause: &str) {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.failed = Some(now);
        last.told.retain(|(_, at)| now - *at < REPEATED_AFTER);
        let is_known = last.told.iter().any(|(told, at)| told == cause || now - *at < PAUSE);
        if !is_known {
            tracing::warn!(cause, "{}", self.begins);
            last.told.push((cause.to_owned(), now));
        }
        self.is_there.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.failed.is_some_and(|failed| failed.elapsed() >= OVER_AFTER) {
            tracing::info!("{}", self.ends);
            *last = Last::default();
            self.is_there.store(false, Ordering::Relaxed);
        }
    }
}
