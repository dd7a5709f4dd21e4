//! The way in to `/v1`: who is calling, may that key go on now, and the headers that say how far.

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::client::client_address;
use super::error::ApiError;
use crate::account::{Allowance, Plan};
use crate::auth::{AuthError, Caller, Denial, Share};
use crate::digits::push_decimal;
use crate::limit::{Decision, Quota, Window};
use crate::permission::Permissions;
use crate::secret::{self, Prefix};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Left on the answer for the log: whose key it was.
#[derive(Clone, Copy)]
pub(super) struct CalledBy(pub(super) Prefix);

/// Left on the request for the handler: who is calling, and the window with the fewest requests left, if there is any.
#[derive(Clone)]
pub(super) struct Admitted {
    pub(super) caller: Caller,
    pub(super) quota: Option<Quota>,
}

/// What a request's key is good for now.
pub(super) enum Admission {
    /// It is counted. Whatever is answered is to be handed to [`mark`].
    Go(Caller, Option<Quota>),
    Refused(Response),
}

/// Lets a request through with its [`Caller`], if the key is permitted what is needed, or refuses it before a byte of its body
/// is read.
pub(super) async fn guard(
    State((app, needed, share)): State<(App, Permissions, Share)>,
    request: Request,
    next: Next,
) -> Response {
    let (mut head, body) = request.into_parts();
    let (caller, quota) = match admit(&app, &head, presented(&head), share).await {
        Admission::Go(caller, quota) => (caller, quota),
        Admission::Refused(refusal) => return refusal,
    };
    let mut response = match app.permit(&caller, needed) {
        Ok(()) => {
            head.extensions.insert(Admitted { caller: caller.clone(), quota });
            next.run(Request::from_parts(head, body)).await
        }
        Err(refusal) => refusal.into_response(),
    };
    mark(&app, &caller, quota, &mut response);
    response
}

/// Judges the key that a request presents, and counts the request if it may go on.
pub(super) async fn admit(app: &App, head: &Parts, presented: Result<&[u8], Denial>, share: Share) -> Admission {
    if !app.readiness.has_started() {
        let refusal = ApiError::Unavailable("the database is not ready yet".to_owned());
        return Admission::Refused(refusal.into_response());
    }
    let caller = match authenticate(app, head, presented, share).await {
        Ok(caller) => caller,
        Err(refusal) => return Admission::Refused(refusal.into_response()),
    };
    let plan = caller.plan();
    match app.limiter.check(caller.key_id(), plan).await {
        Decision::Go(quota) => Admission::Go(caller, quota),
        Decision::Wait(quota, wait) => {
            app.metrics.limited(plan.as_str(), quota.window.as_str());
            app.last_used.refuse(caller.prefix(), app.clock.now());
            let retry_after = whole_seconds(wait);
            let mut response = ApiError::RateLimited { quota, retry_after }.into_response();
            mark(app, &caller, Some(quota), &mut response);
            Admission::Refused(response)
        }
    }
}

/// Says on an answer whose key it was and how far that key may still go.
pub(super) fn mark(app: &App, caller: &Caller, quota: Option<Quota>, response: &mut Response) {
    response.extensions_mut().insert(CalledBy(caller.prefix()));
    if let Some(quota) = quota {
        say_limits(app, caller.plan(), &quota, response.headers_mut());
    }
}

async fn authenticate(
    app: &App,
    head: &Parts,
    presented: Result<&[u8], Denial>,
    share: Share,
) -> Result<Caller, ApiError> {
    let outcome = match presented {
        Ok(text) => app.auth.authenticate(text, share).await,
        Err(denial) => Err(AuthError::Denied(denial)),
    };
    if let Err(AuthError::Denied(denial)) = &outcome {
        app.metrics.failed_key(denial.as_str());
        // Nobody guesses keys by sending none.
        if *denial != Denial::Missing {
            let client = client_address(head, &app.trusted_proxies);
            if let Err((quota, wait)) = app.failed_keys.record(client) {
                return Err(ApiError::TooManyFailures { quota, retry_after: whole_seconds(wait) });
            }
        }
    }
    outcome.map_err(ApiError::from)
}

/// The one key of a request. A key in the query string is refused even beside a good one: it is in somebody's log by now.
pub(super) fn presented(head: &Parts) -> Result<&[u8], Denial> {
    if head.uri.query().is_some_and(|query| secret::appears_in(query.as_bytes())) {
        return Err(Denial::Misplaced);
    }
    let mut keys = head.headers.get_all(X_API_KEY).iter();
    let key = keys.next().map(HeaderValue::as_bytes);
    if keys.next().is_some() {
        return Err(Denial::Misplaced);
    }
    match (key, bearer(&head.headers)?) {
        (Some(key), Some(token)) if key != token => Err(Denial::Misplaced),
        (Some(key), _) | (None, Some(key)) => Ok(key),
        (None, None) => Err(Denial::Missing),
    }
}

/// The token of `Authorization: Bearer`; other schemes are somebody else's.
fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, Denial> {
    const SCHEME: &[u8] = b"bearer ";
    let mut tokens = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(SCHEME.len())?;
        scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii_start())
    });
    let token = tokens.next();
    if tokens.next().is_some() { Err(Denial::Misplaced) } else { Ok(token) }
}

/// Rounded up: who waits for so many seconds has waited long enough.
fn whole_seconds(wait: std::time::Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0).max(u64::from(wait.is_zero()))
}

/// `X-RateLimit-…`, and `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10.
fn say_limits(app: &App, plan: Plan, quota: &Quota, headers: &mut HeaderMap) {
    let reset_after = whole_seconds(quota.reset_after);
    let reset = app.clock.now().timestamp().saturating_add_unsigned(reset_after);
    headers.insert(LIMIT, quota.limit.into());
    headers.insert(REMAINING, quota.remaining.into());
    headers.insert(RESET, reset.into());
    headers.insert(POLICY, app.policies.of(plan).clone());
    headers.insert(STATE, state(quota, reset_after));
}

/// `"minute";r=19;t=3`
fn state(quota: &Quota, reset_after: u64) -> HeaderValue {
    let mut text = Vec::with_capacity(32);
    text.push(b'"');
    text.extend_from_slice(quota.window.as_str().as_bytes());
    text.extend_from_slice(b"\";r=");
    push_decimal(&mut text, quota.remaining.into(), 1);
    text.extend_from_slice(b";t=");
    push_decimal(&mut text, reset_after, 1);
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("words and numbers make a header")
}

/// The `RateLimit-Policy` of each plan: all its windows, which never change while the process runs.
pub(super) struct Policies([HeaderValue; Plan::ALL.len()]);

impl Policies {
    pub(super) fn new(of: impl Fn(Plan) -> Allowance) -> Self {
        Self(Plan::ALL.map(|plan| {
            let Allowance { per_minute, per_hour, per_day, .. } = of(plan);
            let windows = [(Window::Minute, per_minute), (Window::Hour, per_hour), (Window::Day, per_day)];
            let policies = windows
                .iter()
                .filter(|(_, limit)| *limit > 0)
                .map(|(window, limit)| format!("\"{}\";q={limit};w={}", window.as_str(), window.seconds()));
            let text = policies.collect::<Vec<_>>().join(", ");
            HeaderValue::try_from(text).expect("words and numbers make a header")
        }))
    }

    fn of(&self, plan: Plan) -> &HeaderValue {
        &self.0[plan as usize]
    }
}
