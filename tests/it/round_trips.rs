//! Any valid body comes back as it was sent, and any other is refused in the envelope.

use axum::http::Method;
use momail_api_keys::account::Plan;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::support::{Database, TestApp, invalid_body, is_long, json_request, on_both_stores, valid_creation};

on_both_stores!(a_valid_body_comes_back_in_every_answer, any_other_body_is_refused_and_makes_nothing);

const KEYS: &str = "/v1/api-keys";
const CASES: u64 = 250;
const CASES_LONG: u64 = 10_000;

fn seeds() -> std::ops::Range<u64> {
    if is_long() { 0..CASES_LONG } else { 0..CASES }
}

/// What a body says of a key, as answers have it.
fn expected(body: &Value) -> Value {
    let all = json!(["api-keys:read", "api-keys:write", "domains:read", "domains:write", "emails:read"]);
    let permissions = match &body["permissions"] {
        Value::Array(asked) => all.as_array().unwrap().iter().filter(|name| asked.contains(name)).cloned().collect(),
        _ => all,
    };
    json!({ "name": body["name"].as_str().unwrap().trim(), "permissions": permissions })
}

fn shown(key: &Value) -> Value {
    json!({ "name": key["name"], "permissions": key["permissions"] })
}

async fn a_valid_body_comes_back_in_every_answer(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Pro).await.1;
    for seed in seeds() {
        let body = valid_creation(&mut StdRng::seed_from_u64(seed));
        let made = app.create(&key, body.clone()).await;
        assert_eq!(shown(&made), expected(&body), "seed {seed}: {body}");
        let path = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
        let one = app.get(&path, &key).await.body["data"].take();
        assert_eq!(shown(&one), expected(&body), "seed {seed}: {body}");
        let days = (one["expirationTs"].as_str())
            .map(|end| (end.parse::<chrono::DateTime<chrono::Utc>>().unwrap() - app.clock.now()).num_days());
        assert_eq!(days, body["expirationDays"].as_i64(), "seed {seed}: {body}");
        for query in ["", "?limit=1&sort=createdAt:desc"] {
            let list = app.get(&format!("{KEYS}{query}"), &key).await.body;
            assert_eq!((&list["data"][0], &list["meta"]["total"]), (&one, &json!(2)), "seed {seed}: {body}");
        }
        assert_eq!(app.delete(&path, &key).await.status, 200);
    }
}

async fn any_other_body_is_refused_and_makes_nothing(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Pro).await.1;
    for seed in seeds() {
        let body = invalid_body(&mut StdRng::seed_from_u64(seed));
        let reply = app.send(json_request(Method::POST, KEYS, &key, body.clone())).await;
        let told = String::from_utf8_lossy(&body);
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "seed {seed}: {told}");
        assert!(!reply.body["error"]["details"]["fields"].as_object().unwrap().is_empty(), "seed {seed}: {told}");
    }
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1);
}
