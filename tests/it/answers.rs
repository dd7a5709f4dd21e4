//! What every answer carries and what none does, over every route, method and refusal there is.

use axum::body::Body;
use axum::http::{HeaderName, Method, Request};
use momail_api_keys::account::Plan;
use momail_api_keys::http::endpoints;
use serde_json::json;

use crate::support::{Options, Reply, TestApp, request};

const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
    Method::TRACE,
    Method::CONNECT,
];
const UNKNOWN: [&str; 5] = ["/", "/v1/", "/v1/api-keys/", "//v1/api-keys", "/favicon.ico"];
const OPEN: [&str; 3] = ["/livez", "/readyz", "/openapi.json"];

/// A header or two beside the key, and a body.
type Variant = (&'static [(&'static str, &'static str)], &'static str);

const JSON: (&str, &str) = ("content-type", "application/json");
const VARIANTS: [Variant; 11] = [
    (&[], ""),
    (&[JSON], r#"{"name":"a"}"#),
    (&[JSON], "{"),
    (&[JSON], r#"{"nonsense":1}"#),
    (&[("content-type", "text/plain")], r#"{"name":"a"}"#),
    (&[("accept", "text/html")], ""),
    (&[("origin", "https://app.example"), ("access-control-request-method", "POST")], ""),
    (&[("host", "a b")], ""),
    (&[("transfer-encoding", "chunked, chunked")], ""),
    (&[("x-request-id", "<script>")], ""),
    (&[("x-forwarded-proto", "http"), ("x-forwarded-host", "evil.example"), ("upgrade-insecure-requests", "1")], ""),
];

/// All paths, with an id that is nobody's, and with a query that nobody takes.
fn paths() -> Vec<String> {
    let id = "key_01hm5cqv1kf3w9zq2n8x7t4b6d";
    let known = endpoints().into_iter().map(|endpoint| endpoint.path.replace("{id}", id));
    let mut paths: Vec<_> = known.chain(OPEN.map(str::to_owned)).chain(UNKNOWN.map(str::to_owned)).collect();
    paths.sort();
    paths.dedup();
    paths.extend(paths.clone().iter().map(|path| format!("{path}?nonsense=1")));
    paths
}

fn ask(method: &Method, path: &str, key: &str, (headers, body): Variant) -> Request<Body> {
    let mut request = request(method.clone(), path, key);
    for (name, value) in headers {
        request.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    *request.body_mut() = Body::from(body);
    request
}

fn assert_has_what_every_answer_has(reply: &Reply, what: &str) {
    let status = reply.status.as_u16();
    assert!(!(300..400).contains(&status), "{what} is redirected: {reply:?}");
    let says_what_it_is = reply.header("content-type");
    assert!(reply.bytes.is_empty() || says_what_it_is == "application/json", "{what}: {reply:?}");
    assert!(reply.bytes.is_empty() || reply.body.is_object(), "{what}: {reply:?}");
    for tells_too_much in ["server", "x-powered-by", "via", "location", "refresh"] {
        let is_new = status == 201 && tells_too_much == "location";
        assert!(is_new || !reply.headers.contains_key(tells_too_much), "{what}: {reply:?}");
    }
    let id = reply.header("x-request-id");
    let is_harmless = id.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    assert!((1..=64).contains(&id.len()) && is_harmless, "{what}: {reply:?}");
    assert_eq!(reply.header("x-content-type-options"), "nosniff", "{what}");
    assert_eq!(reply.headers.get_all("vary").iter().count(), 1, "{what}");
    if status >= 400 && !what.starts_with("HEAD ") {
        assert!(!reply.code().is_empty() && reply.body["success"] == false, "{what}: {reply:?}");
    }
}

/// Every question there is, with each of these keys; how many, and which statuses were among the answers.
async fn ask_everything(app: &TestApp, keys: &[&str]) -> (usize, Vec<u16>) {
    let (mut asked, mut statuses) = (0, Vec::new());
    for path in paths() {
        for method in METHODS {
            for (key, variant) in keys.iter().flat_map(|key| VARIANTS.map(|variant| (key, variant))) {
                let what = format!("{method} {path} {key:.8} {variant:?}");
                let reply = app.send(ask(&method, &path, key, variant)).await;
                assert_has_what_every_answer_has(&reply, &what);
                asked += 1;
                statuses.push(reply.status.as_u16());
            }
        }
    }
    statuses.sort_unstable();
    statuses.dedup();
    (asked, statuses)
}

#[tokio::test]
async fn every_answer_of_every_route_is_json_and_says_nothing_of_its_maker() {
    let app = TestApp::alone(Options { failed_per_minute: 500, ..Options::published() }).await;
    let owner = app.account(Plan::Enterprise).await.1;
    let narrow = app.create(&app.account(Plan::Pro).await.1, json!({ "name": "narrow", "permissions": [] })).await;
    // Each key and the client's failures are enough for some requests, and then for no more.
    let keys = ["", "mk_nonsense", &owner, narrow["apiKey"].as_str().unwrap()];
    let (asked, statuses) = ask_everything(&app, &keys).await;
    for expected in [200, 201, 204, 400, 401, 403, 404, 405, 415, 429] {
        assert!(statuses.contains(&expected), "{expected} is not among the answers to {asked} requests: {statuses:?}");
    }
}

#[tokio::test]
async fn while_the_database_is_away_answers_look_the_same() {
    let app = TestApp::alone(Options::default()).await;
    let key = app.key().await;
    app.store.close();
    let (asked, statuses) = ask_everything(&app, &[&key]).await;
    assert!(statuses.contains(&503), "{statuses:?} of {asked}");
}
