//! `GET /v1/api-keys`: the account's keys, all of them or a page of those that are looked for.

use axum::extract::State;
use axum::response::IntoResponse;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{COLLECTION, Key};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::query::{Limit, Parameters};
use crate::http::wire::SuccessWithMeta;
use crate::key::{KeyName, Status};
use crate::store::{By, Found, Order, Search};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Total {
    /// How many keys the account has, or how many of them were found.
    total: usize,
    /// These three only if a page was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    offset: Option<u32>,
    /// Whether there are more after this page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    has_more: Option<bool>,
}

/// Keys left out before a page.
#[derive(Clone, Copy, Debug, Default)]
struct Offset(u32);

impl Offset {
    /// More than any account holds.
    const MAX: u32 = 1_000_000;
}

#[derive(Debug, thiserror::Error)]
#[error("must be a whole number from 0 to {}", Offset::MAX)]
struct InvalidOffset;

impl TryFrom<i64> for Offset {
    type Error = InvalidOffset;

    fn try_from(number: i64) -> Result<Self, InvalidOffset> {
        match u32::try_from(number) {
            Ok(offset @ 0..=Self::MAX) => Ok(Self(offset)),
            _ => Err(InvalidOffset),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("must be createdAt, lastUsed, name or expirationTs, with :asc or :desc")]
struct InvalidOrder;

/// What a client says of the order.
struct Sort(Order);

impl TryFrom<&str> for Sort {
    type Error = InvalidOrder;

    fn try_from(text: &str) -> Result<Self, InvalidOrder> {
        let (by, direction) = text.split_once(':').unwrap_or((text, "asc"));
        let by = match by {
            "createdAt" => By::CreatedAt,
            "lastUsed" => By::LastUsed,
            "name" => By::Name,
            "expirationTs" => By::Expiration,
            _ => return Err(InvalidOrder),
        };
        let descending = match direction {
            "asc" => false,
            "desc" => true,
            _ => return Err(InvalidOrder),
        };
        Ok(Self(Order { by, descending }))
    }
}

const NEWEST_FIRST: Order = Order { by: By::CreatedAt, descending: true };

/// What a query asks for; `None` for a page that is not asked for.
struct Asked {
    search: Search,
    page: Option<(Limit, Offset)>,
}

fn read(mut parameters: Parameters, now: DateTime<Utc>) -> Result<Asked, ApiError> {
    let limit = parameters.integer::<Limit>("limit");
    let offset = parameters.integer::<Offset>("offset");
    let status = parameters.text::<Status>("status");
    let sort = parameters.text("sort");
    // What a name cannot hold, no part of a name can.
    let part_of_name = parameters.text::<KeyName>("q").map(|part| part.as_str().to_owned());
    parameters.end()?;
    let is_page = limit.is_some() || offset.is_some();
    let page = is_page.then(|| (limit.unwrap_or(Limit(Limit::MAX)), offset.unwrap_or_default()));
    let order = sort.map_or(NEWEST_FIRST, |Sort(order)| order);
    let (limit, offset) = page.map_or((u32::MAX, 0), |(limit, offset)| (limit.0, offset.0));
    Ok(Asked { search: Search { status, part_of_name, order, limit, offset, now }, page })
}

/// The keys of the caller's account that are not revoked; without a query all of them, the newest first.
#[utoipa::path(get, path = COLLECTION, operation_id = "listKeys", tag = "keys",
    params(
        ("limit" = Option<u32>, Query, description = "A page of so many keys", minimum = 1, maximum = 100),
        ("offset" = Option<u32>, Query, description = "A page after so many keys", minimum = 0, maximum = 1_000_000),
        ("sort" = Option<String>, Query, description = "`createdAt`, `lastUsed`, `name` or `expirationTs`, and `:asc` \\
            (the default) or `:desc`; keys without such a time come last", example = "name:asc"),
        ("status" = Option<String>, Query, description = "Only keys that are `active`, `expired` or `disabled`"),
        ("q" = Option<String>, Query, description = "Only keys whose name contains this; A to Z are as good as a to z",
            min_length = 1, max_length = 100),
    ),
    responses((status = 200, description = "The account's keys", body = SuccessWithMeta<Vec<Key>, Total>)))]
pub(crate) async fn list(
    caller: Caller,
    State(app): State<App>,
    parameters: Parameters,
) -> Result<impl IntoResponse, ApiError> {
    let view = app.view(caller.plan());
    let (found, page) = if parameters.is_empty() {
        let keys = app.store_for(&caller).list_keys(caller.account_id()).await?;
        (Found { total: keys.len(), keys }, None)
    } else {
        let Asked { search, page } = read(parameters, view.now)?;
        (app.store_for(&caller).search_keys(caller.account_id(), &search).await?, page)
    };
    let Found { keys, total } = found;
    let has_more = page.map(|(_, Offset(offset))| offset as usize + keys.len() < total);
    let keys: Vec<_> = keys.into_iter().map(|key| app.show(key, &view)).collect();
    let (limit, offset) = page.map(|(limit, offset)| (limit.0, offset.0)).unzip();
    Ok(SuccessWithMeta::new(keys, Total { total, limit, offset, has_more }))
}
