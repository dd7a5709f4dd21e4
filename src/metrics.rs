//! What is counted and measured, and its text for Prometheus. No label grows with the number of keys.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::auth::CacheUse;
use crate::limit::Counting;
use crate::store::Connections;

/// From a tenth of a millisecond to ten seconds, in seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// Of a request's method; the last stands for all others.
pub(crate) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "OTHER"];
/// The answers that are given often enough to be counted without a search.
const STATUSES: [u16; 15] = [200, 201, 204, 400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 500, 503];

pub struct Metrics {
    registry: Registry,
    /// The labels of routes, and for each of them a place for each method.
    routes: &'static [&'static str],
    series: Vec<[OnceLock<Series>; METHODS.len()]>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    failed_keys: Family<ReasonLabels, Counter>,
    limited: Family<LimitLabels, Counter>,
    connections: Gauge,
    gauges: Gauges,
}

/// What is counted of one route and method, found once: to look it up by its labels costs more than to count.
struct Series {
    duration: Histogram,
    by_status: [OnceLock<Counter>; STATUSES.len()],
}

/// Gauges that are read from their owners when somebody asks.
#[derive(Default)]
struct Gauges {
    database_open: Gauge,
    database_idle: Gauge,
    database_waiting: Gauge,
    database_refused: Counter<u64, AtomicU64>,
    last_used_pending: Gauge,
    last_used_dropped: Counter<u64, AtomicU64>,
    limits_shared: Gauge,
    limits_degraded: Gauge,
    limiter_keys: Gauge,
    limiter_clients: Gauge,
    ready: Gauge,
    cached_keys: Gauge,
    lease_left_millis: Gauge,
    cache_hits: Counter<u64, AtomicU64>,
    cache_misses: Counter<u64, AtomicU64>,
    cache_stale: Counter<u64, AtomicU64>,
    access_lines_dropped: Counter<u64, AtomicU64>,
}

/// What the gauges show at one moment.
pub struct Snapshot {
    pub database: Connections,
    pub last_used_pending: usize,
    pub last_used_dropped: u64,
    pub counting: Counting,
    pub limiter_keys: usize,
    pub limiter_clients: usize,
    pub ready: bool,
    pub cache: CacheUse,
    pub access_lines_dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    plan: &'static str,
    window: &'static str,
}

impl Metrics {
    /// `routes` are the labels by whose places requests are counted.
    pub fn new(routes: &'static [&'static str]) -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register("http_requests", "Answers given", requests.clone());
        let durations = Family::new_with_constructor((|| Histogram::new(DURATION_BUCKETS)) as fn() -> Histogram);
        registry.register(
            "http_request_duration_seconds",
            "From the request's head to the answer's",
            durations.clone(),
        );
        let failed_keys = Family::default();
        registry.register("failed_keys", "Requests refused because of their key", failed_keys.clone());
        let limited = Family::default();
        registry.register("rate_limited", "Requests refused because of a plan's limit", limited.clone());
        let connections = Gauge::default();
        registry.register("http_connections", "Connections open on both listeners", connections.clone());

        let gauges = Gauges::default();
        let shown = [
            ("database_connections", "Connections open to the database", &gauges.database_open),
            ("database_connections_idle", "Those in use by nobody", &gauges.database_idle),
            ("database_waiting", "Requests that wait for a connection to the database", &gauges.database_waiting),
            ("last_used_pending", "Secrets whose last use is in memory", &gauges.last_used_pending),
            ("limits_shared", "1 if limits are counted for all replicas together", &gauges.limits_shared),
            ("limits_degraded", "1 if they should be, and Redis cannot be asked", &gauges.limits_degraded),
            ("limiter_keys", "Keys whose usage is remembered here", &gauges.limiter_keys),
            ("limiter_clients", "Clients whose failed keys are remembered", &gauges.limiter_clients),
            ("cached_keys", "Keys in memory", &gauges.cached_keys),
            (
                "cache_lease_left_millis",
                "How much longer memory is believed; 0 if it is not",
                &gauges.lease_left_millis,
            ),
            ("ready", "1 if this replica takes requests", &gauges.ready),
        ];
        for (name, help, gauge) in shown {
            registry.register(name, help, gauge.clone());
        }
        let counted = [
            (
                "database_refused",
                "Requests refused because they would have waited for too long",
                &gauges.database_refused,
            ),
            ("cache_hits", "Keys found in memory", &gauges.cache_hits),
            ("cache_misses", "Keys looked up in the database", &gauges.cache_misses),
            ("cache_stale_answers", "Answers from before the database went away", &gauges.cache_stale),
            ("last_used_dropped", "Last uses lost while too many waited for the database", &gauges.last_used_dropped),
            ("access_lines_dropped", "Lines lost while the log was not read", &gauges.access_lines_dropped),
        ];
        for (name, help, counter) in counted {
            registry.register(name, help, counter.clone());
        }
        let series = routes.iter().map(|_| std::array::from_fn(|_| OnceLock::new())).collect();
        Self { registry, routes, series, requests, durations, failed_keys, limited, connections, gauges }
    }

    /// Counts an answer. `route` and `method` are places among the routes' labels and in [`METHODS`].
    pub(crate) fn request(&self, route: usize, method: usize, status: u16, took: Duration) {
        let series = self.series[route][method].get_or_init(|| self.series_of(self.routes[route], METHODS[method]));
        series.duration.observe(took.as_secs_f64());
        let labels = || RequestLabels { route: self.routes[route], method: METHODS[method], status };
        match STATUSES.iter().position(|known| *known == status) {
            Some(place) => series.by_status[place].get_or_init(|| self.requests.get_or_create_owned(&labels())).inc(),
            None => self.requests.get_or_create(&labels()).inc(),
        };
    }

    fn series_of(&self, route: &'static str, method: &'static str) -> Series {
        let duration = self.durations.get_or_create_owned(&RouteLabels { route, method });
        Series { duration, by_status: std::array::from_fn(|_| OnceLock::new()) }
    }

    pub(crate) fn failed_key(&self, reason: &'static str) {
        self.failed_keys.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn limited(&self, plan: &'static str, window: &'static str) {
        self.limited.get_or_create(&LimitLabels { plan, window }).inc();
    }

    /// How many connections are open; whoever opens one moves it.
    pub(crate) fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// All of it, in the OpenMetrics text format that Prometheus reads.
    pub fn render(&self, now: &Snapshot) -> String {
        let gauge = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge(&self.gauges.database_open, now.database.open);
        gauge(&self.gauges.database_idle, now.database.idle);
        gauge(&self.gauges.database_waiting, now.database.waiting);
        gauge(&self.gauges.last_used_pending, now.last_used_pending);
        gauge(&self.gauges.limits_shared, (now.counting == Counting::Together).into());
        gauge(&self.gauges.limits_degraded, (now.counting == Counting::AloneForNow).into());
        gauge(&self.gauges.limiter_keys, now.limiter_keys);
        gauge(&self.gauges.limiter_clients, now.limiter_clients);
        gauge(&self.gauges.ready, now.ready.into());
        gauge(&self.gauges.cached_keys, now.cache.keys);
        gauge(&self.gauges.lease_left_millis, usize::try_from(now.cache.lease_left.as_millis()).unwrap_or(usize::MAX));
        let counter =
            |counter: &Counter<u64, AtomicU64>, value: u64| counter.inc_by(value.saturating_sub(counter.get()));
        counter(&self.gauges.cache_hits, now.cache.hits);
        counter(&self.gauges.cache_misses, now.cache.misses);
        counter(&self.gauges.cache_stale, now.cache.stale);
        counter(&self.gauges.database_refused, now.database.refused);
        counter(&self.gauges.last_used_dropped, now.last_used_dropped);
        counter(&self.gauges.access_lines_dropped, now.access_lines_dropped);

        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes whatever is written to it");
        text
    }
}
