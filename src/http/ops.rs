//! Alive? Ready? And the figures, for whoever runs the service.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;
use super::wire::Success;
use crate::store::{BOUND, Store, StoreError};

pub(super) const LIVEZ: &str = "/livez";
pub(super) const READYZ: &str = "/readyz";
pub(super) const METRICS: &str = "/metrics";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the process is in its life.
#[derive(Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    const STARTING: u8 = 0;
    const SERVING: u8 = 1;
    const DRAINING: u8 = 2;

    /// The schema is there: requests can be answered. A process that is draining stays so.
    pub fn serve(&self) {
        let _ = self.0.compare_exchange(Self::STARTING, Self::SERVING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// From now on load balancers shall turn away; requests are still answered.
    pub fn drain(&self) {
        self.0.store(Self::DRAINING, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::DRAINING
    }

    pub(super) fn has_started(&self) -> bool {
        self.0.load(Ordering::Acquire) != Self::STARTING
    }

    pub fn is_serving(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::SERVING
    }
}

/// When the database was last asked for a sign of life, and whether it gave one. Anybody may ask whether we are ready, so however
/// many do, one at a time asks the database.
#[derive(Default)]
pub(super) struct Pulse(Mutex<Option<(Instant, bool)>>);

impl Pulse {
    async fn check(&self, store: &Store) -> Result<(), StoreError> {
        let late = |_| Err(StoreError::Unavailable("it did not answer in time".to_owned()));
        timeout(BOUND, self.ask(store)).await.unwrap_or_else(late)
    }

    async fn ask(&self, store: &Store) -> Result<(), StoreError> {
        let came = Instant::now();
        let mut last = self.0.lock().await;
        match *last {
            Some((asked, true)) if asked > came => Ok(()),
            Some((asked, false)) if asked > came => Err(StoreError::Unavailable("it gave no sign of life".to_owned())),
            _ => {
                let asked = Instant::now();
                let outcome = store.ping().await;
                *last = Some((asked, outcome.is_ok()));
                outcome
            }
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    #[schema(example = "ready")]
    status: &'static str,
}

/// Whether the process runs. It asks nothing else: a database that is away is no reason to restart anything.
#[utoipa::path(get, path = LIVEZ, operation_id = "livez", tag = "operations",
    responses((status = 200, description = "The process runs", body = Success<Health>)))]
pub(super) async fn livez() -> impl IntoResponse {
    Success::new(Health { status: "live" })
}

/// Whether requests should be sent here: the database answers, and the process is not about to stop.
#[utoipa::path(get, path = READYZ, operation_id = "readyz", tag = "operations",
    responses((status = 200, description = "Send requests", body = Success<Health>)))]
pub(super) async fn readyz(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    if !app.readiness.is_serving() {
        return Err(ApiError::Unavailable("not ready: starting or stopping".to_owned()));
    }
    app.pulse.check(&app.store).await?;
    Ok(Success::new(Health { status: "ready" }))
}

pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS)], app.metrics.render(&app.snapshot()))
}
