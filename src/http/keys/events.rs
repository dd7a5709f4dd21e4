//! `GET /v1/api-keys/events`: who changed what in the account.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::EVENTS;
use crate::auth::Caller;
use crate::event::Event;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::query::{Limit, Parameters};
use crate::http::wire::{SuccessWithMeta, timestamp};

/// A recorded change.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownEvent {
    /// Later changes have greater numbers.
    #[schema(example = 42)]
    pub event_id: i64,
    /// `created`, `updated`, `rotated`, `retired`, `revoked`, `plan_changed`, `expires_soon` or `removed`.
    #[schema(example = "updated")]
    pub event: String,
    #[schema(format = DateTime)]
    pub at: String,
    /// The key that was changed; `null` if it was the account.
    #[schema(required = true, example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub key_id: Option<String>,
    /// The members that were updated, with a space between them; the new plan; or how soon the key expires.
    #[schema(required = true, example = "name permissions")]
    pub detail: Option<String>,
    /// The key that asked for it; `null` for the operator, or the service itself.
    #[schema(required = true, example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub by_key_id: Option<String>,
    /// Where it was asked from.
    #[schema(required = true, example = "203.0.113.5")]
    pub address: Option<String>,
    /// The `X-Request-Id` of the answer.
    #[schema(required = true)]
    pub request_id: Option<String>,
}

impl From<Event> for ShownEvent {
    fn from(event: Event) -> Self {
        Self {
            event_id: event.id,
            event: event.what,
            at: timestamp(event.at),
            key_id: event.key_id.map(|key| key.to_string()),
            detail: event.detail,
            by_key_id: event.by_key.map(|key| key.to_string()),
            address: event.address,
            request_id: event.request_id,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    limit: u32,
    /// Whether there are older ones.
    has_more: bool,
}

/// The event that is known already.
struct Before(i64);

#[derive(Debug, thiserror::Error)]
#[error("must be an eventId")]
struct InvalidBefore;

impl TryFrom<i64> for Before {
    type Error = InvalidBefore;

    fn try_from(number: i64) -> Result<Self, InvalidBefore> {
        if number > 0 { Ok(Self(number)) } else { Err(InvalidBefore) }
    }
}

/// The changes to the account and its keys, the newest first.
#[utoipa::path(get, path = EVENTS, operation_id = "listEvents", tag = "keys",
    params(
        ("limit" = Option<u32>, Query, description = "At most so many, 100 if it does not say", minimum = 1, maximum = 100),
        ("before" = Option<i64>, Query, description = "Only those before this `eventId`: the last one of the page before",
            minimum = 1),
    ),
    responses((status = 200, description = "The changes", body = SuccessWithMeta<Vec<ShownEvent>, Page>)))]
pub(crate) async fn events(
    caller: Caller,
    State(app): State<App>,
    mut parameters: Parameters,
) -> Result<impl IntoResponse, ApiError> {
    let Limit(limit) = parameters.integer("limit").unwrap_or(Limit(Limit::MAX));
    let before = parameters.integer("before").map(|Before(id)| id);
    parameters.end()?;
    // One more than is shown, to know whether there are any.
    let mut found = app.store_for(&caller).list_events(Some(caller.account_id()), before, limit + 1).await?;
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let shown: Vec<ShownEvent> = found.into_iter().map(ShownEvent::from).collect();
    Ok(SuccessWithMeta::new(shown, Page { limit, has_more }))
}
