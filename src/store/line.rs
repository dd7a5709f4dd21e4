//! The lines of requests that wait for a connection. They take nobody who would stand in them for too long.
//!
//! When more is asked than a database can answer, a queue without bound answers everybody late, and in the end nobody in time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Result, StoreError};

/// Whoever would have to wait for longer than this is refused at once.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Whoever stands in line leaves it after this time, whatever was expected.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of ten connections three are never given to those who stand in the common line: one for each of the other lines, and one for the
/// service's own work. Of fewer than four, none.
const KEPT: (usize, usize) = (3, 10);
/// The pace of the line is judged over the last so much, and not sooner than after half of it: a burst that comes while the
/// database takes a breath shall not be refused.
const JUDGED_OVER: Duration = Duration::from_secs(1);

/// The lines before the connections of one pool.
pub(super) struct Lines {
    common: Line,
    knocking: Line,
    reserved: Line,
}

/// Where requests wait for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Nowhere: it is the service's own work, of which there is never much at once.
    None,
    Common,
    /// In a line for what the reserved requests of strangers need: anybody may make any number of these.
    Knocking,
    /// In a line for reserved requests whose key has been judged.
    Reserved,
}

impl Lines {
    pub(super) fn over(connections: usize) -> Self {
        let kept = connections * KEPT.0 / KEPT.1;
        Self { common: Line::new(connections - kept), knocking: Line::new(1), reserved: Line::new(1) }
    }

    /// A place, where one is needed.
    pub(super) async fn place(&self, queue: Queue) -> Result<Option<Place>> {
        let own = match queue {
            Queue::None => return Ok(None),
            Queue::Common => return self.common.enter().await.map(Some),
            Queue::Knocking => &self.knocking,
            Queue::Reserved => &self.reserved,
        };
        match self.common.place_at_once() {
            Some(place) => Ok(Some(place)),
            None => own.enter().await.map(Some),
        }
    }

    /// How many wait, and how many were refused so far.
    pub(super) fn usage(&self) -> (usize, u64) {
        let usage = [&self.common, &self.knocking, &self.reserved].map(Line::usage);
        usage.iter().fold((0, 0), |(waiting, refused), line| (waiting + line.0 as usize, refused + line.1))
    }
}

/// Those who may use connections at once, and those who wait for them.
struct Line {
    places: Arc<Semaphore>,
    backlog: Mutex<Backlog>,
}

/// The right to use one of the connections.
pub(super) type Place = OwnedSemaphorePermit;

/// Those who wait, and how fast they are served.
#[derive(Default)]
struct Backlog {
    waiting: u32,
    /// How many were served since this instant, from which on somebody has waited all the time.
    served: u32,
    since: Option<Instant>,
    refused: u64,
}

impl Line {
    fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), backlog: Mutex::default() }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], at once, if that would take too long.
    async fn enter(&self) -> Result<Place> {
        if let Some(place) = self.place_at_once() {
            return Ok(place);
        }
        let waiter = Waiter::join(self)?;
        let Ok(place) = timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await else {
            self.backlog().refused += 1;
            return Err(StoreError::Overloaded);
        };
        waiter.serve();
        Ok(place.expect("nobody closes the semaphore"))
    }

    /// A place, if there is one and nobody waits for it.
    fn place_at_once(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// How many wait, and how many were refused so far.
    fn usage(&self) -> (u32, u64) {
        let backlog = self.backlog();
        (backlog.waiting, backlog.refused)
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backlog {
    /// How long whoever comes now would wait, judged by those before.
    fn expected_wait(&self, now: Instant) -> Duration {
        let Some(since) = self.since.filter(|_| self.waiting > 0) else { return Duration::ZERO };
        let elapsed = now.saturating_duration_since(since);
        match self.served {
            // All that is known is for how long.
            0 => elapsed,
            _ if elapsed < JUDGED_OVER / 2 => Duration::ZERO,
            served => elapsed.mul_f64(f64::from(self.waiting + 1) / f64::from(served)),
        }
    }

    fn join(&mut self, now: Instant) -> bool {
        if self.expected_wait(now) > LONGEST_WAIT {
            self.refused += 1;
            return false;
        }
        if self.waiting == 0 {
            (self.since, self.served) = (Some(now), 0);
        }
        self.waiting += 1;
        true
    }

    fn leave(&mut self, now: Instant, served: bool) {
        self.waiting -= 1;
        self.served += u32::from(served);
        let elapsed = self.since.map(|since| now.saturating_duration_since(since)).unwrap_or_default();
        if elapsed > JUDGED_OVER {
            // Half as many in half the time: the pace stays, and what happens from now on counts for more.
            self.since = now.checked_sub(elapsed / 2);
            self.served /= 2;
        }
    }
}

/// Somebody in line, who leaves it when the request goes away as well.
struct Waiter<'a> {
    line: &'a Line,
    served: bool,
}

impl<'a> Waiter<'a> {
    fn join(line: &'a Line) -> Result<Self> {
        if line.backlog().join(Instant::now()) { Ok(Self { line, served: false }) } else { Err(StoreError::Overloaded) }
    }

    fn serve(mut self) {
        self.served = true;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.line.backlog().leave(Instant::now(), self.served);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    /// Plays a line that serves one each `service` ticks and is joined by `arrivals` at each tick; the longest wait in ticks of
    /// anybody who was let in, how many were served, and how many refused.
    fn play(service: u32, arrivals: &[u32]) -> (u32, u32, u32) {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        let mut line = std::collections::VecDeque::new();
        let (mut longest, mut served, mut refused) = (0, 0, 0);
        for tick in 0..u32::try_from(arrivals.len()).unwrap() * 3 {
            let now = start + TICK * tick;
            for _ in 0..arrivals.get(tick as usize).copied().unwrap_or(0) {
                if backlog.join(now) { line.push_back(tick) } else { refused += 1 }
            }
            if tick % service == 0
                && let Some(joined) = line.pop_front()
            {
                backlog.leave(now, true);
                longest = longest.max(tick - joined);
                served += 1;
            }
        }
        (longest, served, refused)
    }

    #[test]
    fn a_burst_that_is_served_in_time_is_taken_whole() {
        let mut arrivals = vec![0; 500];
        arrivals[0] = 400;
        let (longest, served, refused) = play(1, &arrivals);
        assert_eq!((served, refused), (400, 0));
        assert!(longest <= 400);
    }

    #[test]
    fn while_nobody_is_served_the_line_stays_short_in_time() {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        assert!(backlog.join(start));
        assert!(backlog.join(start + LONGEST_WAIT));
        assert!(!backlog.join(start + LONGEST_WAIT + TICK));
        backlog.leave(start + LONGEST_WAIT * 2, false);
        backlog.leave(start + LONGEST_WAIT * 2, false);
        assert!(backlog.join(start + LONGEST_WAIT * 2), "whoever finds nobody in line may try");
    }

    proptest! {
        #[test]
        fn under_three_times_the_load_nobody_waits_long_and_the_database_never_rests(
            service in 1_u32..5, each in 3_u32..6,
        ) {
            const TICKS: u32 = 4_000;
            // `each` come in the time in which one is served.
            let arrivals: Vec<u32> = (0..TICKS).map(|tick| if tick % service == 0 { each } else { 0 }).collect();
            let (longest, served, refused) = play(service, &arrivals);
            // In the half second before the pace is judged, so many come as are served in three.
            prop_assert!(longest <= 3_000, "somebody waited for {longest} ms");
            prop_assert!(served >= TICKS / service, "{served} were served in the time of {}", TICKS / service);
            prop_assert!(refused > TICKS / service, "{refused} were refused");
        }
    }
}
