//! The record of changes: complete, with whose doing each was, and kept as it is.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use momail_api_keys::account::Plan;
use momail_api_keys::event::Origin;
use serde_json::{Value, json};

use crate::support::{Database, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    every_change_is_recorded_with_whose_doing_it_was,
    what_changes_nothing_is_not_recorded,
    a_change_that_cannot_be_recorded_is_not_made,
    events_are_kept_as_they_are_until_they_are_old,
    pages_of_events_follow_each_other_and_stay_in_their_account,
    the_operator_sees_every_accounts_events_and_is_named_in_them,
);

const KEYS: &str = "/v1/api-keys";
const EVENTS: &str = "/v1/api-keys/events";

fn item(key: &Value) -> String {
    format!("{KEYS}/{}", key["keyId"].as_str().unwrap())
}

async fn events(app: &TestApp, key: &str) -> Vec<Value> {
    let reply = app.get(EVENTS, key).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body["data"].as_array().unwrap().clone()
}

async fn every_change_is_recorded_with_whose_doing_it_was(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, key) = app.account(Plan::Pro).await;
    let own_id = app.get("/v1/api-keys/current", &key).await.body["data"]["key"]["keyId"].clone();
    let client: IpAddr = "203.0.113.5".parse().unwrap();
    let ask = async |id: &str, mut request: Request<Body>| {
        app.clock.advance(Duration::from_secs(1));
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        let reply = app.send_from(client, request).await;
        assert!(reply.status.is_success(), "{id} {reply:?}");
        reply.body["data"].clone()
    };
    let body = |method, path: &str, body: Value| json_request(method, path, &key, body.to_string());
    let made = ask("r-1", body(Method::POST, KEYS, json!({ "name": "a" }))).await;
    let path = item(&made);
    ask("r-2", body(Method::PATCH, &path, json!({ "name": "b", "enabled": false, "permissions": [] }))).await;
    ask("r-3", body(Method::POST, &format!("{path}/rotate"), json!({}))).await;
    ask("r-4", body(Method::PATCH, &path, json!({ "retireNow": true }))).await;
    ask("r-5", body(Method::PATCH, &path, json!({ "retireNow": true, "expirationDays": 5 }))).await;
    assert!(app.store.set_plan(account, Plan::Enterprise, app.clock.now(), Origin::operator()).await.unwrap());
    ask("r-6", request(Method::DELETE, &path, &key)).await;
    let second = ask("r-7", body(Method::POST, KEYS, json!({ "name": "c" }))).await;
    let second_key = second["apiKey"].as_str().unwrap();
    let gone = request(Method::DELETE, "/v1/api-keys/current", second_key);
    ask("r-8", gone).await;

    let (a, c) = (&made["keyId"], &second["keyId"]);
    let expected = [
        ("revoked", c, json!(null), c, "r-8", 8),
        ("created", c, json!(null), &own_id, "r-7", 7),
        ("revoked", a, json!(null), &own_id, "r-6", 6),
        ("plan_changed", &Value::Null, json!("enterprise"), &Value::Null, "", 5),
        ("retired", a, json!(null), &own_id, "r-5", 5),
        ("updated", a, json!("expirationDays"), &own_id, "r-5", 5),
        ("retired", a, json!(null), &own_id, "r-4", 4),
        ("rotated", a, json!(null), &own_id, "r-3", 3),
        ("updated", a, json!("name permissions enabled"), &own_id, "r-2", 2),
        ("created", a, json!(null), &own_id, "r-1", 1),
        ("created", &own_id, json!(null), &Value::Null, "", 0),
    ];
    let found = events(&app, &key).await;
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (event, of, detail, by, request_id, second)) in found.iter().zip(expected) {
        let (address, request_id) = if request_id.is_empty() {
            (Value::Null, Value::Null)
        } else {
            (json!(client.to_string()), json!(request_id))
        };
        let expected = json!({
            "eventId": found["eventId"], "event": event, "at": format!("2024-01-15T12:30:{second:02}.000Z"),
            "keyId": of, "detail": detail, "byKeyId": by, "address": address, "requestId": request_id,
        });
        assert_eq!(found, &expected);
    }
    let text = serde_json::to_string(&found).unwrap();
    assert!(!text.contains(&second_key[12..]) && !text.contains(&key[12..]), "it shows a secret");
}

async fn what_changes_nothing_is_not_recorded(database: Database) {
    let app = TestApp::on(&database).await;
    let (key, theirs) = (app.account(Plan::Pro).await.1, app.key().await);
    let few = app.create(&key, json!({ "name": "few", "permissions": ["api-keys:write"] })).await;
    let few_key = few["apiKey"].as_str().unwrap();
    let named = || {
        let mut request = json_request(Method::POST, KEYS, &key, json!({ "name": "once" }).to_string());
        request.headers_mut().insert("idempotency-key", "n".parse().unwrap());
        request
    };
    assert_eq!(app.send(named()).await.status, 201);
    app.post(&format!("{}/rotate", item(&few)), &key, &json!({ "gracePeriodHours": 1 })).await;
    let before = events(&app, &key).await;
    assert_eq!(before.len(), 4);

    assert_eq!(app.send(named()).await.status, 201, "a retry");
    let refused = [
        (403, app.post(KEYS, few_key, &json!({ "name": "a", "permissions": ["domains:read"] })).await),
        (400, app.post(KEYS, &key, &json!({ "name": "" })).await),
        (400, app.patch(&item(&few), &key, &json!({})).await),
        (404, app.patch(&item(&few), &theirs, &json!({ "name": "b" })).await),
        (404, app.delete(&item(&few), &theirs).await),
        (409, app.post(&format!("{}/rotate", item(&few)), &key, &json!({})).await),
        (404, app.post(&format!("{}/rotate", item(&few)), &theirs, &json!({})).await),
    ];
    for (status, reply) in refused {
        assert_eq!(reply.status, status, "{reply:?}");
    }
    assert_eq!(events(&app, &key).await, before);
    assert_eq!(app.delete(&item(&few), &key).await.status, 200);
    assert_eq!(app.delete(&item(&few), &key).await.status, 404);
    assert_eq!(events(&app, &key).await.len(), 5, "revoked once");
    let nobody = momail_api_keys::id::AccountId::new();
    assert!(!app.store.set_plan(nobody, Plan::Free, app.clock.now(), Origin::operator()).await.unwrap());
    assert_eq!(app.store.list_events(Some(nobody), None, 10).await.unwrap().len(), 0);
}

async fn a_change_that_cannot_be_recorded_is_not_made(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, key) = app.account(Plan::Pro).await;
    let made = app.create(&key, json!({ "name": "stays" })).await;
    let before = app.get(KEYS, &key).await;
    database.sql("alter table events rename to elsewhere").await;
    assert_eq!(app.post(KEYS, &key, &json!({ "name": "a" })).await.status, 500);
    assert_eq!(app.patch(&item(&made), &key, &json!({ "name": "b" })).await.status, 500);
    assert_eq!(app.post(&format!("{}/rotate", item(&made)), &key, &json!({})).await.status, 500);
    assert_eq!(app.delete(&item(&made), &key).await.status, 500);
    assert!(app.store.set_plan(account, Plan::Free, app.clock.now(), Origin::operator()).await.is_err());
    assert_eq!(app.get(KEYS, &key).await.bytes, before.bytes, "nothing was changed");
}

async fn events_are_kept_as_they_are_until_they_are_old(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    for n in 0..4 {
        app.clock.advance(Duration::from_secs(60));
        app.create(&key, json!({ "name": format!("{n}") })).await;
    }
    let before = events(&app, &key).await;
    for sql in
        ["update events set event = 'nothing'", "delete from events", "delete from events where event = 'created'"]
    {
        let complaint = database.refused(sql).await;
        assert!(complaint.contains("events are kept as they are"), "{sql}: {complaint}");
    }
    assert_eq!(events(&app, &key).await, before);

    let cutoff = app.clock.now() - Duration::from_secs(60);
    assert_eq!(app.store.remove_events(cutoff).await.unwrap(), 3);
    assert_eq!(events(&app, &key).await, before[..2]);
    // Allowing less later takes nothing back, and removes nothing more.
    assert_eq!(app.store.remove_events(cutoff - Duration::from_secs(600)).await.unwrap(), 0);
    assert!(database.refused("delete from events").await.contains("events are kept as they are"));
}

async fn pages_of_events_follow_each_other_and_stay_in_their_account(database: Database) {
    let app = TestApp::on(&database).await;
    let (key, theirs) = (app.account(Plan::Enterprise).await.1, app.key().await);
    for n in 0..6 {
        app.create(&key, json!({ "name": format!("{n}") })).await;
        app.create(&theirs, json!({ "name": format!("{n}") })).await;
    }
    let all = events(&app, &key).await;
    assert_eq!(all.len(), 7);
    let mut collected: Vec<Value> = Vec::new();
    for (number, has_more) in [(3, true), (3, true), (1, false)] {
        let before = collected.last().map(|event| format!("&before={}", event["eventId"])).unwrap_or_default();
        let page = app.get(&format!("{EVENTS}?limit=3{before}"), &key).await;
        assert_eq!(page.body["meta"], json!({ "limit": 3, "hasMore": has_more }));
        let events = page.body["data"].as_array().unwrap().clone();
        assert_eq!(events.len(), number);
        collected.extend(events);
    }
    assert_eq!(collected, all);
    let of_theirs = events(&app, &theirs).await;
    assert!(of_theirs.len() == 7 && of_theirs.iter().all(|event| !all.contains(event)));
    for (query, field, problem) in [
        ("limit=0", "limit", "must be a whole number from 1 to 100"),
        ("limit=101", "limit", "must be a whole number from 1 to 100"),
        ("before=0", "before", "must be an eventId"),
        ("before=x", "before", "must be an eventId"),
        ("offset=1", "offset", "there is no such parameter"),
    ] {
        let reply = app.get(&format!("{EVENTS}?{query}"), &key).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{query}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ field: problem }), "{query}");
    }
}

async fn the_operator_sees_every_accounts_events_and_is_named_in_them(database: Database) {
    let database = if database.is_postgres() { Database::empty_postgres().await } else { database };
    assert_eq!(database.operate(&["events"]).done(), "nothing was changed yet\n");
    assert_eq!(database.operate(&["events", "--json"]).done(), "[]\n");
    let shop = database.operate(&["accounts", "create", "--name", "shop", "--json"]).json();
    let other = database.operate(&["accounts", "create", "--name", "other", "--json"]).json();
    let id = shop["key"]["keyId"].as_str().unwrap();
    database.operate(&["keys", "disable", id]).done();
    database.operate(&["keys", "rotate", id]).done();
    database.operate(&["accounts", "set-plan", "shop", "pro"]).done();
    database.operate(&["keys", "revoke", id]).done();
    let all = database.operate(&["events", "--json"]).json();
    let told: Vec<_> = all.as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(told, ["revoked", "plan_changed", "rotated", "updated", "created", "created"]);
    assert_eq!(all[4]["accountId"], other["accountId"]);
    let of_shop = database.operate(&["events", "--account", "shop", "--limit", "3", "--json"]).json();
    assert_eq!(of_shop, json!(all.as_array().unwrap()[..3]));
    assert!(all.as_array().unwrap().iter().all(|event| event["byKeyId"].is_null() && event["address"].is_null()));

    let table = database.operate(&["events", "--account", "shop"]).done();
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["AT", "ACCOUNT", "KEY", "BY", "FROM", "EVENT"]);
    assert_eq!(rows[2][1..], [shop["accountId"].as_str().unwrap(), "-", "operator", "-", "plan_changed:", "pro"]);
    assert_eq!(rows[4][2..], [id, "operator", "-", "updated:", "enabled"]);
}
