//! `/v1/api-keys/current`: the key that asks, about itself. It needs no permission, and costs what every request costs.

use axum::extract::State;
use axum::response::IntoResponse;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::revoke::{Revoked, revoke_key};
use super::{CURRENT, Key};
use crate::auth::Caller;
use crate::event::Origin;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::guard::Admitted;
use crate::http::query::NoQuery;
use crate::http::wire::{Success, timestamp};
use crate::limit::Quota;

/// Whose key it is, and how far it may go.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Current {
    #[schema(example = "acc_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    account_id: String,
    key: Key,
    #[schema(required = true)]
    limit: Option<Limit>,
}

/// The window with the fewest requests left, this one counted; `null` if the plan has no window.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Limit {
    #[schema(example = "minute")]
    window: &'static str,
    /// Requests in each such window.
    #[schema(example = 100)]
    limit: u32,
    #[schema(example = 97)]
    remaining: u32,
    /// When the window is full again.
    #[schema(format = DateTime)]
    reset_ts: String,
}

impl Limit {
    fn new(quota: &Quota, now: DateTime<Utc>) -> Self {
        let Quota { window, limit, remaining, reset_after } = *quota;
        Self { window: window.as_str(), limit, remaining, reset_ts: timestamp(now + reset_after) }
    }
}

/// The key that asks, its account, and what is left of its limits.
#[utoipa::path(get, path = CURRENT, operation_id = "getCurrentKey", tag = "keys",
    responses((status = 200, description = "Who is calling", body = Success<Current>)))]
pub(crate) async fn show_current(
    Admitted { caller, quota }: Admitted,
    State(app): State<App>,
    _: NoQuery,
) -> Result<impl IntoResponse, ApiError> {
    let key = app.store_for(&caller).find_key(caller.account_id(), caller.key_id()).await?;
    // It was live a moment ago.
    let key = key.ok_or(ApiError::Unauthorized)?;
    let view = app.view(caller.plan());
    let limit = quota.map(|quota| Limit::new(&quota, view.now));
    let (account_id, key) = (caller.account_id().to_string(), app.show(key, &view));
    Ok(Success::new(Current { account_id, key, limit }))
}

/// Revokes the key that asks, for good.
#[utoipa::path(delete, path = CURRENT, operation_id = "revokeCurrentKey", tag = "keys",
    responses((status = 200, description = "The key opens nothing any more", body = Success<Revoked>)))]
pub(crate) async fn revoke_current(
    caller: Caller,
    State(app): State<App>,
    (origin, NoQuery): (Origin, NoQuery),
) -> Result<impl IntoResponse, ApiError> {
    revoke_key(&app, &caller, caller.key_id(), origin).await
}
