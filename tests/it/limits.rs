//! A plan's limits as clients see them: who is refused, what the headers promise, and that the promise is kept.

use std::time::Duration;

use axum::http::Method;
use momail_api_keys::account::Plan;
use serde_json::json;

use crate::support::{Database, Options, Reply, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    a_burst_goes_and_whoever_waits_as_told_goes_again,
    the_headers_tell_of_the_window_with_the_fewest_requests_left,
    no_spelling_of_a_key_gives_a_second_bucket,
    refused_requests_do_nothing_and_cost_nothing,
    a_change_of_plan_holds_for_the_next_request_on_every_replica,
    preflight_and_health_cost_nothing,
    a_neighbour_far_beyond_its_limit_costs_others_none_of_theirs,
);

const KEYS: &str = "/v1/api-keys";

fn number(reply: &Reply, header: &str) -> i64 {
    reply.header(header).parse().unwrap_or_else(|_| panic!("{header} in {:?}", reply.headers))
}

async fn a_burst_goes_and_whoever_waits_as_told_goes_again(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    for left in (0..20).rev() {
        let reply = app.get(KEYS, &key).await;
        assert_eq!((reply.status.as_u16(), number(&reply, "x-ratelimit-remaining")), (200, left));
        assert_eq!(number(&reply, "x-ratelimit-limit"), 20);
    }
    for _ in 0..30 {
        let refused = app.get(KEYS, &key).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (429, "RATE_LIMIT_EXCEEDED"));
        assert_eq!(refused.body["error"]["details"], json!({ "limit": 20, "window": "minute", "retry_after": 3 }));
        assert_eq!(number(&refused, "retry-after"), 3);
        assert_eq!(number(&refused, "x-ratelimit-remaining"), 0);
        assert_eq!(number(&refused, "x-ratelimit-reset"), app.clock.now().timestamp() + 60);
    }
    app.clock.advance(Duration::from_millis(2_999));
    assert_eq!(app.get(KEYS, &key).await.status, 429);
    for _ in 0..30 {
        let wait = number(&app.get(KEYS, &key).await, "retry-after");
        assert!((1..=3).contains(&wait));
        app.clock.advance(Duration::from_secs(wait.unsigned_abs()));
        assert_eq!(app.get(KEYS, &key).await.status, 200);
    }
}

async fn the_headers_tell_of_the_window_with_the_fewest_requests_left(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    let reply = app.get(KEYS, &key).await;
    let policy = "\"minute\";q=20;w=60, \"hour\";q=100;w=3600, \"day\";q=1000;w=86400";
    assert_eq!(reply.header("ratelimit-policy"), policy);
    assert_eq!(reply.header("ratelimit"), "\"minute\";r=19;t=3");

    // Ninety requests in half an hour leave the hour with less than the minute.
    for _ in 0..90 {
        app.clock.advance(Duration::from_secs(5));
        assert_eq!(app.get(KEYS, &key).await.status, 200);
    }
    let reply = app.get(KEYS, &key).await;
    assert_eq!(number(&reply, "x-ratelimit-limit"), 100);
    assert_eq!(number(&reply, "x-ratelimit-remaining"), 8);
    let end_of_hour = 1_705_323_600;
    assert_eq!(number(&reply, "x-ratelimit-reset"), end_of_hour);
    for _ in 0..8 {
        assert_eq!(app.get(KEYS, &key).await.status, 200);
    }
    let refused = app.get(KEYS, &key).await;
    assert_eq!(refused.body["error"]["details"]["window"], "hour");
    let wait = number(&refused, "retry-after");
    assert_eq!(app.clock.now().timestamp() + wait, end_of_hour);
    app.clock.advance(Duration::from_secs(wait.unsigned_abs()));
    assert_eq!(app.get(KEYS, &key).await.status, 200);
}

async fn no_spelling_of_a_key_gives_a_second_bucket(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    let bearer = |method| {
        let mut request = request(method, KEYS, "");
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    let mut went = 0;
    for n in 0..60 {
        let reply = match n % 4 {
            0 => app.get(KEYS, &key).await,
            1 => app.send(request(Method::HEAD, KEYS, &key)).await,
            2 => app.send(bearer(Method::GET)).await,
            _ => app.send(bearer(Method::HEAD)).await,
        };
        went += usize::from(reply.status == 200);
    }
    assert_eq!(went, 20);
}

async fn refused_requests_do_nothing_and_cost_nothing(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    for _ in 0..20 {
        app.get(KEYS, &key).await;
    }
    for _ in 0..50 {
        let body = json!({ "name": "too late" }).to_string();
        assert_eq!(app.send(json_request(Method::POST, KEYS, &key, body)).await.status, 429);
        // The limit comes before the body: this one could not even be read.
        assert_eq!(app.send(json_request(Method::POST, KEYS, &key, "{")).await.status, 429);
    }
    app.clock.advance(Duration::from_secs(3));
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1);
}

async fn a_change_of_plan_holds_for_the_next_request_on_every_replica(database: Database) {
    let replicas =
        [TestApp::with(&database, Options::published()).await, TestApp::with(&database, Options::published()).await];
    let (account, key) = replicas[0].account(Plan::Free).await;
    for app in &replicas {
        while app.get(KEYS, &key).await.status == 200 {}
    }
    assert!(replicas[0].set_plan(account, Plan::Pro).await);
    replicas[0].app.auth.settle().await.unwrap();
    for app in &replicas {
        let reply = app.get(KEYS, &key).await;
        assert_eq!((reply.status.as_u16(), number(&reply, "x-ratelimit-limit")), (200, 100));
        assert_eq!((&reply.body["data"][0]["plan"], &reply.body["data"][0]["rateLimit"]), (&json!("pro"), &json!(100)));
    }
    assert!(replicas[1].set_plan(account, Plan::Free).await);
    replicas[1].app.auth.settle().await.unwrap();
    for app in &replicas {
        assert_eq!(number(&app.get(KEYS, &key).await, "x-ratelimit-limit"), 20);
    }
}

async fn preflight_and_health_cost_nothing(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    for _ in 0..1_000 {
        let mut preflight = request(Method::OPTIONS, KEYS, &key);
        preflight.headers_mut().insert("origin", "https://app.example".parse().unwrap());
        preflight.headers_mut().insert("access-control-request-method", "GET".parse().unwrap());
        assert_eq!(app.send(preflight).await.status, 204);
        for path in ["/livez", "/readyz", "/openapi.json"] {
            assert_eq!(app.get(path, &key).await.status, 200);
        }
    }
    assert_eq!(number(&app.get(KEYS, &key).await, "x-ratelimit-remaining"), 19);
}

async fn a_neighbour_far_beyond_its_limit_costs_others_none_of_theirs(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let (noisy, quiet) = (app.account(Plan::Free).await.1, app.account(Plan::Free).await.1);
    // Fifty times a limit of 20 a minute beside half of it, for three minutes.
    let mut went = 0;
    for second in 0..180 {
        for _ in 0..17 {
            went += usize::from(app.get(KEYS, &noisy).await.status == 200);
        }
        if second % 6 == 0 {
            assert_eq!(app.get(KEYS, &quiet).await.status, 200, "second {second}");
        }
        app.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(went, 20 + 59, "a burst, and a token each three seconds");
}
