//! The whole service but for its sockets: requests go through the real router, over a real database, with a clock that stands.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use chrono::{TimeZone, Utc};
use momail_api_keys::access_log::{AccessLog, Form};
use momail_api_keys::account::{Account, Allowance, Plan, Plans};
use momail_api_keys::auth::{CacheSettings, LastUsed};
use momail_api_keys::clock::Clock;
use momail_api_keys::event::Origin;
use momail_api_keys::http::{self, App, Parts, Peer};
use momail_api_keys::id::AccountId;
use momail_api_keys::key::{KeyName, NewKey};
use momail_api_keys::limit::RedisSettings;
use momail_api_keys::permission::Permissions;
use momail_api_keys::store::Store;
use rand::rngs::SysRng;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Database, Reply, document, json_request, leaks, request};

/// What a test may choose.
pub(crate) struct Options {
    pub(crate) plans: Plans,
    pub(crate) failed_per_minute: u32,
    pub(crate) allowed_origins: Vec<String>,
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,
    pub(crate) body_timeout: Duration,
    /// `None` if every request asks the database.
    pub(crate) cache: Option<CacheSettings>,
    pub(crate) allow_options: bool,
    /// `None` if each replica counts for itself.
    pub(crate) redis: Option<RedisSettings>,
}

impl Default for Options {
    /// Limits that no test meets by accident.
    fn default() -> Self {
        let unlimited = |max_keys| Allowance { per_minute: 100_000, per_hour: 0, per_day: 0, max_keys };
        Self {
            plans: Plans { free: unlimited(25), pro: unlimited(100), enterprise: unlimited(1_000) },
            failed_per_minute: 0,
            allowed_origins: vec!["*".to_owned()],
            trusted_proxies: Vec::new(),
            body_timeout: Duration::from_secs(5),
            cache: None,
            allow_options: true,
            redis: None,
        }
    }
}

impl Options {
    /// With keys kept in memory under a lease.
    pub(crate) fn cached() -> Self {
        let (lease, renew) = (Duration::from_secs(1), Duration::from_millis(200));
        let cache = CacheSettings { max_keys: 1_000, lease, renew, stale_grace: Duration::ZERO };
        Self { cache: Some(cache), ..Self::default() }
    }

    /// The limits that the page and the contract name.
    pub(crate) fn published() -> Self {
        let plan = |per_minute, per_hour, per_day, max_keys| Allowance { per_minute, per_hour, per_day, max_keys };
        let plans = Plans {
            free: plan(20, 100, 1_000, 25),
            pro: plan(100, 2_000, 20_000, 100),
            enterprise: plan(500, 10_000, 100_000, 1_000),
        };
        Self { plans, ..Self::default() }
    }
}

/// One replica, without its sockets.
pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) last_used: LastUsed,
    pub(crate) public: Router,
    pub(crate) internal: Router,
    writer: Option<(CancellationToken, JoinHandle<()>)>,
    follower: Option<JoinHandle<()>>,
    /// A database that nothing else uses goes with its only replica.
    own_database: Option<Database>,
}

impl TestApp {
    pub(crate) async fn on(database: &Database) -> Self {
        Self::with(database, Options::default()).await
    }

    /// On a SQLite database of its own, for what has nothing to do with databases.
    pub(crate) async fn alone(options: Options) -> Self {
        let database = Database::sqlite();
        let mut app = Self::with(&database, options).await;
        app.own_database = Some(database);
        app
    }

    pub(crate) async fn with(database: &Database, options: Options) -> Self {
        let noon = Utc.with_ymd_and_hms(2024, 1, 15, 12, 30, 0).unwrap();
        Self::at(database, options, Clock::held(noon)).await
    }

    /// A replica that goes by a clock shared with others.
    pub(crate) async fn at(database: &Database, options: Options, clock: Clock) -> Self {
        leaks::watch_own_log();
        let store = database.open();
        store.migrate().await.unwrap();
        let last_used = LastUsed::default();
        let app = App::new(Parts {
            store: store.clone(),
            cache: options.cache,
            last_used: last_used.clone(),
            clock: clock.clone(),
            plans: options.plans,
            max_tracked_keys: 10_000,
            redis: options.redis,
            failed_per_minute: options.failed_per_minute,
            allowed_origins: options.allowed_origins,
            trusted_proxies: options.trusted_proxies,
            body_timeout: options.body_timeout,
            access_log: Arc::new(AccessLog::new(Form::Off)),
            allow_options: options.allow_options,
        });
        app.readiness.serve();
        let (public, internal) = (http::public(&app), http::internal(&app));
        let follower = app.auth.follower().map(|follower| tokio::spawn(follower.run(CancellationToken::new())));
        Self { app, store, clock, last_used, public, internal, writer: None, follower, own_database: None }
    }

    /// Writes last uses behind from now on, as the service does.
    pub(crate) fn write_last_used(&mut self) {
        let stop = CancellationToken::new();
        let writer = self.last_used.clone().run(self.store.clone(), self.clock.clone(), stop.clone());
        self.writer = Some((stop, tokio::spawn(writer)));
    }

    /// Ends the writer as a shutdown does: with its last batch.
    pub(crate) async fn flush_last_used(&mut self) {
        let (stop, writer) = self.writer.take().unwrap();
        stop.cancel();
        writer.await.unwrap();
    }

    /// A new account and the text of its first key.
    pub(crate) async fn account(&self, plan: Plan) -> (AccountId, String) {
        let now = self.clock.now();
        let account = Account { id: AccountId::new(), name: "test".to_owned(), plan, live_keys: 0, created_at: now };
        let first = KeyName::try_from("first key").unwrap();
        let key = NewKey::new(account.id, first, Permissions::EVERYTHING, None, now);
        let created = self.store.create_account(account, key, &mut SysRng).await.unwrap();
        leaks::remember(created.secret.expose());
        (created.account.id, created.secret.expose().to_owned())
    }

    /// Changes a plan as the operator does.
    pub(crate) async fn set_plan(&self, account: AccountId, plan: Plan) -> bool {
        self.store.set_plan(account, plan, self.clock.now(), Origin::operator()).await.unwrap()
    }

    /// A key of an account on plan pro.
    pub(crate) async fn key(&self) -> String {
        self.account(Plan::Pro).await.1
    }

    pub(crate) async fn get(&self, path: &str, key: &str) -> Reply {
        self.send(request(Method::GET, path, key)).await
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> Reply {
        self.send(json_request(Method::POST, path, key, body.to_string())).await
    }

    pub(crate) async fn patch(&self, path: &str, key: &str, body: &Value) -> Reply {
        self.send(json_request(Method::PATCH, path, key, body.to_string())).await
    }

    pub(crate) async fn delete(&self, path: &str, key: &str) -> Reply {
        self.send(request(Method::DELETE, path, key)).await
    }

    /// The `data` of a new key.
    pub(crate) async fn create(&self, key: &str, body: Value) -> Value {
        let reply = self.post("/v1/api-keys", key, &body).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.body["data"].clone()
    }

    /// Every answer is held against the API's own description.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let reply = Reply::read(self.public.clone().oneshot(request).await.unwrap()).await;
        document::check(&method, &path, &reply);
        reply
    }

    /// An answer of the internal listener.
    pub(crate) async fn internal_get(&self, path: &str) -> Reply {
        Reply::read(self.internal.clone().oneshot(request(Method::GET, path, "")).await.unwrap()).await
    }

    /// The same for any request.
    pub(crate) async fn internal_send(&self, request: Request<Body>) -> Reply {
        Reply::read(self.internal.clone().oneshot(request).await.unwrap()).await
    }

    /// A request to the public listener, as if from this address.
    pub(crate) async fn send_from(&self, peer: IpAddr, mut request: Request<Body>) -> Reply {
        request.extensions_mut().insert(Peer(peer));
        self.send(request).await
    }
}

impl Drop for TestApp {
    /// As if the process had been killed: nobody is told.
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
        if !std::thread::panicking() {
            leaks::assert_own_log_is_clean();
        }
    }
}
