//! The key endpoints and their wire types.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use rand::rngs::SysRng;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::body::Members;
use super::error::ApiError;
use super::extract::NoQuery;
use super::wire::{Success, SuccessWithMeta, timestamp};
use crate::account::Plan;
use crate::auth::Caller;
use crate::id::KeyId;
use crate::key::{ApiKey, KeyName, Lifetime, NewKey};
use crate::secret::Secret;

pub(super) const COLLECTION: &str = "/v1/api-keys";
pub(super) const ITEM: &str = "/v1/api-keys/{id}";

/// What every answer that shows a key says beside it.
pub const SHOWN_ONCE: &str = "This API key will only be shown once. Please store it securely.";

/// A key as its account sees it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Stable for the key's whole life.
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub key_id: String,
    #[schema(min_length = 1, max_length = 100, example = "Production API")]
    pub name: String,
    /// The first 6 characters of the key, and four asterisks.
    #[schema(example = "mk_a1b****")]
    pub key_prefix: String,
    #[schema(value_type = PlanName)]
    pub plan: &'static str,
    /// Requests per minute; `null` if the plan has no such limit.
    #[schema(required = true, example = 100)]
    pub rate_limit: Option<u32>,
    #[schema(format = DateTime, required = true)]
    pub last_used: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime, required = true)]
    pub expiration_ts: Option<String>,
}

/// A key just made: the only answer that ever shows `apiKey`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedKey {
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub key_id: String,
    #[schema(min_length = 1, max_length = 100, example = "Production API")]
    pub name: String,
    #[schema(pattern = "^mk_[0-9a-z]{8}_[0-9a-z]{32}$")]
    pub api_key: String,
    #[schema(example = "mk_a1b****")]
    pub key_prefix: String,
    #[schema(value_type = PlanName)]
    pub plan: &'static str,
    #[schema(required = true, example = 20)]
    pub rate_limit: Option<u32>,
    #[schema(format = DateTime, required = true)]
    pub expiration_ts: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it stands for the plan's name in the document")]
pub(crate) enum PlanName {
    Free,
    Pro,
    Enterprise,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Total {
    /// How many keys the account has.
    total: usize,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Warning {
    warning: &'static str,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Revoked {
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    key_id: String,
    #[schema(default = true)]
    revoked: bool,
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
}

impl TryFrom<Members> for CreateKey {
    type Error = ApiError;

    fn try_from(mut members: Members) -> Result<Self, ApiError> {
        let name = members.text("name");
        let expiration_days = members.optional_integer("expirationDays");
        members.end()?;
        let name = name.expect("a text that is missing or refused ends as a problem");
        Ok(Self { name, expiration_days })
    }
}

/// Every key of the caller's account that is not revoked, the newest first.
#[utoipa::path(get, path = COLLECTION, operation_id = "listKeys", tag = "keys",
    responses((status = 200, description = "The account's keys", body = SuccessWithMeta<Vec<Key>, Total>)))]
pub(super) async fn list(caller: Caller, State(app): State<App>, _: NoQuery) -> Result<impl IntoResponse, ApiError> {
    let keys = app.store.list_keys(caller.account_id()).await?;
    let rate_limit = app.plans.rate_limit(caller.plan());
    let shown = keys.into_iter().map(|mut key| {
        key.last_used_at = key.last_used_at.max(app.last_used.latest(key.prefix));
        Key::new(key, caller.plan(), rate_limit)
    });
    let keys: Vec<_> = shown.collect();
    let total = keys.len();
    Ok(SuccessWithMeta::new(keys, Total { total }))
}

/// Makes a key. Its text is in this answer and nowhere else.
#[utoipa::path(post, path = COLLECTION, operation_id = "createKey", tag = "keys", request_body = CreateKey,
    responses((status = 201, description = "The new key", body = SuccessWithMeta<CreatedKey, Warning>)))]
pub(super) async fn create(
    caller: Caller,
    State(app): State<App>,
    _: NoQuery,
    members: Members,
) -> Result<impl IntoResponse, ApiError> {
    let body = CreateKey::try_from(members)?;
    let key = NewKey::new(caller.account_id(), body.name, body.expiration_days, app.clock.now());
    let limit = app.plans.of(caller.plan()).max_keys;
    let secret = app.store.create_key(&key, limit, &mut SysRng).await?.ok_or(ApiError::TooManyKeys { limit })?;
    let location: [(HeaderName, String); 1] = [(LOCATION, format!("{COLLECTION}/{}", key.id))];
    let created = CreatedKey::new(&key, &secret, caller.plan(), app.plans.rate_limit(caller.plan()));
    Ok((StatusCode::CREATED, location, SuccessWithMeta::new(created, Warning { warning: SHOWN_ONCE })))
}

/// Revokes a key of the caller's account, for good. A key may revoke itself.
#[utoipa::path(delete, path = ITEM, operation_id = "revokeKey", tag = "keys",
    params(("id" = String, Path, description = "The key's `keyId`, or its plain UUID")),
    responses((status = 200, description = "The key opens nothing any more", body = Success<Revoked>)))]
pub(super) async fn revoke(
    caller: Caller,
    State(app): State<App>,
    id: KeyId,
    _: NoQuery,
) -> Result<impl IntoResponse, ApiError> {
    let was_live = app.store.revoke_key(caller.account_id(), id, app.clock.now()).await?;
    // Also before a 404: whoever asks again after a lost answer takes it for the proof that the key is dead.
    app.auth.settle().await?;
    if !was_live {
        return Err(ApiError::NotFound);
    }
    Ok(Success::new(Revoked { key_id: id.to_string(), revoked: true }))
}

impl Key {
    pub fn new(key: ApiKey, plan: Plan, rate_limit: Option<u32>) -> Self {
        Self {
            key_id: key.id.to_string(),
            name: key.name,
            key_prefix: key.prefix.masked(),
            plan: plan.as_str(),
            rate_limit,
            last_used: key.last_used_at.map(timestamp),
            created_at: timestamp(key.created_at),
            expiration_ts: key.expires_at.map(timestamp),
        }
    }
}

impl CreatedKey {
    /// What a client, or the operator, is shown of a new key, once.
    pub fn new(key: &NewKey, secret: &Secret, plan: Plan, rate_limit: Option<u32>) -> Self {
        Self {
            key_id: key.id.to_string(),
            name: key.name.as_str().to_owned(),
            api_key: secret.expose().to_owned(),
            key_prefix: secret.prefix().masked(),
            plan: plan.as_str(),
            rate_limit,
            expiration_ts: key.expires_at.map(timestamp),
            created_at: timestamp(key.created_at),
        }
    }
}
