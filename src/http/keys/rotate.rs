//! `POST /v1/api-keys/{id}/rotate`: gives a key another secret, beside which the one before works for a while.

use axum::extract::State;
use axum::response::IntoResponse;
use rand::rngs::SysRng;
use utoipa::ToSchema;

use super::create::Warning;
use super::{ROTATE, RotatedKey, SHOWN_ONCE};
use crate::auth::Caller;
use crate::http::App;
use crate::http::body::Members;
use crate::http::error::ApiError;
use crate::http::query::NoQuery;
use crate::http::wire::SuccessWithMeta;
use crate::id::KeyId;
use crate::key::{Grace, Refusal, Rotation};
use crate::store::Rotated;

/// How a client wants a key rotated. The whole body may be left out.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(crate) struct RotateKey {
    /// Hours for which the secret before still works; absent or `null` for 24.
    #[schema(value_type = Option<u8>, minimum = 0, maximum = 168, default = 24, example = 24)]
    grace_period_hours: Option<Grace>,
}

impl RotateKey {
    fn read(mut members: Members) -> Result<Self, ApiError> {
        let grace_period_hours = members.optional_integer("gracePeriodHours");
        members.end()?;
        Ok(Self { grace_period_hours })
    }
}

/// Gives a key another secret, whose text is in this answer and nowhere else. Everything else about the key stays.
#[utoipa::path(post, path = ROTATE, operation_id = "rotateKey", tag = "keys", request_body = Option<RotateKey>,
    params(("id" = String, Path, description = "The key's `keyId`, or its plain UUID")),
    responses((status = 200, description = "The key with its new secret", body = SuccessWithMeta<RotatedKey, Warning>)))]
pub(crate) async fn rotate(
    caller: Caller,
    State(app): State<App>,
    id: KeyId,
    _: NoQuery,
    members: Option<Members>,
) -> Result<impl IntoResponse, ApiError> {
    let body = RotateKey::read(members.unwrap_or_else(Members::none))?;
    let grace = body.grace_period_hours.unwrap_or_default();
    let rotation = Rotation { grace, by: caller.permissions(), now: app.clock.now() };
    match app.store.rotate_key(caller.account_id(), id, rotation, &mut SysRng).await? {
        Rotated::Done(mut key, secret) => {
            app.auth.settle().await;
            app.add_uses(&mut key);
            let rotated = app.view(caller.plan()).rotated(*key, &secret);
            Ok(SuccessWithMeta::new(rotated, Warning { warning: SHOWN_ONCE }))
        }
        Rotated::NotFound => Err(ApiError::NotFound),
        Rotated::Refused(Refusal::Needs(needed)) => Err(app.lacks(&caller, needed)),
        Rotated::Refused(Refusal::StillLive(until)) => Err(ApiError::TwoSecrets(until)),
    }
}
