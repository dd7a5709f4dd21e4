//! Who is let in: which texts open something, where they may stand, and how alike all refusals are.

use std::net::IpAddr;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use momail_api_keys::auth::Share;
use serde_json::{Value, json};

use crate::support::{
    Database, Options, Reply, TestApp, is_long, on_both_stores, request, unknown_key, with_wrong_checksum,
    with_wrong_secret,
};

on_both_stores!(
    every_bad_key_gets_the_same_answer_byte_for_byte,
    no_changed_or_invented_key_is_accepted,
    of_very_many_forged_keys_none_is_accepted,
    a_key_counts_only_where_it_belongs,
    two_keys_are_none,
    every_documented_route_needs_a_key,
    a_flood_of_bad_keys_is_slowed_but_a_good_key_from_there_passes,
    failures_are_counted_by_the_client_behind_our_proxies,
    failures_are_measured_by_their_reason,
);

const KEYS: &str = "/v1/api-keys";

fn with_headers(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = request(Method::GET, KEYS, "");
    for (name, value) in headers {
        let name: axum::http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

fn without_request_id(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers
        .iter()
        .filter(|(name, _)| *name != "x-request-id")
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    headers
}

async fn every_bad_key_gets_the_same_answer_byte_for_byte(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let revoked = app.create(&key, json!({ "name": "revoked" })).await;
    let path = format!("{KEYS}/{}", revoked["keyId"].as_str().unwrap());
    assert_eq!(app.delete(&path, &key).await.status, 200);

    let bad = [
        String::new(),
        "mk_".to_owned(),
        key[..43].to_owned(),
        format!("{key}0"),
        key.to_uppercase(),
        format!("'{key}'"),
        key.replace('_', "%5F"),
        with_wrong_checksum(&key),
        unknown_key(),
        with_wrong_secret(&key),
        revoked["apiKey"].as_str().unwrap().to_owned(),
        "x".repeat(8_000),
        "clé".to_owned(),
    ];
    let first = app.send(request(Method::GET, KEYS, "")).await;
    assert_eq!((first.status.as_u16(), first.code()), (401, "UNAUTHORIZED"));
    assert_eq!(first.header("www-authenticate"), "ApiKey realm=\"momail\"");
    assert_eq!(first.header("cache-control"), "no-store");
    for text in bad {
        let mut request = request(Method::GET, KEYS, "");
        request.headers_mut().insert("x-api-key", axum::http::HeaderValue::from_bytes(text.as_bytes()).unwrap());
        let reply = app.send(request).await;
        assert_eq!((reply.status, &reply.bytes), (first.status, &first.bytes), "{text}");
        assert_eq!(without_request_id(&reply.headers), without_request_id(&first.headers), "{text}");
    }
}

async fn no_changed_or_invented_key_is_accepted(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let is_refused = async |text: &str| app.get(KEYS, text).await.status == 401;
    for at in 0..key.len() {
        for other in "0az_".chars() {
            let mut changed: Vec<char> = key.chars().collect();
            changed[at] = other;
            let changed: String = changed.into_iter().collect();
            assert!(changed == key || is_refused(&changed).await, "{at} {other}");
        }
    }
    for _ in 0..300 {
        assert!(is_refused(&unknown_key()).await);
        assert!(is_refused(&with_wrong_secret(&key)).await);
    }
    assert_eq!(app.get(KEYS, &key).await.status, 200);
}

async fn of_very_many_forged_keys_none_is_accepted(database: Database) {
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    let (forged, changed) = if is_long() { (1_000_000, 100_000) } else { (4_000, 4_000) };
    let accepted = async |text: &str| app.app.auth.authenticate(text.as_bytes(), Share::Common).await.is_ok();
    for n in 0..forged / 2 {
        assert!(!accepted(&unknown_key()).await, "forged {n}");
        assert!(!accepted(&with_wrong_secret(&key)).await, "forged {n} with a known prefix");
    }
    for n in 0..changed {
        let mut text = key.clone().into_bytes();
        let at = rand::random_range(0..text.len());
        text[at] = rand::random_range(b' '..=b'~');
        let text = String::from_utf8(text).unwrap();
        assert!(text == key || !accepted(&text).await, "changed {n} at {at}");
    }
    assert!(accepted(&key).await);
}

async fn a_key_counts_only_where_it_belongs(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let bearer = format!("Bearer {key}");
    let lower = format!("bearer {key}");
    let basic = format!("Basic {key}");
    let cookie = format!("api_key={key}");
    let accepted: [&[(&str, &str)]; 4] = [
        &[("x-api-key", &key)],
        &[("authorization", &bearer)],
        &[("authorization", &lower)],
        &[("x-api-key", &key), ("authorization", &bearer)],
    ];
    for headers in accepted {
        assert_eq!(app.send(with_headers(headers)).await.status, 200, "{:?}", headers[0].0);
    }
    let refused: [&[(&str, &str)]; 5] = [
        &[("authorization", &key)],
        &[("authorization", &basic)],
        &[("cookie", &cookie)],
        &[("x-api_key", &key)],
        &[("x-api-key", &bearer)],
    ];
    for headers in refused {
        assert_eq!(app.send(with_headers(headers)).await.status, 401, "{:?}", headers[0].0);
    }
    for query in [format!("api_key={key}"), format!("x=1&{key}"), format!("a={key}b")] {
        let path = format!("{KEYS}?{query}");
        assert_eq!(app.get(&path, "").await.status, 401);
        assert_eq!(app.get(&path, &key).await.status, 401, "a key in the query is lost, even beside a good one");
    }
}

async fn two_keys_are_none(database: Database) {
    let app = TestApp::on(&database).await;
    let (good, other) = (app.key().await, app.key().await);
    let bearer = format!("Bearer {other}");
    let both = format!("{good},{other}");
    let table: [&[(&str, &str)]; 7] = [
        &[("x-api-key", &good), ("x-api-key", "bad")],
        &[("x-api-key", "bad"), ("x-api-key", &good)],
        &[("x-api-key", &good), ("x-api-key", &good)],
        &[("x-api-key", &both)],
        &[("x-api-key", &good), ("authorization", &bearer)],
        &[("x-api-key", "bad"), ("authorization", &bearer)],
        &[("authorization", &bearer), ("authorization", &bearer)],
    ];
    for headers in table {
        assert_eq!(app.send(with_headers(headers)).await.status, 401, "{headers:?}");
    }
}

async fn every_documented_route_needs_a_key(database: Database) {
    let app = TestApp::on(&database).await;
    let document: Value = serde_json::from_str(&momail_api_keys::http::openapi_document()).unwrap();
    let mut checked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace("{id}", "key_01hm5cqv1kf3w9zq2n8x7t4b6d");
            let reply = app.send(request(method.clone(), &path, "")).await;
            let is_open = !path.starts_with("/v1/");
            assert_eq!(reply.status == 401, !is_open, "{method} {path}");
            assert_eq!(operation["security"].is_null(), is_open, "{method} {path}");
            checked += usize::from(!is_open);
        }
    }
    assert_eq!(checked, momail_api_keys::http::endpoints().len());
}

async fn a_flood_of_bad_keys_is_slowed_but_a_good_key_from_there_passes(database: Database) {
    let app = TestApp::with(&database, Options { failed_per_minute: 60, ..Options::default() }).await;
    let key = app.key().await;
    let (here, elsewhere): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    let bad = |text: &str| request(Method::GET, KEYS, text);
    let mut replies = Vec::new();
    for _ in 0..1_000 {
        replies.push(app.send_from(here, bad("mk_nonsense")).await);
    }
    let with = |status: u16| replies.iter().filter(|reply: &&Reply| reply.status == status).count();
    assert_eq!((with(401), with(429)), (60, 940));
    let slowed = replies.last().unwrap();
    assert_eq!((slowed.code(), slowed.header("retry-after")), ("RATE_LIMIT_EXCEEDED", "1"));
    let details = json!({ "limit": 60, "window": "minute", "retry_after": 1 });
    assert_eq!(slowed.body["error"]["details"], details);

    assert_eq!(app.send_from(here, bad(&unknown_key())).await.status, 429, "a forged key counts like garbage");
    assert_eq!(app.send_from(here, request(Method::GET, KEYS, &key)).await.status, 200);
    assert_eq!(app.send_from(elsewhere, bad("mk_nonsense")).await.status, 401);
    app.clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(app.send_from(here, bad("mk_nonsense")).await.status, 401, "whoever waits as told is heard again");
}

async fn failures_are_counted_by_the_client_behind_our_proxies(database: Database) {
    let trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let app = TestApp::with(&database, Options { failed_per_minute: 2, trusted_proxies, ..Options::default() }).await;
    let proxy: IpAddr = "10.0.0.1".parse().unwrap();
    let status = async |forwarded: &str| {
        let request = with_headers(&[("x-api-key", "mk_nonsense"), ("x-forwarded-for", forwarded)]);
        app.send_from(proxy, request).await.status.as_u16()
    };
    assert_eq!([status("203.0.113.5").await, status("1.1.1.1, 203.0.113.5").await], [401, 401]);
    for forged in ["203.0.113.5", "8.8.8.8, 203.0.113.5", "203.0.113.5, 10.0.0.7"] {
        assert_eq!(status(forged).await, 429, "{forged}");
    }
    assert_eq!(status("203.0.113.6").await, 401);

    // From elsewhere the header is only what a stranger says, however often it changes.
    let stranger: IpAddr = "198.51.100.1".parse().unwrap();
    let mut slowed = 0;
    for n in 0..1_000 {
        let forged = format!("203.0.{}.{}", n / 256, n % 256);
        let request = with_headers(&[("x-api-key", "mk_nonsense"), ("x-forwarded-for", &forged)]);
        slowed += usize::from(app.send_from(stranger, request).await.status == 429);
    }
    assert_eq!(slowed, 998);
}

async fn failures_are_measured_by_their_reason(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    app.get(KEYS, "").await;
    for text in ["mk_", &unknown_key(), &with_wrong_secret(&key)] {
        app.get(KEYS, text).await;
    }
    let metrics = app.internal_get("/metrics").await;
    let text = String::from_utf8(metrics.bytes).unwrap();
    for reason in ["missing", "malformed", "unknown", "wrong_secret"] {
        assert!(text.contains(&format!("failed_keys_total{{reason=\"{reason}\"}} 1\n")), "{reason}\n{text}");
    }
}
