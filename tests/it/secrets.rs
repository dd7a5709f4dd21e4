//! No key is ever written anywhere but into the answer that made it. Canaries are shown in every wrong place, at trace level.

use std::fmt::Write;
use std::fs;

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

use crate::support::{Connection, Database, Service, json_request, on_both_stores, raw_exchange, request};

on_both_stores!(no_log_metric_answer_or_file_holds_a_secret);

const KEYS: &str = "/v1/api-keys";

fn with(name: &str, value: &str) -> Request<Body> {
    let mut request = request(Method::GET, KEYS, "");
    request.headers_mut().insert(axum::http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
    request
}

/// Every place where a client might put its key by mistake.
fn misplaced(key: &str) -> Vec<Request<Body>> {
    let named = json!({ key: 1, "name": key }).to_string();
    let mut requests: Vec<_> =
        ["x-api_key", "cookie", "x-request-id", "origin", "referer", "user-agent", "x-forwarded-for", "if-none-match"]
            .iter()
            .map(|name| with(name, key))
            .collect();
    requests.extend([
        with("authorization", &format!("Basic {key}")),
        with("authorization", key),
        with("content-type", key),
        request(Method::GET, &format!("{KEYS}?api_key={key}"), ""),
        request(Method::GET, &format!("{KEYS}?api_key={key}"), key),
        request(Method::GET, &format!("{KEYS}?{key}=1&{key}"), key),
        request(Method::GET, &format!("/{key}"), ""),
        request(Method::DELETE, &format!("{KEYS}/{key}"), key),
        request(key.parse().unwrap(), KEYS, key),
        json_request(Method::POST, KEYS, key, named),
        json_request(Method::POST, KEYS, key, json!({ "name": key }).to_string()),
        json_request(Method::POST, KEYS, key, json!({ "name": "a", "expirationDays": key }).to_string()),
        json_request(Method::POST, KEYS, key, format!("\"{key}\"")),
        json_request(Method::POST, KEYS, key, key.to_owned()),
        json_request(Method::POST, KEYS, key, format!("{{\"name\":\"{}\"}}", key.repeat(3_000))),
    ]);
    requests
}

async fn no_log_metric_answer_or_file_holds_a_secret(database: Database) {
    let password = "canary-of-a-password";
    let url = database.url.replace("postgres@", &format!("postgres:{password}@"));
    let created = Service::command()
        .args(["accounts", "create", "--name", "canary", "--plan", "enterprise", "--json"])
        .env("DATABASE_URL", &url)
        .env("RUST_LOG", "trace")
        .output()
        .unwrap();
    let account: serde_json::Value = serde_json::from_slice(&created.stdout).unwrap();
    let key = account["key"]["apiKey"].as_str().unwrap();
    let mut service = Service::start(&[("DATABASE_URL", &url), ("RUST_LOG", "trace")]);

    let mut answers = String::new();
    let mut secrets = vec![key[12..].to_owned()];
    for request in misplaced(key) {
        let mut connection = Connection::open(&service.public).await.unwrap();
        let reply = connection.send(request).await.unwrap();
        writeln!(answers, "{:?} {}", reply.headers, String::from_utf8_lossy(&reply.bytes)).unwrap();
    }
    // What a gateway shows, and passes on of what its client wrote.
    for path in [format!("/forward-auth/{key}?{key}"), format!("/forward-auth/nginx/{key}")] {
        for shown in ["", key] {
            let mut asked = request(Method::GET, &path, shown);
            asked.headers_mut().insert("x-forwarded-uri", format!("/?{key}").parse().unwrap());
            asked.headers_mut().insert("x-key-id", key.parse().unwrap());
            let reply = Connection::open(&service.internal).await.unwrap().send(asked).await.unwrap();
            answers += &[format!("{:?}", reply.headers), String::from_utf8_lossy(&reply.bytes).into_owned()].concat();
        }
    }
    // What hyper itself refuses, and never shows us.
    answers += &raw_exchange(&service.public, format!("GET /{key} {key}\r\n\r\n").as_bytes()).await;
    answers += &raw_exchange(&service.public, format!("GET / HTTP/1.1\r\n{key}\u{1}: x\r\n\r\n").as_bytes()).await;

    let reply = service.send(json_request(Method::POST, KEYS, key, json!({ "name": "child" }).to_string())).await;
    let child = reply.body["data"]["apiKey"].as_str().unwrap().to_owned();
    secrets.push(child[12..].to_owned());
    assert_eq!(service.get(KEYS, &child).await.status, 200);
    answers += &String::from_utf8_lossy(&service.get(KEYS, key).await.bytes);
    answers += &String::from_utf8_lossy(&service.get_internal("/metrics").await.bytes);
    assert_eq!(service.terminate().code(), Some(0));

    secrets.push(password.to_owned());
    let logs = service.logs();
    assert!(logs.contains(&key[3..11]), "the prefix may be seen, or nothing is");
    for secret in &secrets {
        assert!(!answers.contains(secret), "an answer holds a secret");
        assert!(!logs.contains(secret), "the log holds a secret");
        assert!(!service.stdout().contains(secret), "standard output holds a secret");
        assert!(!String::from_utf8_lossy(&created.stderr).contains(secret), "the command's log holds a secret");
        assert!(!dump(&database).await.contains(secret), "the database holds a secret");
    }
}

/// Everything that is stored, as bytes or as text.
async fn dump(database: &Database) -> String {
    if !database.is_postgres() {
        let path = database.path();
        let files = ["", "-wal"].map(|suffix| fs::read(format!("{}{suffix}", path.display())).unwrap_or_default());
        return String::from_utf8_lossy(&files.concat()).into_owned();
    }
    let mut session = database.postgres_session().await;
    let mut text = String::new();
    for table in ["accounts", "api_keys", "key_secrets"] {
        let rows = format!("select coalesce(string_agg(row_to_json(t)::text, ' '), '') from {table} t");
        text += &sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(rows)).fetch_one(&mut session).await.unwrap();
    }
    text
}
