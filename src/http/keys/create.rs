//! `POST /v1/api-keys`: makes a key.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use rand::rngs::SysRng;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{COLLECTION, CreatedKey, IDEMPOTENCY_KEY, SHOWN_ONCE};
use crate::auth::Caller;
use crate::event::Origin;
use crate::http::App;
use crate::http::body::Members;
use crate::http::error::ApiError;
use crate::http::query::NoQuery;
use crate::http::retry::{Retry, Sealer};
use crate::http::wire::{JsonText, SuccessWithMeta};
use crate::key::{KeyName, Lifetime, NewKey};
use crate::permission::{Catalogue, Permissions};
use crate::secret::Secret;
use crate::store::{Carried, Kept};

#[derive(Serialize, ToSchema)]
pub(crate) struct Warning {
    pub(super) warning: &'static str,
}

/// What a client says of a key to be made.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(crate) struct CreateKey {
    /// 1 to 100 characters after trimming, none of them a control character. Names need not be unique.
    #[schema(value_type = String, min_length = 1, max_length = 100, example = "Production API")]
    name: KeyName,
    /// Days of 24 hours until the key expires; absent or `null` if it never does.
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 365, example = 365)]
    expiration_days: Option<Lifetime>,
    /// What the key may do, at most what its maker may; absent or `null` for just as much.
    #[schema(value_type = Option<Vec<String>>, example = json!(["domains:read"]))]
    permissions: Option<Permissions>,
}

impl CreateKey {
    fn read(mut members: Members, catalogue: &Catalogue) -> Result<Self, ApiError> {
        let name = members.text("name");
        let expiration_days = members.optional_integer("expirationDays");
        let permissions = members.optional_permissions("permissions", catalogue);
        members.end()?;
        let name = name.expect("a text that is missing or refused ends as a problem");
        Ok(Self { name, expiration_days, permissions })
    }
}

/// Makes a key. Its text is in this answer and nowhere else.
#[utoipa::path(post, path = COLLECTION, operation_id = "createKey", tag = "keys", request_body = CreateKey,
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY_KEY)),
    responses((status = 201, description = "The new key", body = SuccessWithMeta<CreatedKey, Warning>)))]
pub(crate) async fn create(
    caller: Caller,
    State(app): State<App>,
    (origin, NoQuery): (Origin, NoQuery),
    retry: Option<Retry>,
    members: Members,
) -> Result<impl IntoResponse, ApiError> {
    let caller = app.judge_again(&caller).await?;
    let retry = retry.map(|retry| retry.sealer(&app, &caller, &members)).transpose()?;
    let body = CreateKey::read(members, app.store.catalogue())?;
    let permissions = body.permissions.unwrap_or(caller.permissions());
    app.permit(&caller, permissions)?;
    let key = NewKey::new(caller.account_id(), body.name, permissions, body.expiration_days, app.clock.now());
    let key = key.by(origin);
    let limit = app.plans.of(caller.plan()).max_keys;
    let answer = |secret: &Secret| {
        let created = app.view(caller.plan()).created(&key, secret);
        SuccessWithMeta::new(created, Warning { warning: SHOWN_ONCE }).to_bytes()
    };
    let carried = match &retry {
        None => Carried::Out(app.store_for(&caller).create_key(&key, limit, &mut SysRng).await?),
        Some(sealer) => {
            let kept = Kept { once: sealer.once, seal: |secret: &Secret| sealer.seal(&answer(secret)) };
            app.store_for(&caller).create_key_once(&key, limit, kept, &mut SysRng).await?
        }
    };
    let answer = match Sealer::judge(retry.as_ref(), carried)? {
        Ok(made) => answer(&made.ok_or(ApiError::TooManyKeys { limit })?),
        Err(before) => before,
    };
    let location: [(HeaderName, String); 1] = [(LOCATION, format!("{COLLECTION}/{}", key_id(&answer)))];
    Ok((StatusCode::CREATED, location, JsonText(answer)))
}

/// The id in an answer of ours, be it given before.
fn key_id(answer: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    answer["data"]["keyId"].as_str().unwrap_or_default().to_owned()
}
