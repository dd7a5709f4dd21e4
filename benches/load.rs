//! The load: kept connections, each of which sends its next request when the last one is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Connections open at once, unless said.
pub(crate) const CONNECTIONS: usize = 32;
/// No answer is longer.
const BUFFER_BYTES: usize = 64 * 1024;
/// In times as long as it should be.
const LONGEST_WINDOW: u32 = 20;
const LENGTH: &[u8] = b"content-length:";

/// What is sent where, and what must come back.
pub(crate) struct Load {
    /// Each connection is to one of them, in turn.
    pub(crate) addresses: Vec<String>,
    pub(crate) requests: Vec<Vec<u8>>,
    /// Whether each request may be sent but once; else they are sent in turn, again and again.
    pub(crate) once: bool,
    pub(crate) status: u16,
    pub(crate) connections: usize,
}

/// What was answered between two moments.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) requests: u64,
    pub(crate) took: Duration,
    /// How long each of these requests waited, the shortest first.
    pub(crate) waits: Vec<Duration>,
}

struct Shared {
    load: Arc<Load>,
    next: AtomicUsize,
    /// The number of the request that is not sent any more.
    end: usize,
    answered: AtomicU64,
    measures: AtomicBool,
    stop: AtomicBool,
}

impl Load {
    /// Sends the first requests once each, so that the server has seen them.
    pub(crate) async fn send_once(self: &Arc<Self>, at_most: usize) -> anyhow::Result<()> {
        let (_, connections) = self.connect(0, self.requests.len().min(at_most)).await?;
        join(connections).await.map(drop)
    }

    /// Sends for `warm_up` and then for `measured`, or until every request was sent. `mark` is called at the beginning and
    /// at the end of what is measured.
    ///
    /// # Errors
    /// On any answer with another status than the expected one.
    pub(crate) async fn run<T>(
        self: &Arc<Self>,
        warm_up: Duration,
        measured: Duration,
        mark: impl Fn() -> anyhow::Result<T>,
    ) -> anyhow::Result<(Answered, T, T)> {
        // Of more keys than are sent in one run, another part in each.
        let (start, end) =
            if self.once { (0, self.requests.len()) } else { (rand::random_range(0..self.requests.len()), usize::MAX) };
        let (shared, mut connections) = self.connect(start, end).await?;
        let mut waits = wait(&mut connections, warm_up).await?;
        shared.measures.store(true, Ordering::Relaxed);
        let (started, before, first) = (Instant::now(), shared.answered.load(Ordering::Relaxed), mark()?);
        let mut after = before;
        // A window in which nothing is answered measures nothing; on a slow machine a short one may need to be longer.
        for _ in 0..LONGEST_WINDOW {
            waits.extend(wait(&mut connections, measured).await?);
            after = shared.answered.load(Ordering::Relaxed);
            if after > before {
                break;
            }
        }
        let (took, second) = (started.elapsed(), mark()?);
        shared.measures.store(false, Ordering::Relaxed);
        shared.stop.store(true, Ordering::Relaxed);
        waits.extend(join(connections).await?);
        if after == before {
            bail!("nothing was answered within {took:?}");
        }
        waits.sort_unstable();
        Ok((Answered { requests: after - before, took, waits }, first, second))
    }

    async fn connect(
        self: &Arc<Self>,
        start: usize,
        end: usize,
    ) -> anyhow::Result<(Arc<Shared>, JoinSet<anyhow::Result<Vec<Duration>>>)> {
        let shared = Arc::new(Shared {
            load: Arc::clone(self),
            next: AtomicUsize::new(start),
            end,
            answered: AtomicU64::new(0),
            measures: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut connections = JoinSet::new();
        for address in self.addresses.iter().cycle().take(self.connections) {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connections.spawn(exchange(stream, Arc::clone(&shared)));
        }
        Ok((shared, connections))
    }
}

impl Answered {
    /// How long the given share of the requests waited at the most.
    pub(crate) fn wait_of(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "it is an index"
        )]
        let index = ((self.waits.len() as f64 * share).ceil() as usize).saturating_sub(1);
        self.waits.get(index).copied().unwrap_or_default()
    }
}

/// Waits for the time to pass, or for the first connection to run out of requests.
async fn wait(
    connections: &mut JoinSet<anyhow::Result<Vec<Duration>>>,
    time: Duration,
) -> anyhow::Result<Vec<Duration>> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(Vec::new()),
        Some(ended) = connections.join_next() => ended?,
    }
}

async fn join(mut connections: JoinSet<anyhow::Result<Vec<Duration>>>) -> anyhow::Result<Vec<Duration>> {
    let mut waits = Vec::new();
    while let Some(ended) = connections.join_next().await {
        waits.extend(ended??);
    }
    Ok(waits)
}

async fn exchange(mut stream: TcpStream, shared: Arc<Shared>) -> anyhow::Result<Vec<Duration>> {
    let Load { requests, status, .. } = &*shared.load;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut waits = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let next = shared.next.fetch_add(1, Ordering::Relaxed);
        if next >= shared.end {
            break;
        }
        let sent = Instant::now();
        stream.write_all(&requests[next % requests.len()]).await?;
        let answer = read_answer(&mut stream, &mut buffer).await?;
        if answer.status != *status {
            let body = String::from_utf8_lossy(answer.body);
            bail!("{status} was expected, {} was answered: {}", answer.status, body.trim());
        }
        shared.answered.fetch_add(1, Ordering::Relaxed);
        if shared.measures.load(Ordering::Relaxed) {
            waits.push(sent.elapsed());
        }
    }
    Ok(waits)
}

pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    head: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    /// Whether the server has too much to do, and says when to come back.
    pub(crate) fn sheds(&self) -> bool {
        matches!(self.status, 429 | 503) && value_of(self.head, b"retry-after:").is_some()
    }

    /// Whether the server closes the connection after it.
    pub(crate) fn closes(&self) -> bool {
        value_of(self.head, b"connection:").is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"close"))
    }
}

/// Reads one HTTP/1.1 answer that says how long it is.
pub(crate) async fn read_answer<'a>(stream: &mut TcpStream, buffer: &'a mut [u8]) -> anyhow::Result<Answer<'a>> {
    let mut filled = 0;
    let (status, end, body) = loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            bail!("the connection was closed in the middle of an answer");
        }
        filled += count;
        if let Some(head) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            let (status, length) = read_head(&buffer[..head])?;
            break (status, head, (head + 4)..(head + 4 + length));
        }
    };
    if body.end > buffer.len() {
        bail!("an answer is longer than {} bytes", buffer.len());
    }
    if filled < body.end {
        stream.read_exact(&mut buffer[filled..body.end]).await?;
    }
    Ok(Answer { status, head: &buffer[..end], body: &buffer[body] })
}

fn read_head(head: &[u8]) -> anyhow::Result<(u16, usize)> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.trim().parse::<usize>().ok();
    let status = head.get(9..12).and_then(number).context("an answer has no status")?;
    let length = value_of(head, LENGTH).and_then(number).context("an answer does not say how long it is")?;
    Ok((u16::try_from(status)?, length))
}

/// What follows a header's name and colon, which are given in lower case.
fn value_of<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (start, value) = line.split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: &str, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let answer = read_answer(&mut stream, &mut buffer).await?;
    Ok((answer.status, answer.body.to_vec()))
}
