//! Cross-origin requests from browsers (the Fetch standard's CORS protocol). Never with credentials.
//!
//! It is our own because the usual layer answers every OPTIONS, even one that is no preflight and deserves an `Allow`.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;

const METHODS: &str = "GET, HEAD, POST, PATCH, DELETE";
const REQUEST_HEADERS: &str = "X-API-Key, Authorization, Content-Type, Idempotency-Key, X-Request-Id";
const RESPONSE_HEADERS: &str = "X-Request-Id, Location, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, \
                                X-RateLimit-Reset, RateLimit, RateLimit-Policy";
/// Two hours, the longest that browsers heed, in seconds.
const MAX_AGE: &str = "7200";

pub(super) enum Cors {
    Any,
    Listed(Vec<HeaderValue>),
}

impl Cors {
    /// `*` among the origins is any.
    pub(super) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self::Any;
        }
        Self::Listed(origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect())
    }

    /// What `Access-Control-Allow-Origin` shall say to this request, if anything.
    pub(super) fn allow(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = headers.get_all(ORIGIN).iter();
        match (self, origins.next(), origins.next()) {
            (Self::Any, _, _) => Some(HeaderValue::from_static("*")),
            (Self::Listed(listed), Some(origin), None) => listed.contains(origin).then(|| origin.clone()),
            (Self::Listed(_), _, _) => None,
        }
    }
}

/// The answer to a preflight, the same for every origin: what an origin may do, it may do everywhere.
pub(super) fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    response
}

/// Lets scripts of an allowed origin read an answer, and tells caches that another origin may get another one.
pub(super) fn decorate(headers: &mut HeaderMap, allowed: Option<HeaderValue>) {
    headers.append(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(RESPONSE_HEADERS));
    }
}

/// A browser's question whether it may send what it is about to send.
pub(super) fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}
