//! axum with sqlx carrying out the service's statements.
//!
//! The SQL texts are copies of those in `src/store/keys.rs`, and bodies are made with the service's own types, so that both
//! sides ask the same of the database and answer the same JSON.

use std::str::FromStr;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{delete, get, post};
use chrono::{DateTime, Utc};
use momail_api_keys::account::Plan;
use momail_api_keys::clock::Clock;
use momail_api_keys::http::SHOWN_ONCE;
use momail_api_keys::id::{AccountId, KeyId};
use momail_api_keys::key::{ApiKey, KeyName, NewKey};
use momail_api_keys::permission::Permissions;
use momail_api_keys::secret::{Prefix, Secret};
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use uuid::Uuid;

use super::pool::Pool;
use super::{CATALOGUE, Failure, Success, X_ACCOUNT, answer, json, view};
use crate::accounts::LIMIT;

const FIND_CREDENTIAL: &str = "
    select s.hash, k.id, k.account_id, a.plan, k.expires_at, k.revoked_at, s.last_used_at,
           (select n from change_feed order by n desc limit 1), k.permissions, k.disabled_at, s.retires_at
    from key_secrets s
    join api_keys k on k.id = s.key_id
    join accounts a on a.id = k.account_id
    where s.prefix = $1";

const LIST: &str = "
    select k.id, k.name, s.prefix, k.created_at, k.expires_at, s.last_used_at, k.permissions, k.disabled_at,
           s.retires_at
    from api_keys k
    join key_secrets s on s.key_id = k.id
    where k.account_id = $1 and k.revoked_at is null
    order by k.created_at desc, k.id desc, s.retires_at desc nulls first";

const CREATE: &str = "
    with account as (
        select id from accounts where id = $2 and live_keys < $6 for no key update
    ), key as (
        insert into api_keys (id, account_id, name, created_at, expires_at, permissions)
        select $1, id, $3, $4, $5, $7 from account
        returning id
    ), event as (
        insert into events (account_id, key_id, event, at, by_key, address, request_id)
        select $2, id, 'created', $4, $10, $11, $12 from key
    )
    insert into key_secrets (prefix, key_id, hash, created_at)
    select $8, id, $9, $4 from key";

const REVOKE: &str = "
    with revoked as (
        update api_keys set revoked_at = $3
        where account_id = $1 and id = $2 and revoked_at is null
        returning id
    )
    insert into events (account_id, key_id, event, at, by_key, address, request_id)
    select $1, id, 'revoked', $3, $4, $5, $6 from revoked";

pub(super) fn routes(prefix: &str, pool: Pool) -> Router {
    Router::new()
        .route(&format!("{prefix}/look-up"), get(look_up))
        .route(&format!("{prefix}/list"), get(list))
        .route(&format!("{prefix}/look-up-and-list"), get(look_up_and_list))
        .route(&format!("{prefix}/insert"), post(insert))
        .route(&format!("{prefix}/update/{{id}}"), delete(update))
        .with_state(pool)
}

/// One statement, the key's, and an answer without a body.
async fn look_up(State(pool): State<Pool>, headers: HeaderMap) -> Result<Response, Failure> {
    find_account(&pool, &headers).await?;
    Ok(answer(StatusCode::OK, Body::empty()))
}

/// One statement: the list's.
async fn list(State(pool): State<Pool>, headers: HeaderMap) -> Result<Response, Failure> {
    show_keys(&pool, account_in(&headers)?, Plan::Pro).await
}

/// Two statements: the key's and the list's.
async fn look_up_and_list(State(pool): State<Pool>, headers: HeaderMap) -> Result<Response, Failure> {
    let (account_id, plan) = find_account(&pool, &headers).await?;
    show_keys(&pool, account_id, plan).await
}

async fn show_keys(pool: &Pool, account_id: AccountId, plan: Plan) -> Result<Response, Failure> {
    let rows = sqlx::query(LIST).bind(account_id.0).fetch_all(&mut *pool.lease().await?).await?;
    let keys = rows.iter().map(|row| {
        let key = ApiKey {
            id: KeyId(row.try_get(0)?),
            name: row.try_get(1)?,
            prefix: Prefix::parse(row.try_get(2)?).context("not a prefix")?,
            created_at: row.try_get(3)?,
            expires_at: row.try_get(4)?,
            last_used_at: row.try_get(5)?,
            permissions: CATALOGUE.from_stored(row.try_get(6)?),
            disabled_at: row.try_get(7)?,
            earlier_used_at: None,
            previous: None,
        };
        Ok(view(plan).key(key))
    });
    let keys = keys.collect::<Result<Vec<_>, Failure>>()?;
    let total = Total { total: keys.len() };
    json(StatusCode::OK, &Success { success: true, data: keys, meta: Some(total) })
}

/// One statement: the insert.
async fn insert(State(pool): State<Pool>, headers: HeaderMap, body: Bytes) -> Result<Response, Failure> {
    let body: CreateKey<'_> = serde_json::from_slice(&body)?;
    let (name, permissions) = (KeyName::try_from(body.name)?, Permissions::EVERYTHING);
    let key = NewKey::new(account_in(&headers)?, name, permissions, None, Clock::system().now());
    let secret = Secret::generate(&mut SysRng)?;
    let (prefix, hash) = (secret.prefix(), secret.hash());
    sqlx::query(CREATE)
        .bind(key.id.0)
        .bind(key.account_id.0)
        .bind(key.name.as_str())
        .bind(key.created_at)
        .bind(key.expires_at)
        .bind(i64::from(LIMIT))
        .bind(CATALOGUE.to_stored(key.permissions))
        .bind(prefix.as_str())
        .bind(hash.as_bytes())
        .bind(None::<Uuid>)
        .bind(None::<&str>)
        .bind(None::<&str>)
        .execute(&mut *pool.lease().await?)
        .await?;
    let created = view(Plan::Pro).created(&key, &secret);
    json(StatusCode::CREATED, &Success { success: true, data: created, meta: Some(Warning { warning: SHOWN_ONCE }) })
}

/// One statement: the update.
async fn update(State(pool): State<Pool>, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Failure> {
    let account_id = account_in(&headers)?;
    let id = KeyId::parse(&id).context("not an id")?;
    let now = Clock::system().now();
    let done = sqlx::query(REVOKE)
        .bind(account_id.0)
        .bind(id.0)
        .bind(now)
        .bind(None::<Uuid>)
        .bind(None::<&str>)
        .bind(None::<&str>)
        .execute(&mut *pool.lease().await?)
        .await?;
    if done.rows_affected() != 1 {
        return Ok(answer(StatusCode::NOT_FOUND, Body::empty()));
    }
    let data = Revoked { key_id: id.to_string(), revoked: true };
    json(StatusCode::OK, &Success { success: true, data, meta: None::<()> })
}

async fn find_account(pool: &Pool, headers: &HeaderMap) -> Result<(AccountId, Plan), Failure> {
    let key = headers.get("x-api-key").and_then(|key| key.to_str().ok()).context("no key")?;
    let prefix = key.get(3..11).context("not a key")?;
    let row = sqlx::query(FIND_CREDENTIAL).bind(prefix).fetch_one(&mut *pool.lease().await?).await?;
    let _hash: &[u8] = row.try_get(0)?;
    let _key_id: Uuid = row.try_get(1)?;
    let _permissions = CATALOGUE.from_stored(row.try_get(8)?);
    let _times: [Option<DateTime<Utc>>; 3] = [row.try_get(4)?, row.try_get(5)?, row.try_get(6)?];
    Ok((AccountId(row.try_get(2)?), Plan::from_str(row.try_get(3)?)?))
}

fn account_in(headers: &HeaderMap) -> Result<AccountId, Failure> {
    let account = headers.get(X_ACCOUNT).and_then(|account| account.to_str().ok()).context("no account")?;
    Ok(AccountId(account.parse()?))
}

#[derive(Deserialize)]
struct CreateKey<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Total {
    total: usize,
}

#[derive(Serialize)]
struct Warning {
    warning: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    key_id: String,
    revoked: bool,
}
