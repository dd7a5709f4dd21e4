//! Keys near their end, of which their accounts are warned, and those long past it, which are removed.

use std::time::Duration;

use futures_util::future::join;
use serde_json::{Value, json};

use crate::support::{Database, TestApp, on_both_stores};

on_both_stores!(
    an_account_is_warned_a_week_and_a_day_before_once_each,
    of_two_replicas_one_warns,
    keys_are_removed_long_after_their_end_and_no_sooner,
);

const KEYS: &str = "/v1/api-keys";
const DAY: Duration = Duration::from_secs(86_400);

async fn warned(app: &TestApp) -> Vec<(String, i32)> {
    let warnings = app.store.warn_of_expiry(app.clock.now()).await.unwrap();
    warnings.iter().map(|warning| (warning.key_id.to_string(), warning.days)).collect()
}

fn id(key: &Value) -> String {
    key["keyId"].as_str().unwrap().to_owned()
}

async fn an_account_is_warned_a_week_and_a_day_before_once_each(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "ten", "expirationDays": 10 })).await;
    let gone = app.create(&key, json!({ "name": "gone", "expirationDays": 10 })).await;
    app.delete(&format!("{KEYS}/{}", id(&gone)), &key).await;
    assert_eq!(warned(&app).await, []);
    app.clock.advance(DAY * 3 - Duration::from_millis(1));
    assert_eq!(warned(&app).await, []);
    app.clock.advance(Duration::from_millis(1));
    assert_eq!(warned(&app).await, [(id(&made), 7)]);
    assert_eq!(warned(&app).await, [], "once");
    app.clock.advance(DAY * 6);
    assert_eq!(warned(&app).await, [(id(&made), 1)]);
    assert_eq!(warned(&app).await, []);

    let events = app.get("/v1/api-keys/events?limit=2", &key).await.body["data"].clone();
    for (event, detail) in events.as_array().unwrap().iter().zip(["1 day", "7 days"]) {
        assert_eq!((&event["event"], &event["detail"]), (&json!("expires_soon"), &json!(detail)));
        assert_eq!((&event["keyId"], &event["byKeyId"]), (&made["keyId"], &Value::Null));
    }
    // Whoever gives it more time is warned again, and whoever changes something else is not.
    let path = format!("{KEYS}/{}", id(&made));
    app.patch(&path, &key, &json!({ "name": "renamed" })).await;
    assert_eq!(warned(&app).await, []);
    app.patch(&path, &key, &json!({ "expirationDays": 5 })).await;
    assert_eq!(warned(&app).await, [(id(&made), 7)]);
    app.clock.advance(DAY * 5);
    assert_eq!(warned(&app).await, [], "it is too late");
}

async fn of_two_replicas_one_warns(database: Database) {
    let (one, other) = (TestApp::on(&database).await, TestApp::on(&database).await);
    let key = one.key().await;
    for n in 0..20 {
        one.create(&key, json!({ "name": format!("{n}"), "expirationDays": 5 })).await;
    }
    let (first, second) = join(warned(&one), warned(&other)).await;
    assert_eq!(first.len() + second.len(), 20);
    assert_eq!(database.number("select count(*) from events where event = 'expires_soon'").await, 20);
}

async fn keys_are_removed_long_after_their_end_and_no_sooner(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let mut made = Vec::new();
    for (name, days) in [("expired", json!(1)), ("revoked", json!(null)), ("alive", json!(300))] {
        made.push(app.create(&key, json!({ "name": name, "expirationDays": days })).await);
    }
    app.clock.advance(DAY);
    app.delete(&format!("{KEYS}/{}", id(&made[1])), &key).await;
    let remove = async || app.store.remove_key_from_before(app.clock.now() - DAY * 10, app.clock.now()).await.unwrap();
    app.clock.advance(DAY * 10);
    assert!(!remove().await, "they ended ten days ago, and not longer");
    app.clock.advance(Duration::from_millis(1));
    assert!(remove().await && remove().await && !remove().await);
    assert_eq!(database.number("select count(*) from api_keys where name in ('expired', 'revoked')").await, 0);
    assert_eq!(database.number("select count(*) from key_secrets").await, 2);
    let list = app.get(KEYS, &key).await;
    assert_eq!((&list.body["meta"]["total"], &list.body["data"][0]["name"]), (&json!(2), &json!("alive")));
    let wrong = "select count(*) from accounts a
        where live_keys <> (select count(*) from api_keys k where k.account_id = a.id and k.revoked_at is null)";
    assert_eq!(database.number(wrong).await, 0);
    for gone in &made[..2] {
        assert_eq!(app.get(KEYS, gone["apiKey"].as_str().unwrap()).await.status, 401);
    }
    let removed = app.get("/v1/api-keys/events?limit=2", &key).await.body["data"].clone();
    assert!(removed.as_array().unwrap().iter().all(|event| event["event"] == "removed"), "{removed}");
}
