//! axum and one script in Redis a request, on one connection that all requests share.

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use redis::Script;
use redis::aio::MultiplexedConnection;

use super::{Failure, X_ACCOUNT, answer};
use crate::accounts::LIMIT;

#[derive(Clone)]
struct Counter {
    link: MultiplexedConnection,
    script: Script,
}

pub(super) async fn routes(url: &str) -> anyhow::Result<Router> {
    let link = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let counter = Counter { link, script: Script::new(include_str!("limit.lua")) };
    Ok(Router::new().route(super::LIMIT, get(count)).with_state(counter))
}

async fn count(State(counter): State<Counter>, headers: HeaderMap) -> Result<Response, Failure> {
    let Counter { mut link, script } = counter;
    let account = headers.get(X_ACCOUNT).context("no account")?;
    let mut invocation = script.key(account.as_bytes());
    invocation.arg("pro").arg(LIMIT).arg(LIMIT).arg(LIMIT);
    let (goes, ..): (u8, i64, i64, i64, i64, i64, i64) = invocation.invoke_async(&mut link).await?;
    let status = if goes == 1 { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
    Ok(answer(status, Body::empty()))
}
