//! Forward auth: a gateway shows a request's head and is told whether the request may go on, and whose key it bears.
//!
//! Whatever stands below its paths, in their query or in a body is the client's, and is not read.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::any;
use quick_cache::sync::Cache;

use super::App;
use super::guard::{self, Admission};
use crate::auth::{Caller, Denial, Share};
use crate::id::PUBLIC_LEN;
use crate::permission::{Catalogue, Permissions};
use crate::secret::{self, MASKED_LEN};

/// Two dialects, in every form a gateway may write their paths: some append the client's.
pub(super) const PATHS: [&str; 6] = [
    "/forward-auth",
    "/forward-auth/",
    "/forward-auth/{*below}",
    "/forward-auth/nginx",
    "/forward-auth/nginx/",
    "/forward-auth/nginx/{*below}",
];
const NGINX: &str = "/forward-auth/nginx";

/// Where a gateway says what the client asked for, if it does not ask in the same way.
const METHOD_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-method"), HeaderName::from_static("x-original-method")];
const URI_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-uri"), HeaderName::from_static("x-original-uri")];

const X_KEY_ID: HeaderName = HeaderName::from_static("x-key-id");
const X_ACCOUNT_ID: HeaderName = HeaderName::from_static("x-account-id");
const X_PLAN: HeaderName = HeaderName::from_static("x-plan");
const X_KEY_PREFIX: HeaderName = HeaderName::from_static("x-key-prefix");
const X_PERMISSIONS: HeaderName = HeaderName::from_static("x-permissions");
const X_AUTH_STATUS: HeaderName = HeaderName::from_static("x-auth-status");

/// As many as an answer has, so that the map need not grow.
const HEADERS: usize = 16;

pub(super) fn routes() -> Router<App> {
    PATHS.into_iter().fold(Router::new(), |router, path| router.route(path, any(verify)))
}

pub(super) fn is_route(path: &str) -> bool {
    path.starts_with(PATHS[0])
}

async fn verify(State(app): State<App>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    if app.allow_options && is_options(&head) {
        return allowed(Identity::nobody());
    }
    let presented = if shows_key(&head.headers) { Err(Denial::Misplaced) } else { guard::presented(&head) };
    match guard::admit(&app, &head, presented, Share::Common).await {
        Admission::Go(caller, quota) => {
            let mut response = allowed(Identity::of(&app, &caller));
            guard::mark(&app, &caller, quota, &mut response);
            response
        }
        Admission::Refused(response) => response,
    }
}

/// Whether the client's method is OPTIONS. A client may add the header that its gateway does not set, so one that says
/// otherwise is enough.
fn is_options(head: &Parts) -> bool {
    let mut told = METHOD_HEADERS.into_iter().flat_map(|name| head.headers.get_all(name)).peekable();
    match told.peek() {
        None => head.method == Method::OPTIONS,
        Some(_) => told.all(|method| method == Method::OPTIONS.as_str()),
    }
}

/// Whether the client's own query holds a key, of which our URI shows nothing.
fn shows_key(headers: &HeaderMap) -> bool {
    let mut uris = URI_HEADERS.into_iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::as_bytes);
    uris.any(|uri| uri.iter().position(|c| *c == b'?').is_some_and(|at| secret::appears_in(&uri[at..])))
}

/// Who is calling, as headers. All of them are always there, for a gateway that copies one which is missing would let
/// through what the client wrote in its place.
struct Identity {
    key_id: HeaderValue,
    account_id: HeaderValue,
    plan: HeaderValue,
    key_prefix: HeaderValue,
    permissions: HeaderValue,
}

impl Identity {
    fn nobody() -> Self {
        let empty = || HeaderValue::from_static("");
        Self { key_id: empty(), account_id: empty(), plan: empty(), key_prefix: empty(), permissions: empty() }
    }

    fn of(app: &App, caller: &Caller) -> Self {
        // One text for all of them: each value is a part of it.
        let mut text = Vec::with_capacity(2 * PUBLIC_LEN + MASKED_LEN);
        text.extend_from_slice(&caller.key_id().bytes());
        text.extend_from_slice(&caller.account_id().bytes());
        text.extend_from_slice(&caller.prefix().masked_bytes());
        let mut rest = Bytes::from(text);
        let mut next =
            |len| HeaderValue::from_maybe_shared(rest.split_to(len)).expect("ids and masked prefixes make headers");
        let (key_id, account_id, key_prefix) = (next(PUBLIC_LEN), next(PUBLIC_LEN), next(MASKED_LEN));
        let plan = HeaderValue::from_static(caller.plan().as_str());
        let permissions = app.permission_headers.of(app.store.catalogue(), caller.permissions());
        Self { key_id, account_id, plan, key_prefix, permissions }
    }
}

/// The `X-Permissions` of each set that was met lately: most keys share one of a few.
pub(super) struct PermissionHeaders(Cache<Permissions, HeaderValue>);

impl PermissionHeaders {
    const MAX_SETS: usize = 1_000;

    pub(super) fn new() -> Self {
        Self(Cache::new(Self::MAX_SETS))
    }

    fn of(&self, catalogue: &Catalogue, set: Permissions) -> HeaderValue {
        if let Some(known) = self.0.get(&set) {
            return known;
        }
        let names = catalogue.names(set).collect::<Vec<_>>().join(" ");
        let header = HeaderValue::try_from(names).expect("the names of permissions make a header");
        self.0.insert(set, header.clone());
        header
    }
}

/// 200, because Envoy takes nothing else, and without a body, because nginx keeps no connection that brought one.
fn allowed(identity: Identity) -> Response {
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(X_KEY_ID, identity.key_id);
    headers.insert(X_ACCOUNT_ID, identity.account_id);
    headers.insert(X_PLAN, identity.plan);
    headers.insert(X_KEY_PREFIX, identity.key_prefix);
    headers.insert(X_PERMISSIONS, identity.permissions);
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    response
}

/// What nginx can pass on: to its `auth_request` every refusal but 401 and 403 is a fault, and it drops every body, and the
/// connection with it.
pub(super) fn put_in_dialect(route: &str, response: &mut Response) {
    let status = response.status();
    if !route.starts_with(NGINX) || status.is_success() {
        return;
    }
    if status.is_client_error() && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        response.headers_mut().insert(X_AUTH_STATUS, status.as_u16().into());
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response.headers_mut().remove(CONTENT_TYPE);
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::empty();
}
