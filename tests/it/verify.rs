//! Forward auth as a gateway meets it: who may go on, what it is told of them, and in which words it is refused.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, Method, Request};
use futures_util::stream;
use momail_api_keys::account::Plan;
use momail_api_keys::http::Peer;
use serde_json::{Value, json};

use crate::support::{Database, Options, Reply, TestApp, on_both_stores, request};

on_both_stores!(
    every_method_and_every_path_below_is_judged_by_its_key,
    whoever_is_let_in_is_named_and_nobody_else,
    a_call_is_one_request_of_the_keys_own_limits,
    nginx_is_refused_in_the_words_it_understands,
    options_goes_without_a_key_if_nobody_says_otherwise,
    options_needs_a_key_if_the_operator_says_so,
    a_key_counts_only_where_the_api_lets_it_count,
    revoked_and_expired_keys_open_nothing,
    failures_are_counted_by_the_client_behind_the_gateway,
    a_store_that_is_away_is_our_fault_and_lets_nobody_in,
    a_body_is_never_waited_for,
    a_use_through_a_gateway_is_a_use,
);

const ASK: &str = "/forward-auth";
const NGINX: &str = "/forward-auth/nginx";
const KEYS: &str = "/v1/api-keys";
const IDENTITY: [&str; 5] = ["x-key-id", "x-account-id", "x-plan", "x-key-prefix", "x-permissions"];

type Headers<'a> = &'a [(&'a str, &'a str)];

fn with(path: &str, headers: Headers<'_>) -> Request<Body> {
    let mut request = request(Method::GET, path, "");
    for (name, value) in headers {
        request.headers_mut().append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    request
}

async fn ask(app: &TestApp, path: &str, headers: Headers<'_>) -> Reply {
    app.internal_send(with(path, headers)).await
}

async fn every_method_and_every_path_below_is_judged_by_its_key(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "WHATEVER"];
    let below = ["", "/", "/a", "/a/../b", "//x", "/%ff%00", "?a=1&b", "/a?next=/forward-auth", "/v1/api-keys/x/"];
    for method in methods {
        for path in [ASK, NGINX].iter().flat_map(|path| below.map(|below| format!("{path}{below}"))) {
            let method: Method = method.parse().unwrap();
            let let_in = app.internal_send(request(method.clone(), &path, &key)).await;
            assert_eq!((let_in.status.as_u16(), let_in.bytes.len()), (200, 0), "{method} {path}");
            assert_eq!(let_in.header("content-length"), "0", "{method} {path}");
            let refused = app.internal_send(request(method.clone(), &path, "")).await;
            assert_eq!(refused.status, 401, "{method} {path}");
            assert_eq!(refused.header("www-authenticate"), "ApiKey realm=\"momail\"");
        }
    }
    for elsewhere in ["/forward-authx", "/forward_auth", "/"] {
        assert_eq!(ask(&app, elsewhere, &[("x-api-key", &key)]).await.status, 404);
    }
    assert_eq!(app.send(with(ASK, &[("x-api-key", &key)])).await.status, 404, "it is not for the internet");
    assert!(!momail_api_keys::http::openapi_document().contains("forward"));
}

async fn whoever_is_let_in_is_named_and_nobody_else(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, key) = app.account(Plan::Enterprise).await;
    let listed = app.get(KEYS, &key).await.body["data"][0].clone();
    let forged = [("x-key-id", "forged"), ("x-plan", "forged"), ("x-account-id", "forged"), ("x-key-prefix", "forged")];
    for path in [ASK, NGINX] {
        let reply = ask(&app, path, &[&forged[..], &[("x-api-key", &key)]].concat()).await;
        assert_eq!(reply.status, 200);
        let named: Vec<_> = IDENTITY.iter().map(|name| reply.header(name).to_owned()).collect();
        let permissions = listed["permissions"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let permissions = json!(permissions.collect::<Vec<_>>().join(" "));
        let account = json!(account.to_string());
        let keys_own = [&listed["keyId"], &account, &listed["plan"], &listed["keyPrefix"], &permissions];
        assert_eq!(json!(named), json!(keys_own));
        for header in ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit", "x-request-id"] {
            assert!(!reply.header(header).is_empty(), "{header}");
        }
        assert_eq!(reply.header("cache-control"), "no-store");

        for refused in [ask(&app, path, &forged).await, ask(&app, path, &[("x-api-key", "mk_no")]).await] {
            assert_eq!((refused.status.as_u16(), refused.header("cache-control")), (401, "no-store"));
            assert!(IDENTITY.iter().all(|name| !refused.headers.contains_key(*name)), "{refused:?}");
        }
        let mut options = with(path, &forged);
        *options.method_mut() = Method::OPTIONS;
        let reply = app.internal_send(options).await;
        assert!(IDENTITY.iter().all(|name| reply.headers.get(*name).unwrap().is_empty()), "{reply:?}");
    }
    let cross_origin = ask(&app, ASK, &[("origin", "https://app.example"), ("x-api-key", &key)]).await;
    let theirs = cross_origin.headers.keys().find(|name| name.as_str().starts_with("access-control"));
    assert_eq!(theirs, None, "the application speaks for its own origins");
}

async fn a_call_is_one_request_of_the_keys_own_limits(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    for left in (0..20).rev() {
        let reply = match left % 3 {
            0 => ask(&app, ASK, &[("x-api-key", &key)]).await,
            1 => ask(&app, NGINX, &[("authorization", &format!("Bearer {key}"))]).await,
            _ => app.get(KEYS, &key).await,
        };
        assert_eq!((reply.status.as_u16(), reply.header("x-ratelimit-remaining")), (200, &*left.to_string()));
        assert_eq!(reply.header("x-ratelimit-limit"), "20");
        assert_eq!(
            reply.header("ratelimit-policy"),
            "\"minute\";q=20;w=60, \"hour\";q=100;w=3600, \"day\";q=1000;w=86400"
        );
    }
    let of_the_api = app.get(KEYS, &key).await;
    let refused = ask(&app, ASK, &[("x-api-key", &key)]).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "RATE_LIMIT_EXCEEDED"));
    assert_eq!(refused.body, of_the_api.body);
    for header in ["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit", "ratelimit-policy"] {
        assert!(!refused.header(header).is_empty(), "{header}");
        assert_eq!(refused.header(header), of_the_api.header(header), "{header}");
    }
    app.clock.advance(Duration::from_secs(3));
    assert_eq!(ask(&app, ASK, &[("x-api-key", &key)]).await.status, 200);
    assert_eq!(app.get(KEYS, &key).await.status, 429);
}

async fn nginx_is_refused_in_the_words_it_understands(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    while ask(&app, ASK, &[("x-api-key", &key)]).await.status == 200 {}
    let no_host = |path: &str| {
        let mut request = with(path, &[]);
        request.headers_mut().remove("host");
        request
    };
    let table = [
        (with(ASK, &[]), 401, ""),
        (with(NGINX, &[]), 401, ""),
        (with(ASK, &[("x-api-key", &key)]), 429, ""),
        (with(NGINX, &[("x-api-key", &key)]), 403, "429"),
        (with("/forward-auth/nginx/a?b", &[("x-api-key", &key)]), 403, "429"),
        (with("/forward-auth/nginxx", &[("x-api-key", &key)]), 429, ""),
        (with("/forward-auth/envoy/nginx", &[("x-api-key", &key)]), 429, ""),
        (no_host(ASK), 400, ""),
        (no_host(NGINX), 403, "400"),
    ];
    for (request, status, hint) in table {
        let path = request.uri().path().to_owned();
        let reply = app.internal_send(request).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-auth-status")), (status, hint), "{path}");
        assert_eq!(reply.headers.contains_key("retry-after"), status == 429 || hint == "429", "{path}");
        assert_eq!(reply.headers.contains_key("www-authenticate"), status == 401, "{path}");
        let in_words_of_nginx = path.starts_with("/forward-auth/nginx") && !path.ends_with("xx");
        assert_eq!(reply.bytes.is_empty(), in_words_of_nginx, "{path}");
        assert_eq!(reply.header("content-length"), reply.bytes.len().to_string(), "{path}");
        assert_eq!(reply.headers.contains_key("content-type"), !in_words_of_nginx, "{path}");
        assert_eq!(reply.body["success"], if in_words_of_nginx { Value::Null } else { json!(false) });
    }
    let metrics = String::from_utf8(app.internal_get("/metrics").await.bytes).unwrap();
    assert!(metrics.contains("route=\"/forward-auth/nginx\",method=\"GET\",status=\"403\"} 2\n"), "{metrics}");
}

/// What a gateway, or a client that would pass for one, may say of the method; and whether it is a preflight then.
async fn options_goes_without_a_key_if_nobody_says_otherwise(database: Database) {
    let app = TestApp::on(&database).await;
    let (forwarded, original) = ("x-forwarded-method", "x-original-method");
    let table: [(&str, Headers<'_>, bool); 11] = [
        ("OPTIONS", &[], true),
        ("GET", &[(forwarded, "OPTIONS")], true),
        ("GET", &[(original, "OPTIONS")], true),
        ("POST", &[(original, "OPTIONS"), (forwarded, "OPTIONS")], true),
        ("OPTIONS", &[("origin", "https://app.example"), ("access-control-request-method", "PUT")], true),
        ("GET", &[], false),
        ("OPTIONS", &[(forwarded, "GET")], false),
        ("GET", &[(original, "GET"), (forwarded, "OPTIONS")], false),
        ("GET", &[(original, "OPTIONS"), (forwarded, "DELETE")], false),
        ("GET", &[(original, "OPTIONS"), (original, "GET")], false),
        ("GET", &[(forwarded, "options")], false),
    ];
    for path in [ASK, NGINX] {
        for (method, headers, goes) in table {
            let mut request = with(path, headers);
            *request.method_mut() = method.parse().unwrap();
            let status = app.internal_send(request).await.status;
            assert_eq!(status, if goes { 200 } else { 401 }, "{method} {headers:?}");
        }
    }
}

async fn options_needs_a_key_if_the_operator_says_so(database: Database) {
    let app = TestApp::with(&database, Options { allow_options: false, ..Options::default() }).await;
    let key = app.key().await;
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "PUT")];
    let by_header = [("x-forwarded-method", "OPTIONS")];
    for headers in [&preflight[..], &by_header, &[]] {
        let mut bare = with(ASK, headers);
        *bare.method_mut() = Method::OPTIONS;
        assert_eq!(app.internal_send(bare).await.status, 401);
        let mut keyed = with(ASK, &[headers, &[("x-api-key", &key)]].concat());
        *keyed.method_mut() = Method::OPTIONS;
        let reply = app.internal_send(keyed).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-plan")), (200, "pro"));
    }
}

async fn a_key_counts_only_where_the_api_lets_it_count(database: Database) {
    let app = TestApp::on(&database).await;
    let (key, other) = (app.key().await, app.key().await);
    let (bearer, of_another, cookie) = (format!("bearer {key}"), format!("Bearer {other}"), format!("key={key}"));
    let (query, uri) = (format!("{ASK}?a=1&api_key={key}"), format!("/app?api_key={key}"));
    let table: [(&str, Headers<'_>, u16); 12] = [
        (ASK, &[("x-api-key", &key)], 200),
        (ASK, &[("authorization", &bearer)], 200),
        (ASK, &[("authorization", &bearer), ("x-api-key", &key)], 200),
        (ASK, &[("x-api-key", &key), ("x-forwarded-uri", "/app?page=2")], 200),
        (ASK, &[("x-api-key", &key), ("authorization", "Basic eDp5")], 200),
        (ASK, &[("x-api-key", &key), ("authorization", &of_another)], 401),
        (ASK, &[("x-api-key", &key), ("x-api-key", &key)], 401),
        (ASK, &[("cookie", &cookie)], 401),
        (&query, &[], 401),
        (&query, &[("x-api-key", &key)], 401),
        (ASK, &[("x-api-key", &key), ("x-forwarded-uri", &uri)], 401),
        (ASK, &[("x-api-key", &key), ("x-original-uri", &uri)], 401),
    ];
    for (at, (path, headers, status)) in table.into_iter().enumerate() {
        assert_eq!(ask(&app, path, headers).await.status, status, "row {at}");
    }
}

async fn revoked_and_expired_keys_open_nothing(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let doomed = app.create(&key, json!({ "name": "doomed" })).await;
    let mortal = app.create(&key, json!({ "name": "mortal", "expirationDays": 1 })).await;
    let status = async |text: &Value| ask(&app, ASK, &[("x-api-key", text.as_str().unwrap())]).await.status.as_u16();
    assert_eq!([status(&doomed["apiKey"]).await, status(&mortal["apiKey"]).await], [200, 200]);

    app.delete(&format!("{KEYS}/{}", doomed["keyId"].as_str().unwrap()), &key).await;
    assert_eq!(status(&doomed["apiKey"]).await, 401);
    app.clock.advance(Duration::from_secs(86_399));
    assert_eq!(status(&mortal["apiKey"]).await, 200);
    app.clock.advance(Duration::from_secs(1));
    let expired = ask(&app, ASK, &[("x-api-key", mortal["apiKey"].as_str().unwrap())]).await;
    assert_eq!((expired.status.as_u16(), expired.code()), (401, "UNAUTHORIZED"));
    assert_eq!(expired.body["error"]["message"], "The API key expired at 2024-01-16T12:30:00.000Z.");
}

async fn failures_are_counted_by_the_client_behind_the_gateway(database: Database) {
    let trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let app = TestApp::with(&database, Options { failed_per_minute: 2, trusted_proxies, ..Options::default() }).await;
    let key = app.key().await;
    let status = async |path: &str, key: &str, forwarded: &str| {
        let mut request =
            with(path, &[("x-api-key", key), ("x-forwarded-for", forwarded), ("forwarded", "for=8.8.8.8")]);
        request.extensions_mut().insert(Peer(IpAddr::from([10, 0, 0, 1])));
        app.internal_send(request).await.status.as_u16()
    };
    for _ in 0..2 {
        assert_eq!(status(ASK, "mk_no", "203.0.113.5").await, 401);
    }
    assert_eq!(status(ASK, "mk_no", "203.0.113.5").await, 429);
    assert_eq!(status(NGINX, "mk_no", "1.1.1.1, 203.0.113.5").await, 403);
    assert_eq!(status(ASK, &key, "203.0.113.5").await, 200);
    assert_eq!(status(ASK, "mk_no", "203.0.113.6").await, 401);
}

async fn a_store_that_is_away_is_our_fault_and_lets_nobody_in(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    app.store.close();
    let reply = ask(&app, ASK, &[("x-api-key", &key)]).await;
    assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"));
    assert_eq!(reply.header("retry-after"), "1");
    let reply = ask(&app, NGINX, &[("x-api-key", &key)]).await;
    assert_eq!((reply.status.as_u16(), reply.bytes.len(), reply.header("content-length")), (503, 0, "0"));
    assert_eq!(ask(&app, ASK, &[]).await.status, 401, "no key needs no store");
}

async fn a_body_is_never_waited_for(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    for (key, status) in [(&*key, 200), ("", 401)] {
        let mut request = request(Method::POST, ASK, key);
        *request.body_mut() = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let reply = tokio::time::timeout(Duration::from_secs(20), app.internal_send(request)).await;
        assert_eq!(reply.expect("it waits for the body").status, status);
    }
}

async fn a_use_through_a_gateway_is_a_use(database: Database) {
    let mut app = TestApp::on(&database).await;
    let key = app.key().await;
    app.write_last_used();
    assert_eq!(ask(&app, ASK, &[("x-api-key", &key)]).await.status, 200);
    app.flush_last_used().await;
    let now = momail_api_keys::http::timestamp(app.clock.now());
    let again = TestApp::on(&database).await;
    assert_eq!(again.get(KEYS, &key).await.body["data"][0]["lastUsed"], json!(now));
}
