//! What every exchange gets, whoever calls: a request id, CORS, the common headers, a measurement and a line in the log.
//!
//! It is one pass rather than a stack of layers, each of which would cost more than the authentication does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONNECTION, HOST, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{self, ApiError};
use super::guard::CalledBy;
use super::{App, ROUTES, cors, verify};
use crate::access_log::{Line, Refused};
use crate::digits::hexadecimal;
use crate::metrics::METHODS;
use crate::secret;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes request ids without asking the system: a random start for each process, and a count.
pub(super) struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        Self { process: rand::random(), next: AtomicU64::new(rand::random()) }
    }

    fn next(&self) -> HeaderValue {
        // An odd factor visits every number once, so neighbours do not look alike in a log.
        let count = self.next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let digits = [hexadecimal(self.process), hexadecimal(count)];
        HeaderValue::from_bytes(digits.as_flattened()).expect("hexadecimal digits make a header")
    }
}

pub(super) async fn exchange(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>();
    let (route_place, method_place) = (place_of_route(matched), place_of_method(request.method()));
    let (route, method) = (ROUTES[route_place], METHODS[method_place]);
    // A gateway is no browser: what may cross origins is said by the application behind it.
    let from_gateway = verify::is_route(route);
    let id = request_id(&app, &request);
    if !from_gateway && !request.method().is_safe() {
        // For the record of what is changed.
        request.headers_mut().insert(X_REQUEST_ID, id.clone());
    }
    let allowed_origin = app.cors.allow(request.headers());

    let mut response = if !from_gateway && cors::is_preflight(&request) {
        cors::preflight()
    } else if !has_valid_host(&request) {
        refuse_and_close("Host", "must be given once, as a host and maybe a port")
    } else if !has_one_coding(&request) {
        refuse_and_close("Transfer-Encoding", "must be given once, as chunked")
    } else {
        error::reshape(next.run(request).await)
    };
    if from_gateway {
        verify::put_in_dialect(route, &mut response);
    }

    let status = response.status().as_u16();
    let took = started.elapsed();
    app.metrics.request(route_place, method_place, status, took);
    if tracing::enabled!(tracing::Level::INFO) {
        let key = response.extensions().get::<CalledBy>().map(|by| by.0);
        let refused = response.extensions().get::<Refused>().copied();
        let (at, request_id) = (app.clock.now(), id.as_bytes());
        app.access_log.line(&Line { at, method, route, status, took, request_id, key, refused });
    }

    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id);
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !from_gateway {
        cors::decorate(headers, allowed_origin);
    }
    response
}

/// The client's own id if it is harmless, else a new one.
fn request_id(app: &App, request: &Request) -> HeaderValue {
    let harmless = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=64).contains(&id.len())
            && id.iter().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(c))
            && !secret::appears_in(id)
    };
    request.headers().get(X_REQUEST_ID).filter(harmless).cloned().unwrap_or_else(|| app.request_ids.next())
}

/// RFC 9112, section 3.2: a request of HTTP/1.1 names its host once. Older probes name none.
fn has_valid_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => Authority::try_from(host.as_bytes()).is_ok_and(|host| !host.as_str().contains('@')),
        (Some(_), Some(_)) => false,
    }
}

/// RFC 9112, section 6.1: a body is sent in chunks once. hyper takes any codings of which the last is chunked, where somebody
/// before us may have found another end of the request.
fn has_one_coding(request: &Request) -> bool {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// For a request that may not end where it seems to: nothing after it is read.
fn refuse_and_close(header: &str, problem: &str) -> Response {
    let mut refusal = ApiError::invalid(header, problem).into_response();
    refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    refusal
}

/// Among [`ROUTES`], of which the last stands for whatever matched none.
fn place_of_route(matched: Option<&MatchedPath>) -> usize {
    let place = matched.and_then(|path| ROUTES.iter().position(|route| *route == path.as_str()));
    place.unwrap_or(ROUTES.len() - 1)
}

/// Among [`METHODS`], of which the last stands for all others.
fn place_of_method(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}
