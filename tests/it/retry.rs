//! Requests that are sent again after a lost answer, and carried out once.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    Connection, Database, Reply, Service, TestApp, accounts, json_request, on_both_stores, unlimited,
};

on_both_stores!(
    a_retry_gets_the_same_answer_the_same_secret_included,
    a_retried_rotation_rotates_once,
    a_name_is_good_for_one_request_of_one_key_for_an_hour,
    of_twenty_at_once_one_is_carried_out,
    what_was_refused_may_be_put_right_under_the_same_name,
    what_is_no_name_is_refused,
    what_is_kept_cannot_be_read_and_does_not_stay,
    after_a_kill_an_acknowledged_key_is_shown_again_and_none_is_made_twice,
);

const KEYS: &str = "/v1/api-keys";

fn named(path: &str, key: &str, name: &str, body: &Value) -> Request<Body> {
    let mut request = json_request(Method::POST, path, key, body.to_string());
    request.headers_mut().insert("idempotency-key", name.parse().unwrap());
    request
}

async fn create(app: &TestApp, key: &str, name: &str, body: &Value) -> Reply {
    app.send(named(KEYS, key, name, body)).await
}

async fn a_retry_gets_the_same_answer_the_same_secret_included(database: Database) {
    let (app, replica) = (TestApp::on(&database).await, TestApp::on(&database).await);
    let key = app.key().await;
    let body = json!({ "name": "once", "expirationDays": 3 });
    let first = create(&app, &key, "a-1", &body).await;
    assert_eq!(first.status, 201, "{first:?}");
    app.clock.advance(Duration::from_secs(60));
    for app in [&app, &replica, &app] {
        let again = create(app, &key, "a-1", &body).await;
        assert_eq!((again.status.as_u16(), &again.bytes), (201, &first.bytes));
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.header("content-type"), "application/json");
    }
    assert!(first.header("location").ends_with(first.body["data"]["keyId"].as_str().unwrap()));
    let list = app.get(KEYS, first.body["data"]["apiKey"].as_str().unwrap()).await;
    assert_eq!((list.status.as_u16(), &list.body["meta"]["total"]), (200, &json!(2)), "it is one key, and it opens");
    // The retry is given although meanwhile nothing could be made.
    while app.post(KEYS, &key, &json!({ "name": "fill" })).await.status == 201 {}
    assert_eq!(create(&app, &key, "a-1", &body).await.bytes, first.bytes);
}

async fn a_retried_rotation_rotates_once(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a" })).await;
    let path = format!("{KEYS}/{}/rotate", made["keyId"].as_str().unwrap());
    let rotate = async || app.send(named(&path, &key, "r", &json!({ "gracePeriodHours": 1 }))).await;
    let first = rotate().await;
    assert_eq!(first.status, 200);
    app.get("/v1/api-keys/current", made["apiKey"].as_str().unwrap()).await;
    let again = rotate().await;
    assert_eq!((again.status.as_u16(), &again.bytes), (200, &first.bytes));
    for secret in [&made, &first.body["data"]] {
        assert_eq!(app.get(KEYS, secret["apiKey"].as_str().unwrap()).await.status, 200);
    }
    // Without the header it is another rotation, and there are two secrets already.
    assert_eq!(app.post(&path, &key, &json!({ "gracePeriodHours": 1 })).await.status, 409);
    let mut bare = app.send(named(&path, &key, "bare", &json!({}))).await;
    assert_eq!(bare.status, 409);
    app.clock.advance(Duration::from_secs(3_600));
    bare = app.send(named(&path, &key, "bare", &json!({}))).await;
    assert_eq!(bare.status, 200, "a refusal was not kept");
}

async fn a_name_is_good_for_one_request_of_one_key_for_an_hour(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let body = json!({ "name": "a" });
    let first = create(&app, &key, "n", &body).await;
    let other_key = first.body["data"]["apiKey"].as_str().unwrap();
    let item = format!("{KEYS}/{}/rotate", first.body["data"]["keyId"].as_str().unwrap());
    let others = [
        create(&app, &key, "n", &json!({ "name": "b" })).await,
        create(&app, &key, "n", &json!({ "name": "a", "expirationDays": null })).await,
        app.send(named(&item, &key, "n", &json!({}))).await,
        // Another key of the account cannot read what the first one was told.
        create(&app, other_key, "n", &body).await,
    ];
    for other in others {
        assert_eq!((other.status.as_u16(), other.code()), (409, "CONFLICT"), "{other:?}");
        let message =
            "This Idempotency-Key belongs to another request of the last hour, or of another API key. Use a new one.";
        assert_eq!(other.body["error"]["message"], message);
        assert!(!other.headers.contains_key("retry-after"), "waiting is of no use");
    }
    // Another account may call its requests as it likes.
    let theirs = app.key().await;
    let of_theirs = create(&app, &theirs, "n", &body).await;
    assert_eq!(of_theirs.status, 201);
    assert_ne!(of_theirs.bytes, first.bytes);

    app.clock.advance(Duration::from_secs(3_600) - Duration::from_millis(1));
    assert_eq!(create(&app, &key, "n", &body).await.bytes, first.bytes);
    app.clock.advance(Duration::from_millis(1));
    let later = create(&app, &key, "n", &json!({ "name": "later" })).await;
    assert_eq!((later.status.as_u16(), &later.body["data"]["name"]), (201, &json!("later")));
    assert_eq!(create(&app, &key, "n", &json!({ "name": "later" })).await.bytes, later.bytes);
}

async fn of_twenty_at_once_one_is_carried_out(database: Database) {
    let replicas = [TestApp::on(&database).await, TestApp::on(&database).await];
    let key = replicas[0].account(Plan::Enterprise).await.1;
    for round in 0..5 {
        let (name, body) = (format!("round-{round}"), json!({ "name": format!("{round}") }));
        let replies = join_all((0..20).map(|n| create(&replicas[n % 2], &key, &name, &body))).await;
        let (made, waiting): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201);
        assert!(!made.is_empty() && made.iter().all(|reply| reply.bytes == made[0].bytes), "round {round}");
        for reply in waiting {
            assert_eq!((reply.status.as_u16(), reply.code(), reply.header("retry-after")), (409, "CONFLICT", "1"));
        }
        assert_eq!(create(&replicas[round % 2], &key, &name, &body).await.bytes, made[0].bytes);
        let found = replicas[0].get(&format!("{KEYS}?q={round}"), &key).await;
        assert_eq!(found.body["meta"]["total"], 1, "round {round}");
    }
}

async fn what_was_refused_may_be_put_right_under_the_same_name(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Free).await.1;
    assert_eq!(create(&app, &key, "n", &json!({ "name": "" })).await.status, 400);
    for n in 0..24 {
        app.create(&key, json!({ "name": format!("{n}") })).await;
    }
    assert_eq!(create(&app, &key, "n", &json!({ "name": "a" })).await.status, 403);
    let list = app.get(KEYS, &key).await;
    app.delete(&format!("{KEYS}/{}", list.body["data"][0]["keyId"].as_str().unwrap()), &key).await;
    assert_eq!(create(&app, &key, "n", &json!({ "name": "a" })).await.status, 201);
}

async fn what_is_no_name_is_refused(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let long = "x".repeat(256);
    for wrong in ["", " ", "a b", "a\tb", "é", &long] {
        let mut request = named(KEYS, &key, "x", &json!({ "name": "a" }));
        request.headers_mut().insert("idempotency-key", axum::http::HeaderValue::from_bytes(wrong.as_bytes()).unwrap());
        let reply = app.send(request).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{wrong:?}");
        let fields = json!({ "Idempotency-Key": "must be given once, as 1 to 255 visible ASCII characters" });
        assert_eq!(reply.body["error"]["details"]["fields"], fields, "{wrong:?}");
    }
    let mut twice = named(KEYS, &key, "x", &json!({ "name": "a" }));
    twice.headers_mut().append("idempotency-key", "x".parse().unwrap());
    assert_eq!(app.send(twice).await.status, 400);
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1, "nothing was made");
    for edge in ["!", &long[1..], "{\"~}"] {
        assert_eq!(create(&app, &key, edge, &json!({ "name": "a" })).await.status, 201);
    }
}

async fn what_is_kept_cannot_be_read_and_does_not_stay(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let mut secrets = Vec::new();
    for n in 0..3 {
        let made = create(&app, &key, &format!("n{n}"), &json!({ "name": "a" })).await;
        secrets.push(made.body["data"]["apiKey"].as_str().unwrap().to_owned());
        app.clock.advance(Duration::from_secs(600));
    }
    let holds = |part: &str| {
        if database.is_postgres() {
            format!("select count(*) from idempotent_answers where position('{part}'::bytea in sealed) > 0")
        } else {
            format!("select count(*) from idempotent_answers where instr(sealed, cast('{part}' as blob)) > 0")
        }
    };
    for secret in &secrets {
        assert_eq!(database.number(&holds(&secret[12..])).await, 0);
    }
    assert_eq!(database.number(&holds("keyId")).await, 0, "nor is anything else");
    let kept = async || database.number("select count(*) from idempotent_answers").await;
    assert_eq!((app.store.sweep_answers(app.clock.now()).await.unwrap(), kept().await), (0, 3));
    app.clock.advance(Duration::from_secs(3_600 - 1_200));
    assert_eq!((app.store.sweep_answers(app.clock.now()).await.unwrap(), kept().await), (2, 1));
}

async fn after_a_kill_an_acknowledged_key_is_shown_again_and_none_is_made_twice(database: Database) {
    let key = accounts(&database, 1).await.remove(0);
    let settings = unlimited(&database.url);
    let mut service = Service::start(&settings);
    for round in 0..10 {
        let (name, body) = (format!("round-{round}"), json!({ "name": format!("key {round}") }));
        let mut connection = Connection::open(&service.public).await.unwrap();
        let sent = tokio::spawn({
            let request = named(KEYS, &key, &name, &body);
            async move { connection.send(request).await.ok().filter(|reply| reply.status == 201) }
        });
        // Sometimes before the answer, sometimes after it.
        sleep(Duration::from_millis(rand::random_range(0..12))).await;
        let acknowledged = if round % 2 == 0 { sent.await.unwrap() } else { None };
        service.kill();
        service = Service::start(&settings);
        let again = service.send(named(KEYS, &key, &name, &body)).await;
        assert_eq!(again.status, 201, "{again:?}");
        if let Some(acknowledged) = acknowledged {
            assert_eq!(again.bytes, acknowledged.bytes, "round {round}");
        }
        let secret = again.body["data"]["apiKey"].as_str().unwrap();
        assert_eq!(service.get("/v1/api-keys/current", secret).await.status, 200);
    }
    let list = service.get(KEYS, &key).await;
    assert_eq!(list.body["meta"]["total"], 11, "each was made once");
}
