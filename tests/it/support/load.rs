//! Clients that create, list and revoke keys all the time, and remember what they were promised.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Connection, Database, Ledger, Reply, TestApp, json_request, request};

const KEYS: &str = "/v1/api-keys";
/// Far longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Settings under which nothing but the database refuses a request of an enterprise account.
pub(crate) fn unlimited(url: &str) -> Vec<(&str, &str)> {
    vec![
        ("DATABASE_URL", url),
        ("MOMAIL_AUTH__FAILED_PER_MINUTE", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_MINUTE", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_HOUR", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_DAY", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__MAX_KEYS", "1000000"),
    ]
}

/// Brings the schema up to date and makes enterprise accounts; the keys of them.
pub(crate) async fn accounts(database: &Database, number: usize) -> Vec<String> {
    let app = TestApp::on(database).await;
    let mut keys = Vec::new();
    for _ in 0..number {
        keys.push(app.account(Plan::Enterprise).await.1);
    }
    app.store.close();
    keys
}

/// Whether a key opens the door, found out by asking for something that never is behind it.
pub(crate) async fn opens(connection: &mut Connection, key: &str) -> bool {
    let reply = connection.send(request(Method::DELETE, &format!("{KEYS}/none"), key)).await.unwrap();
    match reply.status.as_u16() {
        404 => true,
        401 => false,
        _ => panic!("{reply:?}"),
    }
}

/// One request and what came of it.
pub(crate) struct Event {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// `None` if there was no whole answer.
    pub(crate) status: Option<u16>,
    /// The answer was the one that a client hopes for.
    pub(crate) succeeded: bool,
}

impl Event {
    pub(crate) fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// A key, as its creator was told.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) key: String,
}

/// What the service has acknowledged. Keys whose revocation got no answer are in neither list.
#[derive(Default)]
pub(crate) struct Promises {
    pub(crate) created: Vec<Made>,
    pub(crate) revoked: Vec<Made>,
    pub(crate) events: Vec<Event>,
}

impl Promises {
    /// How many creations and revocations were acknowledged.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.created.len() + self.revoked.len(), self.revoked.len())
    }

    /// Takes up a line of a [`Ledger`].
    pub(super) fn note(&mut self, what: &str, made: Made) {
        match what {
            "created" => self.created.push(made),
            "revoking" => self.created.retain(|created| created.id != made.id),
            _ => self.revoked.push(made),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.created.extend(other.created);
        self.revoked.extend(other.revoked);
        self.events.extend(other.events);
    }

    /// Asserts that the service at `address` keeps them.
    pub(crate) async fn assert_kept(&self, address: &str) {
        let mut connection = Connection::open(address).await.unwrap();
        for made in &self.created {
            assert!(opens(&mut connection, &made.key).await, "{} was acknowledged and opens nothing", made.id);
        }
        for made in &self.revoked {
            assert!(!opens(&mut connection, &made.key).await, "{} was revoked and opens again", made.id);
        }
    }
}

/// A client for each key given, until it is told to end.
pub(crate) struct Load {
    stop: CancellationToken,
    clients: Vec<JoinHandle<Promises>>,
}

impl Load {
    /// Each client rests for `pause` after each answer.
    pub(crate) fn start(address: &str, keys: &[String], pause: Duration) -> Self {
        Self::written_to(None, address, keys, pause)
    }

    /// The same, and each client writes down what it was told before it goes on.
    pub(crate) fn on_record(ledger: &Arc<Ledger>, address: &str, keys: &[String], pause: Duration) -> Self {
        Self::written_to(Some(ledger), address, keys, pause)
    }

    fn written_to(ledger: Option<&Arc<Ledger>>, address: &str, keys: &[String], pause: Duration) -> Self {
        let stop = CancellationToken::new();
        let clients = keys.iter().map(|key| {
            let client = Client {
                address: address.to_owned(),
                key: key.clone(),
                connection: None,
                promises: Promises::default(),
                ledger: ledger.cloned(),
            };
            tokio::spawn(client.run(pause, stop.clone()))
        });
        Self { clients: clients.collect(), stop }
    }

    pub(crate) async fn end(self) -> Promises {
        self.stop.cancel();
        let mut all = Promises::default();
        for promises in join_all(self.clients).await {
            all.add(promises.unwrap());
        }
        all
    }
}

struct Client {
    address: String,
    key: String,
    connection: Option<Connection>,
    promises: Promises,
    ledger: Option<Arc<Ledger>>,
}

impl Client {
    async fn run(mut self, pause: Duration, stop: CancellationToken) -> Promises {
        for turn in 0.. {
            match turn % 4 {
                0 | 2 => self.create().await,
                1 => drop(self.ask(request(Method::GET, KEYS, &self.key), 200).await),
                _ => self.revoke().await,
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause) => (),
            }
        }
        self.promises
    }

    async fn create(&mut self) {
        let name = uuid::Uuid::now_v7().to_string();
        let body = json!({ "name": name }).to_string();
        if let Some(reply) = self.ask(json_request(Method::POST, KEYS, &self.key, body), 201).await {
            let text = |member: &str| reply.body["data"][member].as_str().unwrap().to_owned();
            let made = Made { id: text("keyId"), key: text("apiKey") };
            self.write("created", &made);
            self.promises.created.push(made);
        }
    }

    fn write(&self, what: &str, made: &Made) {
        if let Some(ledger) = &self.ledger {
            ledger.write(what, made);
        }
    }

    async fn revoke(&mut self) {
        if self.promises.created.is_empty() {
            return;
        }
        let any = rand::random_range(0..self.promises.created.len());
        let made = self.promises.created.swap_remove(any);
        let path = format!("{KEYS}/{}", made.id);
        self.write("revoking", &made);
        if self.ask(request(Method::DELETE, &path, &self.key), 200).await.is_some() {
            self.write("revoked", &made);
            self.promises.revoked.push(made);
        }
    }

    /// The answer, if it is the one hoped for.
    async fn ask(&mut self, request: Request<Body>, hoped_for: u16) -> Option<Reply> {
        let began = Instant::now();
        let reply = timeout(PATIENCE, self.exchange(request)).await.ok().flatten();
        let status = reply.as_ref().map(|reply| reply.status.as_u16());
        let succeeded = status == Some(hoped_for);
        self.promises.events.push(Event { began, ended: Instant::now(), status, succeeded });
        reply.filter(|_| succeeded)
    }

    async fn exchange(&mut self, request: Request<Body>) -> Option<Reply> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.address).await.ok()?,
        };
        let reply = connection.send(request).await.ok()?;
        self.connection = Some(connection);
        Some(reply)
    }
}
