//! The two trials: more load than can be borne, from clients who wait and from clients who give up.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Times;
use super::watch::{Rests, Spent, Watch};
use crate::open_loop::{Log, Outcome, Pace, Record, Span, Stream, waits};
use crate::requests::request;
use crate::revocations::Waits;
use crate::service::Fleet;

const REVOCATIONS_PER_SECOND: u32 = 20;
const HEALTH_PER_SECOND: f64 = 10.0;
/// Enough that none of these waits for another.
const CONNECTIONS_BESIDE: usize = 64;
/// When clients give up who do so.
const PATIENCE: Duration = Duration::from_millis(100);
/// All begin together, when every connection is made.
const AHEAD: Duration = Duration::from_secs(2);
/// It is in pieces of this length that the wait is looked at after an overload.
const WINDOW: Duration = Duration::from_millis(500);
const TIMES_THE_BASELINE: f64 = 2.0;

/// What is asked beside the load that is too much.
pub(super) struct Beside {
    revocations: Stream,
    health: Stream,
    /// After it.
    calm: Stream,
}

/// What became of a load that was too much.
pub(super) struct Excess {
    pub(super) lasted: Duration,
    pub(super) per_second: f64,
    pub(super) connections: usize,
    pub(super) log: Log,
    pub(super) revocations: Log,
    pub(super) health: Log,
    pub(super) spent: Spent,
    /// Seconds until the wait is as usual again, without end if it is not while one looks.
    pub(super) back: f64,
}

/// What became of one whose clients close the connection.
pub(super) struct GivenUp {
    pub(super) log: Log,
    pub(super) rests: Rests,
    /// Keys made for clients that were gone; `None` where none are made.
    pub(super) keys_for_nobody: Option<i64>,
}

impl Beside {
    pub(super) fn new(fleet: &Fleet, revocations: Vec<Vec<u8>>, calm: Stream) -> Self {
        let beside = |addresses, requests, per_second| {
            let pace = Pace::PerSecond(per_second);
            Stream { pace, connections: CONNECTIONS_BESIDE, ..Stream::new(addresses, requests, 200) }
        };
        let health = ["/livez", "/readyz"].map(|path| request("GET", path, "none", "")).to_vec();
        Self {
            revocations: beside(fleet.addresses(false), revocations, f64::from(REVOCATIONS_PER_SECOND)),
            health: beside(fleet.addresses(true), health, HEALTH_PER_SECOND),
            calm,
        }
    }
}

/// So many are made for such a time, none of which is sent twice.
pub(super) fn revocations_within(time: Duration) -> usize {
    usize::try_from((time * REVOCATIONS_PER_SECOND).as_secs()).unwrap_or(usize::MAX).saturating_add(1)
}

pub(super) async fn overload(
    excess: Stream,
    beside: Beside,
    baseline: Waits,
    watch: &Watch<'_>,
    times: Times,
) -> anyhow::Result<Excess> {
    let (pace, connections, never) = (excess.pace, excess.connections, CancellationToken::new());
    let span = Span { from: Instant::now() + AHEAD, lasts: times.excess };
    let afterwards = Span { from: span.from + span.lasts, lasts: times.recovery };
    let excess = excess.start(span, &never).await?;
    let revocations = beside.revocations.start(span, &never).await?;
    let health = beside.health.start(span, &never).await?;
    let calm = beside.calm.start(afterwards, &never).await?;
    sleep_until(span.from).await;
    let spent = watch.during(span.lasts).await?;
    let (log, revocations, health) = (excess.end().await?, revocations.end().await?, health.end().await?);
    let back = back(&calm.end().await?, baseline.p99 * TIMES_THE_BASELINE).unwrap_or(f64::INFINITY);
    let per_second = match pace {
        Pace::Closed => 0.0,
        Pace::PerSecond(rate) => rate,
    };
    Ok(Excess { lasted: span.lasts, per_second, connections, log, revocations, health, spent, back })
}

/// Seconds until the end of the first piece in which all but one in a hundred requests wait so many milliseconds at the most.
fn back(afterwards: &Log, at_most_millis: f64) -> Option<f64> {
    let piece_of = |record: &Record| record.due / u64::try_from(WINDOW.as_micros()).unwrap_or(u64::MAX);
    let last = afterwards.records.iter().map(piece_of).max()?;
    let is_usual = |piece: &u64| {
        let records = afterwards.records.iter().filter(|record| piece_of(record) == *piece);
        // Who has no good answer waits for ever.
        let waited = records.map(|record| if record.outcome == Outcome::Good { record.waited } else { u32::MAX });
        waits(waited).is_some_and(|waits| waits.p99 <= at_most_millis)
    };
    let piece = (0..=last).find(is_usual)?;
    Some((WINDOW * u32::try_from(piece + 1).ok()?).as_secs_f64())
}

pub(super) async fn give_up(excess: Stream, watch: &Watch<'_>, times: Times) -> anyhow::Result<GivenUp> {
    let span = Span { from: Instant::now() + AHEAD, lasts: times.giving_up };
    let running = Stream { patience: PATIENCE, ..excess }.start(span, &CancellationToken::new()).await?;
    let log = running.end().await?;
    Ok(GivenUp { log, rests: watch.rest().await?, keys_for_nobody: None })
}
