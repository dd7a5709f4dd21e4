//! `GET /v1/api-keys/{id}/usage`: how many requests a key has made.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::IntoResponse;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::USAGE;
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::query::Parameters;
use crate::http::wire::{Success, timestamp};
use crate::id::KeyId;
use crate::store::{Counts, HOURS_KEPT, Usage, day_of, hour_of};

/// What a key has done.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownUsage {
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    key_id: String,
    /// In all these days.
    total: Requests,
    /// Each day in UTC, the last one is today.
    pub days: Vec<Span>,
    /// Each of the last 48 clock hours, the last one is now.
    hours: Vec<Span>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Requests {
    #[schema(example = 1234)]
    allowed: i64,
    /// Beyond a limit of the plan: answered with 429.
    #[schema(example = 5)]
    refused: i64,
}

#[derive(Serialize, ToSchema)]
pub struct Span {
    #[schema(format = DateTime)]
    pub start: String,
    #[schema(example = 1234)]
    pub allowed: i64,
    #[schema(example = 5)]
    pub refused: i64,
}

impl ShownUsage {
    pub fn new(key: KeyId, found: &Usage, days: i64, now: DateTime<Utc>) -> Self {
        let total = Requests {
            allowed: found.days.values().map(|counts| counts.allowed).sum(),
            refused: found.days.values().map(|counts| counts.refused).sum(),
        };
        let days = spans(&found.days, day_of(now), days, 86_400);
        let hours = spans(&found.hours, hour_of(now), HOURS_KEPT, 3_600);
        Self { key_id: key.to_string(), total, days, hours }
    }
}

/// Days to look back.
#[derive(Clone, Copy)]
struct Days(i64);

impl Days {
    const DEFAULT: Self = Self(30);
    const MAX: i64 = 365;
}

#[derive(Debug, thiserror::Error)]
#[error("must be a whole number from 1 to {}", Days::MAX)]
struct InvalidDays;

impl TryFrom<i64> for Days {
    type Error = InvalidDays;

    fn try_from(days: i64) -> Result<Self, InvalidDays> {
        if (1..=Self::MAX).contains(&days) { Ok(Self(days)) } else { Err(InvalidDays) }
    }
}

/// How many requests a key has made, by the day and by the hour, those of the last minute not always among them.
#[utoipa::path(get, path = USAGE, operation_id = "getKeyUsage", tag = "keys",
    params(
        ("id" = String, Path, description = "The key's `keyId`, or its plain UUID"),
        ("days" = Option<u16>, Query, description = "Days to look back, today included; 30 if it does not say",
            minimum = 1, maximum = 365),
    ),
    responses((status = 200, description = "The key's requests", body = Success<ShownUsage>)))]
pub(crate) async fn usage(
    caller: Caller,
    State(app): State<App>,
    id: KeyId,
    mut parameters: Parameters,
) -> Result<impl IntoResponse, ApiError> {
    let Days(days) = parameters.integer("days").unwrap_or(Days::DEFAULT);
    parameters.end()?;
    let (account_id, now) = (caller.account_id(), app.clock.now());
    app.store_for(&caller).find_key(account_id, id).await?.ok_or(ApiError::NotFound)?;
    let found = app.store_for(&caller).usage(account_id, id, days, now).await?;
    Ok(Success::new(ShownUsage::new(id, &found, days, now)))
}

/// So many spans up to the last one, those without a request included.
fn spans(counts: &BTreeMap<i64, Counts>, last: i64, number: i64, seconds: i64) -> Vec<Span> {
    let span = |at: i64| {
        let Counts { allowed, refused } = counts.get(&at).copied().unwrap_or_default();
        let start = DateTime::<Utc>::from_timestamp(at * seconds, 0).unwrap_or_default();
        Span { start: timestamp(start), allowed, refused }
    };
    (last - number + 1..=last).map(span).collect()
}
