//! `GET /v1/api-keys/{id}`: one key.

use axum::extract::State;
use axum::response::IntoResponse;

use super::{ITEM, Key};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::query::NoQuery;
use crate::http::wire::Success;
use crate::id::KeyId;

/// A key of the caller's account.
#[utoipa::path(get, path = ITEM, operation_id = "getKey", tag = "keys",
    params(("id" = String, Path, description = "The key's `keyId`, or its plain UUID")),
    responses((status = 200, description = "The key", body = Success<Key>)))]
pub(crate) async fn show(
    caller: Caller,
    State(app): State<App>,
    id: KeyId,
    _: NoQuery,
) -> Result<impl IntoResponse, ApiError> {
    let key = app.store_for(&caller).find_key(caller.account_id(), id).await?.ok_or(ApiError::NotFound)?;
    Ok(Success::new(app.show(key, &app.view(caller.plan()))))
}
