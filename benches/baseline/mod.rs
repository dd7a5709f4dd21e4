//! The bare programs: axum answering constants, axum with sqlx carrying out the service's statements, and axum with a script in
//! Redis, with nothing around them. No check of the key, no request id, no time limit, no metrics, no log.

mod limit;
mod pool;
mod statements;

use std::future::{Ready, ready};
use std::io::{self, Read, Write};
use std::sync::{Arc, LazyLock};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use momail_api_keys::account::Plan;
use momail_api_keys::clock::Clock;
use momail_api_keys::config::Config;
use momail_api_keys::http::View;
use momail_api_keys::id::KeyId;
use momail_api_keys::key::ApiKey;
use momail_api_keys::permission::{Catalogue, Permissions};
use momail_api_keys::secret::Prefix;
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;

use self::pool::Pool;
use super::Bodies;
use super::accounts::LIMIT as NO_LIMIT;

pub(crate) const HELLO: &str = "/hello";
pub(crate) const KEY: &str = "/key";
pub(crate) const CONSTANT_LIST: &str = "/constant/list";
pub(crate) const CONSTANT_NOT_FOUND: &str = "/constant/not-found";
pub(crate) const LIMIT: &str = "/limit";
/// What asks no database.
pub(crate) const CONSTANTS: [&str; 5] = [HELLO, KEY, CONSTANT_LIST, CONSTANT_NOT_FOUND, LIMIT];
/// Names the account where no statement finds it.
pub(crate) const X_ACCOUNT: &str = "x-account";

/// Serves until standard input ends.
pub(crate) fn serve(bodies: &Bodies) -> anyhow::Result<()> {
    let options: PgConnectOptions = bodies.database.parse()?;
    let (list, not_found) = (std::fs::read(&bodies.list)?, std::fs::read(&bodies.not_found)?);
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut routes = Router::new()
            .route(HELLO, get(async || "hello"))
            .route(KEY, get(key))
            .route(CONSTANT_LIST, get(constant(StatusCode::OK, list)))
            .route(CONSTANT_NOT_FOUND, get(constant(StatusCode::NOT_FOUND, not_found)))
            .merge(statements::routes("/sqlx", Pool::usual(options.clone())))
            .merge(statements::routes("/without-test", Pool::without_test(options.clone())))
            .merge(statements::routes("/unasked", Pool::unasked(options)?));
        if let Some(url) = &bodies.redis {
            routes = routes.merge(limit::routes(url).await?);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        writeln!(io::stdout(), "listening public=http://{}", listener.local_addr()?)?;
        std::thread::spawn(|| {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
        axum::serve(listener, routes).await.context("the bare programs have ended")
    })
}

fn constant(status: StatusCode, body: Vec<u8>) -> impl Fn() -> Ready<Response> + Clone + Send + Sync {
    let body = Bytes::from(body);
    move || ready(answer(status, Body::from(body.clone())))
}

/// What a program answers that knows one key.
async fn key() -> Result<Response, Failure> {
    let key = ApiKey {
        id: KeyId::new(),
        name: "Production API".to_owned(),
        prefix: Prefix::parse("a1b2c3d4").context("not a prefix")?,
        created_at: Clock::system().now(),
        expires_at: None,
        permissions: Permissions::EVERYTHING,
        disabled_at: None,
        last_used_at: None,
        earlier_used_at: None,
        previous: None,
    };
    json(StatusCode::OK, &Success { success: true, data: view(Plan::Pro).key(key), meta: None::<()> })
}

/// The service's own, by default: a longer list of permissions makes a longer answer.
static CATALOGUE: LazyLock<Arc<Catalogue>> =
    LazyLock::new(|| Config::load(None).expect("the environment's settings are those of the service").catalogue);

fn view(plan: Plan) -> View<'static> {
    View { plan, rate_limit: Some(NO_LIMIT), catalogue: &CATALOGUE, now: Clock::system().now() }
}

fn json<T: Serialize>(status: StatusCode, body: &T) -> Result<Response, Failure> {
    Ok(answer(status, Body::from(serde_json::to_vec(body)?)))
}

fn answer(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Any error: the load, which counts it, ends the benchmark with its text.
struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{:#}", self.0)).into_response()
    }
}

#[derive(Serialize)]
struct Success<D, M> {
    success: bool,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<M>,
}
