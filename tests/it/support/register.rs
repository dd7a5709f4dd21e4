//! The rule of a register: a request that begins after a change was answered is judged by what the change left. Clients use one
//! key on every replica without a pause, and each round somebody takes the key away.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::{join, join_all};
use serde_json::json;
use tokio::sync::Barrier;
use tokio::time::sleep;

use super::{Cluster, Connection, RawAnswer, RawConnection, Service, json_request, request};

const KEYS: &str = "/v1/api-keys";
const CLIENTS: usize = 8;
/// How many requests each makes after the change; one or two could be right by luck.
const AFTERWARDS: usize = 3;

/// A cluster and those who use it.
pub(crate) struct Register {
    pub(crate) cluster: Cluster,
}

/// A key, and how an answer shows that it was judged by what will be changed.
pub(crate) struct Doomed {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) is_old: fn(&RawAnswer) -> bool,
}

/// Through which replica a key is revoked, and how long after the clients have begun.
#[derive(Clone, Copy)]
pub(crate) struct Through {
    pub(crate) replica: usize,
    pub(crate) after: Duration,
}

impl Through {
    /// One of these replicas, at a random moment.
    pub(crate) fn any_of(replicas: &[usize]) -> Self {
        let replica = replicas[rand::random_range(0..replicas.len())];
        Self { replica, after: Duration::from_micros(rand::random_range(0..15_000)) }
    }
}

/// What the clients of a round were told.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// How long the change took to be answered.
    pub(crate) answered_after: Duration,
    /// Requests that began after the answer and were judged by what was before.
    pub(crate) violations: usize,
    /// Requests that began after the answer and were judged by what is now.
    pub(crate) right: usize,
    /// Requests, whenever they began, that were told to come again.
    pub(crate) unavailable: usize,
}

impl Register {
    pub(crate) async fn start() -> Self {
        Self::of(Service::program()).await
    }

    pub(crate) async fn of(program: &Path) -> Self {
        Self { cluster: Cluster::start(program).await }
    }

    /// Makes a key that will be revoked, through the first replica.
    pub(crate) async fn issue(&self) -> Doomed {
        let create = json_request(Method::POST, KEYS, &self.cluster.key, json!({ "name": "doomed" }).to_string());
        let reply = self.cluster.replicas[0].send(create).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        let text = |member: &str| reply.body["data"][member].as_str().unwrap().to_owned();
        Doomed { id: text("keyId"), text: text("apiKey"), is_old: |answer| answer.status == 200 }
    }

    /// Revokes a key as its owner does.
    pub(crate) async fn revoke(&self, key: &Doomed, through: Through) {
        // Opened before, so that the moment is the random one.
        let mut connection = Connection::open(&self.cluster.replicas[through.replica].public).await.unwrap();
        sleep(through.after).await;
        let delete = request(Method::DELETE, &format!("{KEYS}/{}", key.id), &self.cluster.key);
        let reply = connection.send(delete).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    /// One round on an undisturbed cluster.
    pub(crate) async fn round(&self, through: Through) -> Round {
        let key = self.issue().await;
        self.round_of(&key, true, async || self.revoke(&key, through).await, async || ()).await
    }

    /// The key is used everywhere; `change` makes it open nothing and has been answered when it returns; then `afterwards` is
    /// done while the clients go on. If `known`, each replica has the key in memory before the change begins.
    pub(crate) async fn round_of(
        &self,
        key: &Doomed,
        known: bool,
        change: impl AsyncFnOnce(),
        afterwards: impl AsyncFnOnce(),
    ) -> Round {
        let (all_know, is_changed) = (Barrier::new(CLIENTS + 1), AtomicBool::new(false));
        let clients = (0..CLIENTS).map(async |n| {
            let mut client = Client::open(&self.cluster.replicas[n % 3].internal, &key.text).await;
            for _ in 0..if known { 2 } else { 0 } {
                assert!(client.exchange().await.is_some_and(|answer| (key.is_old)(&answer)), "it is changed already");
            }
            all_know.wait().await;
            client.use_to_the_end(key.is_old, &is_changed).await
        });
        let change = async {
            all_know.wait().await;
            let began = Instant::now();
            change().await;
            is_changed.store(true, Ordering::SeqCst);
            let answered_after = began.elapsed();
            afterwards().await;
            answered_after
        };
        let (seen, answered_after) = join(join_all(clients), change).await;
        seen.iter().fold(Round { answered_after, ..Round::default() }, |all, one| Round {
            violations: all.violations + one.violations,
            right: all.right + one.right,
            unavailable: all.unavailable + one.unavailable,
            ..all
        })
    }
}

/// Asks for forward auth over a kept connection.
pub(crate) struct Client {
    connection: RawConnection,
    request: String,
}

impl Client {
    pub(crate) async fn open(address: &str, key: &str) -> Self {
        let request = format!("GET /forward-auth HTTP/1.1\r\nhost: keys.test\r\nx-api-key: {key}\r\n\r\n");
        Self { connection: RawConnection::open(address).await, request }
    }

    pub(crate) async fn ask(&mut self) {
        self.connection.write(&self.request).await;
    }

    /// `None` if the replica is gone.
    pub(crate) async fn answer(&mut self) -> Option<RawAnswer> {
        self.connection.answer().await
    }

    async fn exchange(&mut self) -> Option<RawAnswer> {
        self.ask().await;
        self.answer().await
    }

    async fn use_to_the_end(mut self, is_old: fn(&RawAnswer) -> bool, is_changed: &AtomicBool) -> Round {
        let mut seen = Round::default();
        loop {
            let begins_after = is_changed.load(Ordering::SeqCst);
            let Some(answer) = self.exchange().await else { return seen };
            match answer.status {
                503 => seen.unavailable += 1,
                200 | 401 if begins_after && is_old(&answer) => seen.violations += 1,
                200 | 401 if begins_after => seen.right += 1,
                200 | 401 => (),
                _ => panic!("{answer:?}"),
            }
            // A replica that is cut off takes seconds for each answer.
            if begins_after && seen.right + seen.violations + AFTERWARDS * seen.unavailable >= AFTERWARDS {
                return seen;
            }
        }
    }
}
