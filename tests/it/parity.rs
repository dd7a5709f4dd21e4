//! The same script of requests on SQLite and on PostgreSQL: the same statuses, bodies, headers and order.

use std::time::Duration;

use axum::http::Method;
use momail_api_keys::account::Plan;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::{Database, Options, Reply, TestApp, json_request, request};

const KEYS: &str = "/v1/api-keys";
const STEPS: usize = 400;

/// One life of two accounts, chosen by `seed`, as what its clients saw.
async fn story(database: &Database, seed: u64) -> Vec<String> {
    let app = TestApp::with(database, Options::published()).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut accounts = Vec::new();
    for plan in [Plan::Free, Plan::Enterprise] {
        accounts.push(vec![app.account(plan).await.1]);
    }
    let mut ids: Vec<String> = Vec::new();
    let mut told_so_far = Vec::new();
    for _ in 0..STEPS {
        app.clock.advance(Duration::from_millis(random.random_range(0..20_000)));
        let keys = &mut accounts[random.random_range(0..2)];
        let key = keys[random.random_range(0..keys.len())].clone();
        let request = match random.random_range(0..10) {
            0..4 => json_request(Method::POST, KEYS, &key, body(&mut random).to_string()),
            4..6 if !ids.is_empty() => {
                request(Method::DELETE, &format!("{KEYS}/{}", ids[random.random_range(0..ids.len())]), &key)
            }
            _ => request(Method::GET, KEYS, &key),
        };
        let reply = app.send(request).await;
        if let Some(text) = reply.body["data"]["apiKey"].as_str() {
            keys.push(text.to_owned());
            ids.push(reply.body["data"]["keyId"].as_str().unwrap().to_owned());
        }
        told_so_far.push(told(&reply, &ids));
    }
    told_so_far
}

fn body(random: &mut StdRng) -> Value {
    let names = ["Zebra", "apple", "Äpfel", "éclair", "10", "9", "a b", "", "x\u{0}", "🔑", "null"];
    let name = names[random.random_range(0..names.len())];
    match random.random_range(0..5) {
        0 => json!({ "name": name, "expirationDays": random.random_range(-1..370) }),
        1 => json!({ "name": name, "expirationDays": null }),
        2 => json!({ "nam": name }),
        _ => json!({ "name": name }),
    }
}

/// An answer without what chance makes: ids become their place in the story, keys and prefixes vanish.
fn told(reply: &Reply, ids: &[String]) -> String {
    let mut text = String::from_utf8(reply.bytes.clone()).unwrap();
    for (place, id) in ids.iter().enumerate() {
        text = text.replace(id.as_str(), &format!("#{place}"));
    }
    let mut body: Value = serde_json::from_str(&text).unwrap_or_default();
    redact(&mut body);
    let limits = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after", "ratelimit"];
    format!("{} {:?} {body}", reply.status, limits.map(|name| reply.header(name).to_owned()))
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), &member) {
                    ("apiKey" | "keyPrefix", _) => *member = Value::Null,
                    ("keyId", Value::String(id)) if id.starts_with("key_") => *member = Value::Null,
                    _ => redact(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => (),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_tell_the_same_story() {
    for seed in 0..5 {
        let on_sqlite = story(&Database::sqlite(), seed).await;
        let on_postgres = story(&Database::postgres().await, seed).await;
        for (step, (one, other)) in on_sqlite.iter().zip(&on_postgres).enumerate() {
            assert_eq!(one, other, "seed {seed}, step {step}");
        }
        let of = |status: &str| on_sqlite.iter().filter(|line| line.starts_with(status)).count();
        assert!(of("200") > 50 && of("201") > 20 && of("4") > 20, "the story is a poor one: {on_sqlite:#?}");
    }
}
