//! Every refusal's status, code and body, and the shaping of those that no code of ours wrote.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::wire;
use crate::auth::{AuthError, Denial};
use crate::limit::Quota;
use crate::seldom::Seldom;
use crate::store::StoreError;

/// How long clients should wait for what will soon have passed, in seconds.
const UNAVAILABLE_RETRY_AFTER: u64 = 1;
const OVERLOADED_RETRY_AFTER: RangeInclusive<u64> = 1..=3;

/// An overload refuses thousands of requests a second, all of them for one reason.
static OVERLOADED: Seldom = Seldom::new();

/// Why a request is refused. Causes of 5xx go to the log and nowhere else.
#[derive(Debug)]
pub enum ApiError {
    /// What is wrong, by the name of the member, parameter or header.
    Invalid(Fields),
    Unauthorized,
    Expired(DateTime<Utc>),
    /// The key lacks these permissions.
    NotPermitted {
        missing: Vec<String>,
    },
    /// The plan's number of keys is reached.
    TooManyKeys {
        limit: u32,
    },
    /// A key has two secrets already, one of them until this instant.
    TwoSecrets(DateTime<Utc>),
    /// An `Idempotency-Key` that another request has had.
    OtherRequest,
    /// An `Idempotency-Key` whose request is still being carried out.
    StillRunning,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    PayloadTooLarge {
        limit: usize,
    },
    UnsupportedMediaType,
    RateLimited {
        quota: Quota,
        retry_after: u64,
    },
    TooManyFailures {
        quota: Quota,
        retry_after: u64,
    },
    Internal(anyhow::Error),
    Unavailable(String),
    /// There are more requests than can be answered in time.
    Overloaded,
}

pub(super) type Fields = BTreeMap<String, String>;

/// The envelope of every refusal.
#[derive(Serialize, ToSchema)]
pub(crate) struct Refusal {
    #[schema(default = false)]
    success: bool,
    error: RefusalError,
}

#[derive(Serialize, ToSchema)]
struct RefusalError {
    code: Code,
    /// Meant for people; may change.
    message: String,
    /// Present only where it says something.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    details: Option<Value>,
}

/// Marks a response whose body is the envelope already.
#[derive(Clone, Copy)]
struct Shaped;

/// Stable; meant for programs.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Code {
    ValidationError,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    PayloadTooLarge,
    UnsupportedMediaType,
    RateLimitExceeded,
    InternalError,
    ServiceUnavailable,
}

impl ApiError {
    pub(crate) fn invalid(field: &str, problem: impl Into<String>) -> Self {
        Self::Invalid(Fields::from([(field.to_owned(), problem.into())]))
    }

    /// The whole mapping: each variant's status, code, message and details.
    fn parts(&self) -> (StatusCode, Code, String, Option<Value>) {
        use StatusCode as S;
        let plain = |status, code, message: &str| (status, code, message.to_owned(), None);
        match self {
            Self::Invalid(fields) => {
                let message = "The request is not valid; `details` says what is wrong.".to_owned();
                (S::BAD_REQUEST, Code::ValidationError, message, Some(json!({ "fields": fields })))
            }
            Self::Unauthorized => {
                plain(S::UNAUTHORIZED, Code::Unauthorized, "The API key is missing or not valid. Send it as X-API-Key.")
            }
            Self::Expired(since) => {
                let message = format!("The API key expired at {}.", wire::timestamp(*since));
                (S::UNAUTHORIZED, Code::Unauthorized, message, None)
            }
            Self::NotPermitted { missing } => {
                let message = format!("The key is not permitted to do this: it lacks {}.", missing.join(", "));
                (S::FORBIDDEN, Code::Forbidden, message, Some(json!({ "reason": "permission", "missing": missing })))
            }
            Self::TooManyKeys { limit } => {
                let message = format!("The plan allows {limit} keys, and the account has them all. Delete one first.");
                (S::FORBIDDEN, Code::Forbidden, message, Some(json!({ "reason": "max_keys", "limit": limit })))
            }
            Self::TwoSecrets(_) | Self::OtherRequest | Self::StillRunning => {
                let (message, details) = self.conflict();
                (S::CONFLICT, Code::Conflict, message, details)
            }
            Self::NotFound => plain(S::NOT_FOUND, Code::NotFound, "There is nothing here."),
            Self::MethodNotAllowed => {
                plain(S::METHOD_NOT_ALLOWED, Code::MethodNotAllowed, "This path does not take this method; see Allow.")
            }
            Self::RequestTimeout => {
                plain(S::REQUEST_TIMEOUT, Code::RequestTimeout, "The request took too long to arrive.")
            }
            Self::PayloadTooLarge { limit } => {
                let message = format!("The body is larger than {limit} bytes.");
                (S::PAYLOAD_TOO_LARGE, Code::PayloadTooLarge, message, None)
            }
            Self::UnsupportedMediaType => plain(
                S::UNSUPPORTED_MEDIA_TYPE,
                Code::UnsupportedMediaType,
                "The body must be JSON, sent with Content-Type: application/json.",
            ),
            Self::RateLimited { quota, retry_after } => {
                let Quota { limit, window, .. } = quota;
                let message = format!("The limit of {limit} requests per {} is reached.", window.as_str());
                (S::TOO_MANY_REQUESTS, Code::RateLimitExceeded, message, Some(limit_details(quota, *retry_after)))
            }
            Self::TooManyFailures { quota, retry_after } => {
                let message = "Too many requests with keys that are not valid.".to_owned();
                (S::TOO_MANY_REQUESTS, Code::RateLimitExceeded, message, Some(limit_details(quota, *retry_after)))
            }
            Self::Internal(_) => plain(S::INTERNAL_SERVER_ERROR, Code::InternalError, "Something failed on our side."),
            Self::Unavailable(_) | Self::Overloaded => plain(
                S::SERVICE_UNAVAILABLE,
                Code::ServiceUnavailable,
                "The service cannot answer now. Try again shortly.",
            ),
        }
    }

    fn conflict(&self) -> (String, Option<Value>) {
        match self {
            Self::TwoSecrets(until) => {
                let until = wire::timestamp(*until);
                let message = format!(
                    "The key was rotated lately, and the secret before still works until {until}. \
                     End it first: PATCH the key with {{\"retireNow\": true}}."
                );
                (message, Some(json!({ "reason": "two_secrets", "retiresTs": until })))
            }
            Self::StillRunning => {
                ("A request with this Idempotency-Key is still running. Ask again shortly.".to_owned(), None)
            }
            _ => {
                let message = "This Idempotency-Key belongs to another request of the last hour, or of another API key. \
                               Use a new one.";
                (message.to_owned(), None)
            }
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::TooManyFailures { retry_after, .. } => Some(*retry_after),
            Self::Unavailable(_) | Self::StillRunning => Some(UNAVAILABLE_RETRY_AFTER),
            // Those who were refused together shall not all come back together.
            Self::Overloaded => Some(rand::random_range(OVERLOADED_RETRY_AFTER)),
            _ => None,
        }
    }
}

fn limit_details(quota: &Quota, retry_after: u64) -> Value {
    json!({ "limit": quota.limit, "window": quota.window.as_str(), "retry_after": retry_after })
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self {
            Self::Internal(cause) => tracing::error!(cause = format!("{cause:#}"), "a request failed"),
            // The store says why, once; the line of each request says 503.
            Self::Unavailable(cause) => tracing::debug!(cause, "a request could not be answered"),
            Self::Overloaded => {
                if let Some(unsaid) = OVERLOADED.turn() {
                    tracing::warn!(unsaid, "a request was refused: the database is asked for more than it can answer");
                }
            }
            _ => (),
        }
        let (status, code, message, details) = self.parts();
        let body = Refusal { success: false, error: RefusalError { code, message, details } };
        let mut response = (status, wire::Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("ApiKey realm=\"momail\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(Shaped);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable(error.to_string()),
            StoreError::Overloaded => Self::Overloaded,
            error => Self::Internal(error.into()),
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Denied(Denial::Expired(since)) => Self::Expired(since),
            AuthError::Denied(_) => Self::Unauthorized,
            AuthError::Store(error) => error.into(),
        }
    }
}

/// Gives a refusal that no code of ours wrote the same shape as all others.
pub(super) fn reshape(response: Response) -> Response {
    let status = response.status();
    let is_refusal = status.is_client_error() || status.is_server_error();
    if !is_refusal || response.extensions().get::<Shaped>().is_some() {
        return response;
    }
    let error = match status {
        StatusCode::NOT_FOUND => ApiError::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => ApiError::MethodNotAllowed,
        StatusCode::REQUEST_TIMEOUT => ApiError::RequestTimeout,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ApiError::UnsupportedMediaType,
        status if status.is_client_error() => ApiError::invalid("request", "not understood"),
        status => ApiError::Internal(anyhow::anyhow!("a layer answered {status}")),
    };
    let (mut theirs, _) = response.into_parts();
    let mut response = error.into_response();
    theirs.headers.remove(CONTENT_TYPE);
    theirs.headers.remove(CONTENT_LENGTH);
    if let Some(allow) = theirs.headers.remove(ALLOW) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

/// What a panic becomes: the same 500 as any other failure of ours. The panic itself is in the log, its payload is not answered.
pub(super) fn from_panic(_payload: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::Internal(anyhow::anyhow!("a handler panicked")).into_response()
}
