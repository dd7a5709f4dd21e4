//! Requests that are sent when they are due, however the answers come: as clients do who know nothing of each other.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::{Connection, Reply};

/// Far longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, and how long after the request was due it was there. `None` if there was none.
pub(crate) struct Answer {
    pub(crate) reply: Option<Reply>,
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.reply.as_ref().map_or(0, |reply| reply.status.as_u16())
    }
}

/// Sends a request each `every` for so long, each at its time, on connections that are kept.
pub(crate) async fn open_loop(
    address: &str,
    every: Duration,
    lasting: Duration,
    make: impl Fn() -> Request<Body>,
) -> Vec<Answer> {
    let idle = Arc::new(Mutex::new(Vec::new()));
    let mut sent = JoinSet::new();
    let mut due = interval(every);
    let ends = Instant::now() + lasting;
    while Instant::now() < ends {
        let due = due.tick().await.into_std();
        let (address, idle, request) = (address.to_owned(), Arc::clone(&idle), make());
        sent.spawn(async move {
            let reply = timeout(PATIENCE, send(&address, &idle, request)).await.ok().flatten();
            Answer { reply, took: due.elapsed() }
        });
    }
    sent.join_all().await
}

async fn send(address: &str, idle: &Mutex<Vec<Connection>>, request: Request<Body>) -> Option<Reply> {
    let kept = idle.lock().unwrap().pop();
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(address).await.ok()?,
    };
    let reply = connection.send(request).await.ok()?;
    idle.lock().unwrap().push(connection);
    Some(reply)
}

/// The time that so many of a hundred do not exceed.
pub(crate) fn percentile(times: impl IntoIterator<Item = Duration>, percent: usize) -> Duration {
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort_unstable();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
