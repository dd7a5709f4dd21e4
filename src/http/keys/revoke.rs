//! `DELETE /v1/api-keys/{id}`: revokes a key for good.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::ITEM;
use crate::auth::Caller;
use crate::event::Origin;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::query::NoQuery;
use crate::http::wire::{Json, Success};
use crate::id::KeyId;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Revoked {
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    key_id: String,
    #[schema(default = true)]
    revoked: bool,
}

/// Revokes a key of the caller's account, for good. A key may revoke itself.
#[utoipa::path(delete, path = ITEM, operation_id = "revokeKey", tag = "keys",
    params(("id" = String, Path, description = "The key's `keyId`, or its plain UUID")),
    responses((status = 200, description = "The key opens nothing any more", body = Success<Revoked>)))]
pub(crate) async fn revoke(
    caller: Caller,
    State(app): State<App>,
    (id, origin, NoQuery): (KeyId, Origin, NoQuery),
) -> Result<impl IntoResponse, ApiError> {
    revoke_key(&app, &caller, id, origin).await
}

pub(super) async fn revoke_key(
    app: &App,
    caller: &Caller,
    id: KeyId,
    origin: Origin,
) -> Result<Json<Success<Revoked>>, ApiError> {
    let was_live = app.store_for(caller).revoke_key(caller.account_id(), id, app.clock.now(), origin).await?;
    // Also before a 404: whoever asks again after a lost answer takes it for the proof that the key is dead.
    app.auth.settle().await?;
    if !was_live {
        return Err(ApiError::NotFound);
    }
    Ok(Success::new(Revoked { key_id: id.to_string(), revoked: true }))
}
