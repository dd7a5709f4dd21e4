//! Saying seldom what would be said very often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something that would be said for each of many requests is said so often at the most.
const SELDOM: Duration = Duration::from_secs(1);

/// Lets one line through from time to time, and counts those that it keeps back.
pub(crate) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Whether it is time for a line; if so, how many were kept back before it.
    pub(crate) fn turn(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unsaid) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < SELDOM) {
            *unsaid += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(unsaid))
    }
}
