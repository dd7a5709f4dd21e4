//! `GET /v1/api-keys`: the account's keys.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::{COLLECTION, Key};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::extract::NoQuery;
use crate::http::wire::SuccessWithMeta;

#[derive(Serialize, ToSchema)]
pub(crate) struct Total {
    /// How many keys the account has.
    total: usize,
}

/// Every key of the caller's account that is not revoked, the newest first.
#[utoipa::path(get, path = COLLECTION, operation_id = "listKeys", tag = "keys",
    responses((status = 200, description = "The account's keys", body = SuccessWithMeta<Vec<Key>, Total>)))]
pub(crate) async fn list(caller: Caller, State(app): State<App>, _: NoQuery) -> Result<impl IntoResponse, ApiError> {
    let keys = app.store.list_keys(caller.account_id()).await?;
    let view = app.view(caller.plan());
    let keys: Vec<_> = keys.into_iter().map(|key| app.show(key, &view)).collect();
    let total = keys.len();
    Ok(SuccessWithMeta::new(keys, Total { total }))
}
