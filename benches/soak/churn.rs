//! Keys that come and go: each is made, used, renamed, rotated, revoked, and used once more, with its every step at another
//! replica. As many are revoked as are made, so that there are always as many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::parts::from_address;
use crate::accounts::Account;
use crate::client::Client;
use crate::open_loop::{Log, Outcome, Record, Span, micros};
use crate::requests::request;
use crate::rows::{COLLECTION, FORWARD_AUTH};
use crate::service::Fleet;

/// One key comes and one goes.
const EVERY: Duration = Duration::from_millis(100);
/// Keys that live at once.
const LIVE: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// The keys under way; they stop when this is dropped.
pub(super) struct Churning {
    log: Arc<Mutex<Log>>,
    task: JoinSet<()>,
}

struct Churn {
    span: Span,
    /// To each replica, one at each of its addresses.
    public: Vec<Client>,
    internal: Vec<Client>,
    /// The first keys of accounts, which make and revoke the others.
    owners: Vec<String>,
    /// The oldest first.
    live: VecDeque<Live>,
    asked: usize,
    log: Arc<Mutex<Log>>,
}

struct Live {
    owner: String,
    id: String,
    key: String,
}

pub(super) fn start(fleet: &Fleet, accounts: &[Account], span: Span, stop: &CancellationToken) -> Churning {
    let clients = |internal| fleet.addresses(internal).into_iter().map(Client::new).collect();
    let log = Arc::default();
    let mut churn = Churn {
        span,
        public: clients(false),
        internal: clients(true),
        owners: accounts.iter().map(|account| account.keys[0].expose().to_owned()).collect(),
        live: VecDeque::new(),
        asked: 0,
        log: Arc::clone(&log),
    };
    let stop = stop.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut ticks = interval_at(span.from, EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lives = 0;
        while !stop.is_cancelled() && Instant::now() < span.from + span.lasts {
            ticks.tick().await;
            // A step that fails was noted, and ends only this key's turn.
            let _ = churn.one_comes(lives).await;
            let _ = churn.one_goes().await;
            lives += 1;
        }
    });
    Churning { log, task }
}

impl Churning {
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn end(mut self) -> anyhow::Result<Log> {
        while let Some(ended) = self.task.join_next().await {
            ended?;
        }
        Ok(std::mem::take(&mut *self.log()))
    }
}

/// Every step has one answer that it expects.
pub(super) fn unexpected(log: &Log) -> usize {
    log.count(|outcome| outcome != Outcome::Good)
}

impl Churn {
    async fn one_comes(&mut self, number: usize) -> Option<()> {
        let owner = self.owners[number % self.owners.len()].clone();
        let made = self.ask(&request("POST", COLLECTION, &owner, r#"{"name":"Passing by"}"#), 201).await?;
        let (id, key) = (text(&made, "keyId")?, text(&made, "apiKey")?);
        self.look(&key, 200).await?;
        self.live.push_back(Live { owner, id, key });
        Some(())
    }

    async fn one_goes(&mut self) -> Option<()> {
        if self.live.len() <= LIVE {
            return None;
        }
        let Live { owner, id, key } = self.live.pop_front()?;
        let path = format!("{COLLECTION}/{id}");
        self.ask(&request("PATCH", &path, &owner, r#"{"name":"Passing away"}"#), 200).await?;
        let rotate = request("POST", &format!("{path}/rotate"), &owner, r#"{"gracePeriodHours":0}"#);
        let rotated = text(&self.ask(&rotate, 200).await?, "apiKey")?;
        self.look(&key, 401).await?;
        self.look(&rotated, 200).await?;
        self.ask(&request("DELETE", &path, &owner, ""), 200).await?;
        self.look(&rotated, 401).await
    }

    /// Asks as a gateway does, from an address of its own.
    async fn look(&mut self, key: &str, status: u16) -> Option<()> {
        let key = from_address(key, self.asked);
        self.exchange(true, &request("GET", FORWARD_AUTH, &key, ""), status).await.map(drop)
    }

    async fn ask(&mut self, request: &[u8], status: u16) -> Option<Value> {
        serde_json::from_slice(&self.exchange(false, request, status).await?).ok()
    }

    /// The body of an answer as it should be; `None` of any other, which is noted.
    async fn exchange(&mut self, internal: bool, request: &[u8], status: u16) -> Option<Vec<u8>> {
        let clients = if internal { &mut self.internal } else { &mut self.public };
        let replica = self.asked % clients.len();
        self.asked += 1;
        let sent = Instant::now();
        let answer = timeout(PATIENCE, clients[replica].exchange(request, true)).await;
        let (outcome, body) = match answer {
            Err(_) => (Outcome::GivenUp, Vec::new()),
            Ok(Err(error)) => (Outcome::Broken, format!("{error:#}").into_bytes()),
            Ok(Ok(answer)) if answer.status == status => (Outcome::Good, answer.body.to_vec()),
            Ok(Ok(answer)) if answer.sheds() => (Outcome::Shed, answer.body.to_vec()),
            Ok(Ok(answer)) => (Outcome::Status(answer.status), answer.body.to_vec()),
        };
        let due = u64::try_from((sent - self.span.from).as_micros()).unwrap_or(u64::MAX);
        let (waited, served) = (micros(sent.elapsed()), micros(sent.elapsed()));
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.records.push(Record { due, waited, served, outcome });
        if outcome == Outcome::Good {
            return Some(body);
        }
        let line = request.split(|byte| *byte == b'\r').next().map(String::from_utf8_lossy).unwrap_or_default();
        let complaint =
            || format!("{line}: {status} was expected, {outcome:?}: {}", String::from_utf8_lossy(&body).trim());
        log.complaint.get_or_insert_with(complaint);
        None
    }
}

fn text(answer: &Value, member: &str) -> Option<String> {
    Some(answer["data"][member].as_str()?.to_owned())
}
