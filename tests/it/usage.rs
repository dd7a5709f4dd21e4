//! How many requests a key has made: exact after a clean stop, by the day and by the hour.

use std::time::Duration;

use axum::http::Method;
use momail_api_keys::account::Plan;
use momail_api_keys::clock::Clock;
use serde_json::{Value, json};

use crate::support::{Connection, Database, Options, Service, TestApp, accounts, on_both_stores, request, unlimited};

on_both_stores!(
    requests_are_counted_exactly_by_hour_and_by_day,
    what_a_limit_refuses_is_counted_apart,
    both_secrets_of_a_key_and_all_replicas_count_together,
    a_usage_is_asked_for_in_days_and_by_its_account_only,
    old_counts_go_and_a_keys_counts_go_with_it,
    a_service_that_stops_in_order_loses_no_count,
);

const KEYS: &str = "/v1/api-keys";
const CURRENT: &str = "/v1/api-keys/current";

fn text(key: &Value) -> &str {
    key["apiKey"].as_str().unwrap()
}

fn usage_path(key: &Value) -> String {
    format!("{KEYS}/{}/usage", key["keyId"].as_str().unwrap())
}

/// A replica that writes, on the clock of another.
async fn writing(database: &Database, options: Options, clock: &Clock) -> TestApp {
    let mut app = TestApp::at(database, options, clock.clone()).await;
    app.write_last_used();
    app
}

/// The spans with a request in them, as (start, allowed, refused).
fn spans(spans: &Value) -> Vec<(String, i64, i64)> {
    let number = |span: &Value, member: &str| span[member].as_i64().unwrap();
    let spans = spans.as_array().unwrap().iter();
    spans
        .map(|span| (span["start"].as_str().unwrap().to_owned(), number(span, "allowed"), number(span, "refused")))
        .filter(|(_, allowed, refused)| allowed + refused != 0)
        .collect()
}

async fn requests_are_counted_exactly_by_hour_and_by_day(database: Database) {
    let asker = TestApp::on(&database).await;
    let owner = asker.key().await;
    let made = asker.create(&owner, json!({ "name": "counted" })).await;
    let mut app = writing(&database, Options::default(), &asker.clock).await;
    // From half past twelve on: five in this hour, seven in the next, and three after midnight.
    for (number, pause) in [(5, 3_600), (7, 11 * 3_600), (3, 0)] {
        for n in 0..number {
            let path = if n % 2 == 0 { CURRENT } else { "/v1/api-keys/nobody" };
            app.send(request(Method::GET, path, text(&made))).await;
        }
        app.clock.advance(Duration::from_secs(pause));
    }
    app.internal_send(request(Method::GET, "/forward-auth", text(&made))).await;
    app.flush_last_used().await;

    let reply = asker.get(&usage_path(&made), &owner).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let data = &reply.body["data"];
    assert_eq!((&data["keyId"], &data["total"]), (&made["keyId"], &json!({ "allowed": 16, "refused": 0 })));
    let day = |day: &str, n| (format!("2024-01-{day}T00:00:00.000Z"), n, 0);
    assert_eq!(spans(&data["days"]), [day("15", 12), day("16", 4)]);
    let hour = |hour: &str, n| (format!("2024-01-{hour}:00:00.000Z"), n, 0);
    assert_eq!(spans(&data["hours"]), [hour("15T12", 5), hour("15T13", 7), hour("16T00", 4)]);
    // What was written once is not written again.
    app.write_last_used();
    app.flush_last_used().await;
    assert_eq!(asker.get(&usage_path(&made), &owner).await.body["data"], *data);
}

async fn what_a_limit_refuses_is_counted_apart(database: Database) {
    let asker = TestApp::on(&database).await;
    let key = asker.account(Plan::Free).await.1;
    let made = asker.create(&key, json!({ "name": "hasty" })).await;
    let mut app = writing(&database, Options::published(), &asker.clock).await;
    for n in 0..25 {
        let reply = match n % 2 {
            0 => app.get(CURRENT, text(&made)).await,
            _ => app.internal_send(request(Method::GET, "/forward-auth", text(&made))).await,
        };
        assert_eq!(reply.status == 429, n >= 20, "{n}");
    }
    // Whoever is not let in at all has no key to count for.
    app.get(CURRENT, "mk_nonsense").await;
    app.flush_last_used().await;
    let data = asker.get(&usage_path(&made), &key).await.body["data"].clone();
    assert_eq!(data["total"], json!({ "allowed": 20, "refused": 5 }));
    assert_eq!(spans(&data["hours"]), [("2024-01-15T12:00:00.000Z".to_owned(), 20, 5)]);
}

async fn both_secrets_of_a_key_and_all_replicas_count_together(database: Database) {
    let asker = TestApp::on(&database).await;
    let owner = asker.key().await;
    let made = asker.create(&owner, json!({ "name": "turning" })).await;
    let path = format!("{KEYS}/{}/rotate", made["keyId"].as_str().unwrap());
    let rotated = asker.post(&path, &owner, &json!({})).await.body["data"].clone();
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(writing(&database, Options::default(), &asker.clock).await);
    }
    for (n, replica) in replicas.iter().enumerate() {
        for _ in 0..=n {
            replica.get(CURRENT, text(&made)).await;
            replica.get(CURRENT, text(&rotated)).await;
        }
    }
    for replica in &mut replicas {
        replica.flush_last_used().await;
    }
    let data = asker.get(&usage_path(&made), &owner).await.body["data"].clone();
    assert_eq!(data["total"], json!({ "allowed": 12, "refused": 0 }));
}

async fn a_usage_is_asked_for_in_days_and_by_its_account_only(database: Database) {
    let app = TestApp::on(&database).await;
    let (owner, theirs) = (app.key().await, app.key().await);
    let made = app.create(&owner, json!({ "name": "never used" })).await;
    let path = usage_path(&made);
    for (query, days, first) in [
        ("", 30, "2023-12-17T00:00:00.000Z"),
        ("?days=1", 1, "2024-01-15T00:00:00.000Z"),
        ("?days=365", 365, "2023-01-16T00:00:00.000Z"),
    ] {
        let data = app.get(&format!("{path}{query}"), &owner).await.body["data"].clone();
        assert_eq!((data["days"].as_array().unwrap().len(), data["hours"].as_array().unwrap().len()), (days, 48));
        assert_eq!(data["days"][0], json!({ "start": first, "allowed": 0, "refused": 0 }), "{query}");
        assert_eq!(data["days"][days - 1]["start"], "2024-01-15T00:00:00.000Z");
        assert_eq!(data["hours"][47]["start"], "2024-01-15T12:00:00.000Z");
    }
    for (query, field, problem) in [
        ("days=0", "days", "must be a whole number from 1 to 365"),
        ("days=366", "days", "must be a whole number from 1 to 365"),
        ("days=-1", "days", "must be a whole number from 1 to 365"),
        ("days=x", "days", "must be a whole number from 1 to 365"),
        ("hours=5", "hours", "there is no such parameter"),
    ] {
        let reply = app.get(&format!("{path}?{query}"), &owner).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{query}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ field: problem }), "{query}");
    }
    assert_eq!(app.get(&path, &theirs).await.status, 404);
    assert_eq!(app.get(&format!("{KEYS}/nonsense/usage"), &owner).await.status, 404);
    app.delete(&path.replace("/usage", ""), &owner).await;
    assert_eq!(app.get(&path, &owner).await.status, 404, "a revoked key is not there");
}

async fn old_counts_go_and_a_keys_counts_go_with_it(database: Database) {
    let asker = TestApp::on(&database).await;
    let owner = asker.key().await;
    let made = asker.create(&owner, json!({ "name": "old" })).await;
    let mut app = writing(&database, Options::default(), &asker.clock).await;
    app.get(CURRENT, text(&made)).await;
    app.flush_last_used().await;
    let rows = async |table: &str| database.number(&format!("select count(*) from {table}")).await;
    let both = async || (rows("usage_by_hour").await, rows("usage_by_day").await);
    for (hours, expected) in [(47, (1, 1)), (1, (0, 1)), (24 * 397, (0, 1)), (48, (0, 0))] {
        app.clock.advance(Duration::from_secs(hours * 3_600));
        app.store.remove_usage(app.clock.now()).await.unwrap();
        assert_eq!(both().await, expected, "after {hours} hours more");
    }
    app.write_last_used();
    app.get(CURRENT, text(&made)).await;
    app.flush_last_used().await;
    assert_eq!(both().await, (1, 1));
    database.sql("delete from usage_by_hour where false; delete from api_keys where name = 'old'").await;
    assert_eq!(both().await, (0, 0));
}

async fn a_service_that_stops_in_order_loses_no_count(database: Database) {
    let key = accounts(&database, 1).await.remove(0);
    let mut service = Service::start(&unlimited(&database.url));
    let id = service.get(CURRENT, &key).await.body["data"]["key"].clone();
    let mut connection = Connection::open(&service.public).await.unwrap();
    for _ in 0..200 {
        assert_eq!(connection.send(request(Method::GET, CURRENT, &key)).await.unwrap().status, 200);
    }
    drop(connection);
    assert!(service.terminate().success());
    let service = Service::start(&unlimited(&database.url));
    let data = service.get(&usage_path(&id), &key).await.body["data"].clone();
    assert_eq!(data["total"], json!({ "allowed": 201, "refused": 0 }));
}
