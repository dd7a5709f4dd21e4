//! An open load: each request is due at a moment that was fixed before, whatever has become of those before it, and its wait
//! counts from then on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::revocations::Waits;

/// A request that could not even be begun so long after it was due is not sent any more.
const LATEST: Duration = Duration::from_secs(1);
/// Whoever is not said to give up sooner waits so long for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client that cannot connect, and has no pace to keep, tries again after this.
const RETRY: Duration = Duration::from_millis(10);

/// What is sent where, how often, and by what kind of client.
#[derive(Clone)]
pub(crate) struct Stream {
    /// Each connection is to one of them, in turn.
    pub(crate) addresses: Vec<String>,
    /// Sent in turn, again and again.
    pub(crate) requests: Arc<Vec<Vec<u8>>>,
    /// That of a good answer.
    pub(crate) status: u16,
    pub(crate) pace: Pace,
    pub(crate) connections: usize,
    /// Whether a connection is used again after an answer.
    pub(crate) keeps: bool,
    /// Who has no answer after this closes the connection.
    pub(crate) patience: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// The next request follows the last answer: as much as the server takes.
    Closed,
    PerSecond(f64),
}

/// From when on, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: Instant,
    pub(crate) lasts: Duration,
}

impl Span {
    pub(crate) fn now(lasts: Duration) -> Self {
        Self { from: Instant::now(), lasts }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The expected status.
    Good,
    /// 503 or 429 that says when to come back.
    Shed,
    /// Any other answer.
    Status(u16),
    /// The client had no answer within its patience.
    GivenUp,
    /// The connection was refused, or closed in the middle of an exchange.
    Broken,
    /// It was due, and there was no connection free or no time to send it within a second.
    Unsent,
}

/// What became of one request; microseconds, of which a run of hours has room in these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// After the beginning of the stream.
    pub(crate) due: u64,
    /// From when it was due to the end of the answer.
    pub(crate) waited: u32,
    /// From when it was sent.
    pub(crate) served: u32,
    pub(crate) outcome: Outcome,
}

/// A stream that flows; it ends when this is dropped.
pub(crate) struct Running {
    shared: Arc<Shared>,
    connections: JoinSet<()>,
}

struct Shared {
    stream: Stream,
    span: Span,
    next: AtomicU64,
    stop: CancellationToken,
    log: Mutex<Log>,
}

/// What became of the requests, and the first answer of those that nobody wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    pub(crate) complaint: Option<String>,
}

impl Stream {
    /// Kept connections of patient clients.
    pub(crate) fn new(addresses: Vec<String>, requests: Vec<Vec<u8>>, status: u16) -> Self {
        let requests = Arc::new(requests);
        Self { addresses, requests, status, pace: Pace::Closed, connections: 1, keeps: true, patience: PATIENCE }
    }

    /// Makes the connections and lets the stream begin at its time, to end early when it is told to stop.
    pub(crate) async fn start(self, span: Span, stop: &CancellationToken) -> anyhow::Result<Running> {
        let mut clients = Vec::new();
        for address in self.addresses.iter().cycle().take(self.connections) {
            let mut client = Client::new(address.clone());
            if self.keeps {
                client.connect().await.with_context(|| format!("connecting to {address}"))?;
            }
            clients.push(client);
        }
        let (next, log) = (AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { stream: self, span, next, stop: stop.clone(), log });
        let mut connections = JoinSet::new();
        for client in clients {
            connections.spawn(work(client, Arc::clone(&shared)));
        }
        Ok(Running { shared, connections })
    }

    /// The same, to its end.
    pub(crate) async fn run(self, span: Span) -> anyhow::Result<Log> {
        self.start(span, &CancellationToken::new()).await?.end().await
    }
}

impl Running {
    /// Waits until the time is over and every request has its outcome.
    pub(crate) async fn end(mut self) -> anyhow::Result<Log> {
        while let Some(ended) = self.connections.join_next().await {
            ended?;
        }
        Ok(std::mem::take(&mut *self.shared.log()))
    }

    /// What became of the requests until now.
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log()
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next request and when it is due; `None` at the end.
    fn take(&self) -> Option<(usize, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "no run sends 2⁵² requests")]
        let due = match self.stream.pace {
            Pace::Closed => Instant::now().max(self.span.from),
            Pace::PerSecond(rate) => self.span.from + Duration::from_secs_f64(number as f64 / rate),
        };
        let is_over = due >= self.span.from + self.span.lasts || self.stop.is_cancelled();
        (!is_over).then(|| (usize::try_from(number).unwrap_or_default(), due))
    }
}

async fn work(mut client: Client, shared: Arc<Shared>) {
    let Shared { stream, span, stop, .. } = &*shared;
    while let Some((number, due)) = shared.take() {
        if due > Instant::now() {
            tokio::select! {
                () = sleep_until(due) => {}
                () = stop.cancelled() => break,
            }
        }
        let sent = Instant::now();
        let outcome = if sent > due + LATEST { Outcome::Unsent } else { exchange(&mut client, &shared, number).await };
        let (waited, served) = (micros(due.elapsed()), micros(sent.elapsed()));
        let due = u64::try_from((due - span.from).as_micros()).unwrap_or(u64::MAX);
        shared.log().records.push(Record { due, waited, served, outcome });
        if outcome == Outcome::Broken && matches!(stream.pace, Pace::Closed) {
            sleep(RETRY).await;
        }
    }
}

async fn exchange(client: &mut Client, shared: &Shared, number: usize) -> Outcome {
    let Stream { requests, status, keeps, patience, .. } = &shared.stream;
    let exchanged = timeout(*patience, client.exchange(&requests[number % requests.len()], *keeps)).await;
    let (outcome, complaint) = match exchanged {
        Err(_) => return Outcome::GivenUp,
        Ok(Ok(answer)) if answer.status == *status => return Outcome::Good,
        Ok(Ok(answer)) if answer.sheds() => return Outcome::Shed,
        Ok(Ok(answer)) => (Outcome::Status(answer.status), String::from_utf8_lossy(answer.body).trim().to_owned()),
        Ok(Err(error)) => (Outcome::Broken, format!("{error:#}")),
    };
    shared.log().complaint.get_or_insert_with(|| format!("{outcome:?}: {complaint}"));
    outcome
}

pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

impl Log {
    pub(crate) fn count(&self, is_meant: impl Fn(Outcome) -> bool) -> usize {
        self.records.iter().filter(|record| is_meant(record.outcome)).count()
    }

    /// Good answers that were there within so much time from the beginning.
    #[expect(clippy::cast_precision_loss, reason = "no run sends 2⁵² requests")]
    pub(crate) fn goodput(&self, time: Duration) -> f64 {
        let is_in_time = |record: &&Record| u128::from(record.due) + u128::from(record.waited) <= time.as_micros();
        let good = self.records.iter().filter(|record| record.outcome == Outcome::Good);
        good.filter(is_in_time).count() as f64 / time.as_secs_f64()
    }

    /// How long requests with this outcome waited since they were due.
    pub(crate) fn waits(&self, outcome: Outcome) -> Option<Waits> {
        waits(self.records.iter().filter(|record| record.outcome == outcome).map(|record| record.waited))
    }

    /// The same since they were sent, without what the load itself was late by.
    pub(crate) fn served(&self, outcome: Outcome) -> Option<Waits> {
        waits(self.records.iter().filter(|record| record.outcome == outcome).map(|record| record.served))
    }
}

/// `None` of no microseconds at all.
pub(crate) fn waits(micros: impl Iterator<Item = u32>) -> Option<Waits> {
    let mut micros: Vec<u32> = micros.collect();
    micros.sort_unstable();
    let greatest = f64::from(*micros.last()?) / 1e3;
    let of = |percent: usize| f64::from(micros[(micros.len() * percent).div_ceil(100).max(1) - 1]) / 1e3;
    Some(Waits { p50: of(50), p99: of(99), greatest })
}
