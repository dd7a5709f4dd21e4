//! The API over HTTP: what is routed where, inside which layers, and the state that handlers share.
//!
//! It must not know of SQL, Redis or settings files.

mod body;
mod client;
mod cors;
mod endpoint;
mod error;
mod exchange;
mod extract;
mod guard;
mod keys;
mod openapi;
mod ops;
mod query;
mod retry;
mod verify;
mod wire;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use ipnet::IpNet;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

pub use self::client::Peer;
use self::cors::Cors;
pub use self::endpoint::{Endpoint, endpoints};
pub use self::error::ApiError;
use self::exchange::RequestIds;
use self::guard::Policies;
pub use self::keys::{CreatedKey, Key, RotatedKey, SHOWN_ONCE, ShownEvent, ShownUsage, View};
pub use self::openapi::text as openapi_document;
use self::ops::Pulse;
pub use self::ops::Readiness;
use self::verify::PermissionHeaders;
pub use self::wire::timestamp;
use crate::access_log::AccessLog;
use crate::account::Plans;
use crate::auth::{Auth, Cache, CacheSettings, LastUsed};
use crate::clock::Clock;
use crate::limit::{FailedKeys, Limiter, RedisSettings};
use crate::metrics::{Metrics, Snapshot};
use crate::store::Store;

/// What the handlers share. Cloning it is cheap.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What an [`App`] is made of.
pub struct Parts {
    pub store: Store,
    /// How keys are kept in memory; `None` if every request asks the database.
    pub cache: Option<CacheSettings>,
    pub last_used: LastUsed,
    pub clock: Clock,
    pub plans: Plans,
    /// Keys whose usage the limiter remembers at once.
    pub max_tracked_keys: usize,
    /// The Redis that counts for all replicas; `None` if each counts for itself.
    pub redis: Option<RedisSettings>,
    /// Keys that open nothing, for each client and minute; 0 is no limit.
    pub failed_per_minute: u32,
    pub allowed_origins: Vec<String>,
    pub trusted_proxies: Vec<IpNet>,
    /// How long a client may take to send a body.
    pub body_timeout: Duration,
    /// Where a line for each request goes.
    pub access_log: Arc<AccessLog>,
    /// Whether forward auth lets OPTIONS through without a key.
    pub allow_options: bool,
}

pub struct Shared {
    pub(crate) store: Store,
    pub(crate) limiter: Limiter,
    pub(crate) failed_keys: FailedKeys,
    pub(crate) metrics: Metrics,
    pub readiness: Readiness,
    pulse: Pulse,
    pub auth: Auth,
    last_used: LastUsed,
    clock: Clock,
    plans: Plans,
    policies: Policies,
    permission_headers: PermissionHeaders,
    request_ids: RequestIds,
    cors: Cors,
    trusted_proxies: Vec<IpNet>,
    body_timeout: Duration,
    allow_options: bool,
    document: openapi::Served,
    pub(crate) access_log: Arc<AccessLog>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    pub fn new(parts: Parts) -> Self {
        let Parts { store, last_used, clock, plans, .. } = parts;
        Self(Arc::new(Shared {
            auth: Auth::new(store.clone(), parts.cache, last_used.clone(), clock.clone()),
            limiter: Limiter::new(&plans, parts.max_tracked_keys, parts.redis, clock.clone()),
            failed_keys: FailedKeys::new(parts.failed_per_minute, &clock),
            policies: Policies::new(|plan| *plans.of(plan)),
            permission_headers: PermissionHeaders::new(),
            metrics: Metrics::new(&ROUTES),
            readiness: Readiness::default(),
            pulse: Pulse::default(),
            request_ids: RequestIds::new(),
            cors: Cors::new(&parts.allowed_origins),
            trusted_proxies: parts.trusted_proxies,
            body_timeout: parts.body_timeout,
            allow_options: parts.allow_options,
            document: openapi::Served::new(),
            access_log: parts.access_log,
            store,
            last_used,
            clock,
            plans,
        }))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            database: self.store.connections(),
            last_used_pending: self.last_used.pending(),
            last_used_dropped: self.last_used.dropped(),
            counting: self.limiter.counting(),
            limiter_keys: self.limiter.tracked(),
            limiter_clients: self.failed_keys.tracked(),
            ready: self.readiness.is_serving(),
            cache: self.auth.cache().map(Cache::usage).unwrap_or_default(),
            access_lines_dropped: self.access_log.dropped(),
        }
    }
}

/// Every path there is, and at last the label of all others. Metrics and logs know requests by these, never by what a client wrote.
const ROUTES: [&str; 17] = [
    verify::PATHS[0],
    verify::PATHS[1],
    verify::PATHS[2],
    verify::PATHS[3],
    verify::PATHS[4],
    verify::PATHS[5],
    keys::COLLECTION,
    keys::ITEM,
    keys::CURRENT,
    keys::ROTATE,
    keys::USAGE,
    keys::EVENTS,
    ops::LIVEZ,
    ops::READYZ,
    ops::METRICS,
    openapi::DOCUMENT,
    "none",
];

/// What the public address serves.
pub fn public(app: &App) -> Router {
    in_layers(app, endpoint::routes(app).route(openapi::DOCUMENT, get(openapi::document)).merge(health()))
}

/// What the internal address serves.
pub fn internal(app: &App) -> Router {
    in_layers(app, health().route(ops::METRICS, get(ops::metrics)).merge(verify::routes()))
}

fn health() -> Router<App> {
    Router::new().route(ops::LIVEZ, get(ops::livez)).route(ops::READYZ, get(ops::readyz))
}

/// Puts routes inside what every exchange gets.
pub fn in_layers(app: &App, routes: Router<App>) -> Router {
    // The first is the outermost: it sees the request first and the answer last.
    let layers = ServiceBuilder::new()
        .layer(from_fn_with_state(app.clone(), exchange::exchange))
        // Inside, so that a panic is counted, logged and shaped as the 500 it becomes.
        .layer(CatchPanicLayer::custom(error::from_panic));
    routes
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .fallback(async || ApiError::NotFound)
        .layer(layers)
        .with_state(app.clone())
}
