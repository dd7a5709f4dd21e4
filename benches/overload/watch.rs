//! What the processes cost while something goes on, and when they have come to rest after it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::postgres::Postgres;
use crate::process::cpu_of;
use crate::service::Fleet;

const PAUSE: Duration = Duration::from_millis(100);
/// A process is at rest if it takes no more than a twentieth of a processor for so many pauses.
const RESTING_PAUSES: usize = 5;
const RESTING_SHARE: f64 = 0.05;
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Watch<'a> {
    fleet: &'a Fleet,
    /// `None` if the database is part of the service.
    postgres: Option<&'a Postgres>,
}

/// Processors that were kept busy, and memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    pub(super) service: f64,
    pub(super) database: Option<f64>,
    /// The load's own; it is made by one thread, so that it has no more to give than one.
    pub(super) load: f64,
    /// Resident bytes of the service before, and the most there were.
    pub(super) memory_before: u64,
    pub(super) memory: u64,
}

/// CPU time until now.
#[derive(Clone, Copy)]
struct Clocks {
    service: Duration,
    database: Option<Duration>,
    load: Duration,
}

/// Seconds until each takes no processor any more, without end if it does for longer than one waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rests {
    pub(super) service: f64,
    pub(super) database: Option<f64>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(fleet: &'a Fleet, postgres: Option<&'a Postgres>) -> Self {
        Self { fleet, postgres }
    }

    fn clocks(&self) -> anyhow::Result<Clocks> {
        let database = match self.postgres {
            Some(postgres) => postgres.cpu()?,
            None => None,
        };
        Ok(Clocks { service: self.fleet.cpu()?, database, load: cpu_of(std::process::id())? })
    }

    /// Looks on for a time.
    pub(super) async fn during(&self, time: Duration) -> anyhow::Result<Spent> {
        let (started, before, memory_before) = (Instant::now(), self.clocks()?, self.fleet.memory()?);
        let mut memory = memory_before;
        while started.elapsed() < time {
            sleep(PAUSE).await;
            memory = memory.max(self.fleet.memory()?);
        }
        let (took, after) = (started.elapsed(), self.clocks()?);
        let share = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / took.as_secs_f64();
        Ok(Spent {
            service: share(before.service, after.service),
            database: before.database.zip(after.database).map(|(before, after)| share(before, after)),
            load: share(before.load, after.load),
            memory_before,
            memory,
        })
    }

    /// Waits until nothing is done any more.
    pub(super) async fn rest(&self) -> anyhow::Result<Rests> {
        let started = Instant::now();
        let mut seen = vec![(Duration::ZERO, self.clocks()?)];
        let mut rests = Rests { service: f64::INFINITY, database: seen[0].1.database.map(|_| f64::INFINITY) };
        let goes_on = |rests: &Rests| rests.service.is_infinite() || rests.database.is_some_and(f64::is_infinite);
        while started.elapsed() < PATIENCE && goes_on(&rests) {
            sleep(PAUSE).await;
            let (now, clocks) = (started.elapsed(), self.clocks()?);
            seen.push((now, clocks));
            let Some((then, before)) = seen.len().checked_sub(RESTING_PAUSES + 1).map(|index| seen[index]) else {
                continue;
            };
            // The first moment after which hardly anything was done for a while.
            let note = |rests: &mut f64, before: Duration, after: Duration| {
                if rests.is_infinite() && after.saturating_sub(before) <= (now - then).mul_f64(RESTING_SHARE) {
                    *rests = then.as_secs_f64();
                }
            };
            note(&mut rests.service, before.service, clocks.service);
            if let (Some(rests), Some((before, after))) = (&mut rests.database, before.database.zip(clocks.database)) {
                note(rests, before, after);
            }
        }
        Ok(rests)
    }
}
