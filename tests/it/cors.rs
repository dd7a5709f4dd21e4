//! Cross-origin requests: which origins may read answers, and that refusals can be read as well.

use axum::body::Body;
use axum::http::{Method, Request};
use momail_api_keys::http::endpoints;

use crate::support::{Options, Reply, TestApp, json_request, request};

const KEYS: &str = "/v1/api-keys";
const EXPOSED: &str = "X-Request-Id, Location, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, \
                       RateLimit, RateLimit-Policy";

fn from_origin(origins: &[&str], mut request: Request<Body>) -> Request<Body> {
    for origin in origins {
        request.headers_mut().append("origin", origin.parse().unwrap());
    }
    request
}

fn preflight(origin: &str) -> Request<Body> {
    let mut request = from_origin(&[origin], request(Method::OPTIONS, KEYS, ""));
    request.headers_mut().insert("access-control-request-method", "DELETE".parse().unwrap());
    request.headers_mut().insert("access-control-request-headers", "x-api-key,content-type".parse().unwrap());
    request
}

fn listed() -> Options {
    let allowed_origins = vec!["https://app.example".to_owned(), "http://localhost:3000".to_owned()];
    Options { allowed_origins, ..Options::default() }
}

fn allowed(reply: &Reply) -> &str {
    assert!(!reply.headers.contains_key("access-control-allow-credentials"));
    assert_eq!(reply.header("vary"), "Origin");
    reply.header("access-control-allow-origin")
}

#[tokio::test]
async fn a_preflight_is_answered_without_a_key_and_says_what_may_be_sent() {
    let app = TestApp::alone(listed()).await;
    let reply = app.send(preflight("https://app.example")).await;
    assert_eq!((reply.status.as_u16(), reply.bytes.len()), (204, 0));
    assert_eq!(allowed(&reply), "https://app.example");
    assert_eq!(reply.header("access-control-allow-methods"), "GET, HEAD, POST, PATCH, DELETE");
    let headers = "X-API-Key, Authorization, Content-Type, Idempotency-Key, X-Request-Id";
    assert_eq!(reply.header("access-control-allow-headers"), headers);
    assert_eq!(reply.header("access-control-max-age"), "7200");
    assert!(!reply.header("x-request-id").is_empty());
    assert!(!reply.headers.contains_key("x-ratelimit-limit"));
}

#[tokio::test]
async fn only_origins_on_the_list_are_allowed_and_only_as_they_stand_there() {
    let app = TestApp::alone(listed()).await;
    let key = app.key().await;
    let table: [(&[&str], &str); 10] = [
        (&["https://app.example"], "https://app.example"),
        (&["http://localhost:3000"], "http://localhost:3000"),
        (&[], ""),
        (&["null"], ""),
        (&["https://app.example.evil"], ""),
        (&["https://evil.app.example"], ""),
        (&["https://app.example:8443"], ""),
        (&["http://app.example"], ""),
        (&["https://APP.example"], ""),
        (&["https://app.example", "https://app.example"], ""),
    ];
    for (origins, expected) in table {
        let reply = app.send(from_origin(origins, request(Method::GET, KEYS, &key))).await;
        assert_eq!((reply.status.as_u16(), allowed(&reply)), (200, expected), "{origins:?}");
    }
    assert_eq!(allowed(&app.send(preflight("https://other.example")).await), "");
}

#[tokio::test]
async fn by_default_every_origin_may_call_but_never_with_credentials() {
    let app = TestApp::alone(Options::default()).await;
    let key = app.key().await;
    for origins in [&["https://anywhere.example"][..], &["null"], &[]] {
        let reply = app.send(from_origin(origins, request(Method::GET, KEYS, &key))).await;
        assert_eq!(allowed(&reply), "*");
    }
    assert_eq!(allowed(&app.send(preflight("https://anywhere.example")).await), "*");
}

#[tokio::test]
async fn refusals_can_be_read_by_scripts_whoever_made_them() {
    let options = Options { failed_per_minute: 1, ..listed() };
    let app = TestApp::alone(options).await;
    let key = app.key().await;
    let large = json_request(Method::POST, KEYS, &key, "x".repeat(70_000));
    let mut no_host = request(Method::GET, KEYS, &key);
    no_host.headers_mut().remove("host");
    let table = [
        (400, no_host),
        (400, json_request(Method::POST, KEYS, &key, "{")),
        (401, request(Method::GET, KEYS, "")),
        (401, request(Method::GET, KEYS, "mk_nonsense")),
        (429, request(Method::GET, KEYS, "mk_nonsense")),
        (404, request(Method::GET, "/nowhere", "")),
        (405, request(Method::PUT, KEYS, &key)),
        (413, large),
        (415, request(Method::POST, KEYS, &key)),
    ];
    for (status, request) in table {
        let reply = app.send(from_origin(&["https://app.example"], request)).await;
        assert_eq!(reply.status, status);
        assert_eq!(allowed(&reply), "https://app.example", "{status}");
        assert_eq!(reply.header("access-control-expose-headers"), EXPOSED, "{status}");
    }
    app.store.close();
    let reply = app.send(from_origin(&["https://app.example"], request(Method::GET, KEYS, &key))).await;
    assert_eq!((reply.status.as_u16(), allowed(&reply)), (503, "https://app.example"));
    assert_eq!(reply.header("retry-after"), "1");
}

/// What a page of another origin can send without asking first: forms and plain text, with whatever the browser adds by itself.
/// No key is among it, and a key alone does not make plain text JSON.
#[tokio::test]
async fn what_browsers_send_without_asking_changes_nothing() {
    let app = TestApp::alone(Options::default()).await;
    let key = app.key().await;
    let kinds = [
        "text/plain",
        "text/plain;charset=UTF-8",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ];
    let routes = endpoints().into_iter().filter(|endpoint| endpoint.method == Method::POST);
    for path in routes.map(|endpoint| endpoint.path.replace("{id}", "current")) {
        for (kind, shown) in kinds.into_iter().flat_map(|kind| [(kind, ""), (kind, &*key)]) {
            let body = r#"{"name":"forged","gracePeriodHours":0}"#;
            let mut request = from_origin(&["https://evil.example"], json_request(Method::POST, &path, shown, body));
            request.headers_mut().insert("cookie", format!("apiKey={key}; X-API-Key={key}").parse().unwrap());
            request.headers_mut().remove("content-type");
            if !kind.is_empty() {
                request.headers_mut().insert("content-type", kind.parse().unwrap());
            }
            let refused = app.send(request).await;
            let expected: &[u16] = if shown.is_empty() { &[401] } else { &[404, 415] };
            assert!(expected.contains(&refused.status.as_u16()), "{path} {kind}: {refused:?}");
        }
    }
    let list = app.get(KEYS, &key).await;
    assert_eq!((list.status.as_u16(), &list.body["meta"]["total"]), (200, &1.into()), "nothing was made or rotated");
}

#[tokio::test]
async fn an_options_request_that_is_no_preflight_is_told_the_methods() {
    let app = TestApp::alone(Options::default()).await;
    let reply = app.send(request(Method::OPTIONS, KEYS, "")).await;
    assert_eq!((reply.status.as_u16(), reply.code()), (405, "METHOD_NOT_ALLOWED"));
    assert_eq!(reply.header("allow"), "GET,HEAD,POST");
}
