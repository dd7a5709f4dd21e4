//! The page's three endpoints: what they show, to whom, and what they refuse.

use std::time::Duration;

use axum::http::Method;
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::{Value, json};

use crate::support::{Database, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    a_new_key_is_shown_once_and_opens_at_once,
    the_list_shows_exactly_the_pages_members_newest_first,
    a_key_expires_to_the_millisecond,
    a_revoked_key_opens_nothing_and_a_second_delete_finds_nothing,
    a_key_may_revoke_itself,
    of_fifty_deletes_at_once_one_succeeds,
    of_fifty_creates_at_the_limit_the_free_places_are_filled,
    another_accounts_key_is_not_found_and_stays_alive,
    lists_of_three_accounts_never_mix,
    names_come_back_as_they_were_given,
    what_a_body_must_not_say_is_refused_by_name,
    an_id_in_any_other_form_is_not_found,
    head_answers_like_get_and_costs_the_same,
);

const KEYS: &str = "/v1/api-keys";

fn item(key: &Value) -> String {
    format!("{KEYS}/{}", key["keyId"].as_str().unwrap())
}

fn members(object: &[u8], after: &str) -> Vec<String> {
    // serde_json's map would sort them.
    let text = std::str::from_utf8(object).unwrap();
    let text = &text[text.find(after).unwrap() + after.len()..];
    let text = &text[..text.find('}').unwrap()];
    // The items of a list are no members.
    let members = text.split(",\"").filter(|member| member.contains("\":"));
    members.map(|member| member.trim_matches(['{', '"', '[']).split('"').next().unwrap().to_owned()).collect()
}

async fn a_new_key_is_shown_once_and_opens_at_once(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Free).await.1;
    let reply = app.post(KEYS, &key, &json!({ "name": "Production API", "expirationDays": 365 })).await;

    assert_eq!(reply.status, 201);
    let expected =
        ["keyId", "name", "apiKey", "keyPrefix", "plan", "rateLimit", "expirationTs", "createdAt", "permissions"];
    assert_eq!(members(&reply.bytes, "\"data\":"), expected);
    let data = &reply.body["data"];
    assert_eq!(reply.header("location"), item(data));
    assert_eq!(reply.body["meta"]["warning"], "This API key will only be shown once. Please store it securely.");
    assert_eq!(data["createdAt"], "2024-01-15T12:30:00.000Z");
    assert_eq!(data["expirationTs"], "2025-01-14T12:30:00.000Z");
    assert_eq!(data["plan"], "free");
    let text = data["apiKey"].as_str().unwrap();
    assert_eq!(data["keyPrefix"], format!("{}****", &text[..6]));

    let list = app.get(KEYS, text).await;
    assert_eq!(list.status, 200);
    assert!(!String::from_utf8_lossy(&list.bytes).contains(&text[12..]), "the list shows the secret");
}

async fn the_list_shows_exactly_the_pages_members_newest_first(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    app.clock.advance(Duration::from_secs(1));
    for name in ["second", "third"] {
        app.create(&key, json!({ "name": name })).await;
    }
    let reply = app.get(KEYS, &key).await;
    let expected = [
        "keyId",
        "name",
        "keyPrefix",
        "plan",
        "rateLimit",
        "lastUsed",
        "createdAt",
        "expirationTs",
        "permissions",
        "enabled",
        "status",
        "previousSecret",
    ];
    assert_eq!(members(&reply.bytes, "\"data\":"), expected);
    assert_eq!(reply.body["meta"], json!({ "total": 3 }));
    let names: Vec<_> = reply.body["data"].as_array().unwrap().iter().map(|key| key["name"].clone()).collect();
    assert_eq!(names, ["third", "second", "first key"]);
    let [third, .., first] = reply.body["data"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!((&third["lastUsed"], &third["expirationTs"]), (&Value::Null, &Value::Null));
    assert_eq!(first["lastUsed"], "2024-01-15T12:30:01.000Z");
    assert_eq!((&first["plan"], &first["rateLimit"]), (&json!("pro"), &json!(100_000)));
}

async fn a_key_expires_to_the_millisecond(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    app.clock.advance(Duration::from_micros(123_456));
    let made = app.create(&key, json!({ "name": "short", "expirationDays": 1 })).await;
    assert_eq!(made["expirationTs"], "2024-01-16T12:30:00.123Z");
    let short = made["apiKey"].as_str().unwrap();

    app.clock.advance(Duration::from_secs(86_400) - Duration::from_micros(456) - Duration::from_millis(1));
    assert_eq!(app.get(KEYS, short).await.status, 200);
    app.clock.advance(Duration::from_millis(1));
    let reply = app.get(KEYS, short).await;
    assert_eq!((reply.status.as_u16(), reply.code()), (401, "UNAUTHORIZED"));
    assert_eq!(reply.body["error"]["message"], "The API key expired at 2024-01-16T12:30:00.123Z.");
    assert_eq!(reply.header("www-authenticate"), "ApiKey realm=\"momail\"");

    let list = app.get(KEYS, &key).await;
    assert_eq!(list.body["meta"]["total"], 2, "an expired key stays in the list");
    assert_eq!(app.delete(&item(&made), &key).await.status, 200);
}

async fn a_revoked_key_opens_nothing_and_a_second_delete_finds_nothing(database: Database) {
    let app = TestApp::on(&database).await;
    let replica = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "doomed" })).await;
    let text = made["apiKey"].as_str().unwrap();
    assert_eq!(replica.get(KEYS, text).await.status, 200);

    let reply = app.delete(&item(&made), &key).await;
    assert_eq!(reply.status, 200);
    let expected = format!(r#"{{"success":true,"data":{{"keyId":{},"revoked":true}}}}"#, made["keyId"]);
    assert_eq!(String::from_utf8(reply.bytes).unwrap(), expected);
    assert_eq!(app.get(KEYS, text).await.status, 401);
    assert_eq!(replica.get(KEYS, text).await.status, 401);
    assert_eq!(app.delete(&item(&made), &key).await.status, 404);
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1);
}

async fn a_key_may_revoke_itself(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let list = app.get(KEYS, &key).await;
    assert_eq!(app.delete(&item(&list.body["data"][0]), &key).await.status, 200);
    assert_eq!(app.get(KEYS, &key).await.status, 401);
}

async fn of_fifty_deletes_at_once_one_succeeds(database: Database) {
    let replicas = [TestApp::on(&database).await, TestApp::on(&database).await, TestApp::on(&database).await];
    let key = replicas[0].key().await;
    let made = replicas[0].create(&key, json!({ "name": "popular" })).await;
    let path = item(&made);
    let deletes = (0..50).map(|n| replicas[n % 3].delete(&path, &key));
    let replies = join_all(deletes).await;
    let with = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((with(200), with(404)), (1, 49));
}

async fn of_fifty_creates_at_the_limit_the_free_places_are_filled(database: Database) {
    let replicas = [TestApp::on(&database).await, TestApp::on(&database).await, TestApp::on(&database).await];
    let key = replicas[0].account(Plan::Free).await.1;
    for _ in 0..20 {
        replicas[0].create(&key, json!({ "name": "one of many" })).await;
    }
    let body = json!({ "name": "crowd" });
    let creates = (0..50).map(|n| replicas[n % 3].post(KEYS, &key, &body));
    let replies = join_all(creates).await;
    let with = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((with(201), with(403)), (4, 46), "21 of 25 places were taken");
    let refused = replies.iter().find(|reply| reply.status == 403).unwrap();
    assert_eq!(refused.body["error"]["details"], json!({ "reason": "max_keys", "limit": 25 }));

    // A place that is given back can be filled again.
    let list = replicas[0].get(KEYS, &key).await;
    assert_eq!(list.body["meta"]["total"], 25);
    assert_eq!(replicas[0].delete(&item(&list.body["data"][0]), &key).await.status, 200);
    assert_eq!(replicas[0].post(KEYS, &key, &body).await.status, 201);
    assert_eq!(replicas[0].post(KEYS, &key, &body).await.status, 403);
}

async fn another_accounts_key_is_not_found_and_stays_alive(database: Database) {
    let app = TestApp::on(&database).await;
    let (ours, theirs) = (app.key().await, app.key().await);
    let made = app.create(&theirs, json!({ "name": "not yours" })).await;
    let foreign = app.delete(&item(&made), &ours).await;
    let unknown = app.delete(&format!("{KEYS}/key_01hm5cqv1kf3w9zq2n8x7t4b6d"), &ours).await;
    assert_eq!(foreign.status, 404);
    assert_eq!(foreign.bytes, unknown.bytes);
    let names = |reply: &crate::support::Reply| reply.headers.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&foreign), names(&unknown));
    assert_eq!(app.get(KEYS, made["apiKey"].as_str().unwrap()).await.status, 200);
    assert_eq!(app.get(KEYS, &theirs).await.body["meta"]["total"], 2);
}

async fn lists_of_three_accounts_never_mix(database: Database) {
    let app = TestApp::on(&database).await;
    let mut keys = Vec::new();
    for account in 0..3 {
        let key = app.account(Plan::Enterprise).await.1;
        for n in 0..100 {
            app.create(&key, json!({ "name": format!("{account}/{n}") })).await;
        }
        keys.push(key);
    }
    for (account, key) in keys.iter().enumerate() {
        let list = app.get(KEYS, key).await;
        let keys = list.body["data"].as_array().unwrap();
        assert_eq!((keys.len(), &list.body["meta"]["total"]), (101, &json!(101)));
        let own = format!("{account}/");
        assert!(keys[..100].iter().all(|key| key["name"].as_str().unwrap().starts_with(&own)));
    }
}

async fn names_come_back_as_they_were_given(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Enterprise).await.1;
    let longest = "𝄞".repeat(100);
    let names = [
        "🔑 café e\u{301}",
        "مفتاح",
        "\u{ffff}",
        "a\u{202e}b",
        longest.as_str(),
        "'; DROP TABLE api_keys; --",
        "%s %n",
        "<img src=x onerror=alert(1)>",
        "\\r\\n{\"level\":\"fatal\"}",
        "{{7*7}}",
        "null",
    ];
    for name in names {
        let made = app.create(&key, json!({ "name": format!("  {name} ") })).await;
        assert_eq!(made["name"], name, "trimmed, and nothing else");
    }
    let list = app.get(KEYS, &key).await;
    let listed: Vec<_> =
        list.body["data"].as_array().unwrap().iter().rev().skip(1).map(|key| key["name"].clone()).collect();
    assert_eq!(listed, names);
}

/// A body, the name of what is wrong with it, and the words for it.
const REFUSED_BODIES: [(&str, &str, &str); 31] = [
    ("", "body", "is not JSON: EOF while parsing a value at line 1 column 0"),
    ("{", "body", "is not JSON: EOF while parsing an object at line 1 column 1"),
    (r#"{"name":"a"} x"#, "body", "is not JSON: trailing characters at line 1 column 14"),
    ("\u{feff}{}", "body", "is not JSON: expected value at line 1 column 1"),
    (r#"{"name":"\ud800"}"#, "body", "is not JSON: unexpected end of hex escape at line 1 column 16"),
    ("[]", "body", "must be a JSON object of at most 32 members"),
    ("null", "body", "must be a JSON object of at most 32 members"),
    (r#""text""#, "body", "must be a JSON object of at most 32 members"),
    ("{}", "name", "is required"),
    (r#"{"name":null}"#, "name", "must be a text"),
    (r#"{"name":5}"#, "name", "must be a text"),
    (r#"{"name":["a"]}"#, "name", "must be a text"),
    (r#"{"name":""}"#, "name", "must not be empty"),
    (r#"{"name":"   "}"#, "name", "must not be empty"),
    (r#"{"name":"a\u0000b"}"#, "name", "must not contain control characters"),
    (r#"{"name":"a\nb"}"#, "name", "must not contain control characters"),
    (r#"{"name":"a","name":"b"}"#, "name", "is there twice"),
    (r#"{"name":"a","expirationDays":0}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"name":"a","expirationDays":366}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"name":"a","expirationDays":-1}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"name":"a","expirationDays":9223372036854775808}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"name":"a","expirationDays":-9223372036854775808}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"name":"a","expirationDays":1.0}"#, "expirationDays", "must be a whole number or null"),
    (r#"{"name":"a","expirationDays":1e2}"#, "expirationDays", "must be a whole number or null"),
    (r#"{"name":"a","expirationDays":-0}"#, "expirationDays", "must be a whole number or null"),
    (r#"{"name":"a","expirationDays":"5"}"#, "expirationDays", "must be a whole number or null"),
    (r#"{"name":"a","expirationDays":true}"#, "expirationDays", "must be a whole number or null"),
    (r#"{"name":"a","expirationDays":1e400}"#, "body", "is not JSON: number out of range at line 1 column 34"),
    (r#"{"name":"a","expirationDays":NaN}"#, "body", "is not JSON: expected value at line 1 column 30"),
    (r#"{"name":"a","expirationdays":5}"#, "expirationdays", "there is no such member"),
    (r#"{"name":"a","plan":"enterprise"}"#, "plan", "there is no such member"),
];

async fn what_a_body_must_not_say_is_refused_by_name(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Enterprise).await.1;
    let long = format!(r#"{{"name":"{}"}}"#, "a".repeat(101));
    let long = (long.as_str(), "name", "must have at most 100 characters");
    for (body, field, problem) in REFUSED_BODIES.into_iter().chain([long]) {
        let reply = app.send(json_request(Method::POST, KEYS, &key, body.to_owned())).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{body}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ field: problem }), "{body}");
    }
    for member in
        ["id", "owner", "accountId", "hash", "createdAt", "revokedAt", "role", "scopes", "apiKey", "rateLimit"]
    {
        let reply = app.post(KEYS, &key, &json!({ "name": "a", member: 1 })).await;
        assert_eq!(reply.status, 400, "{member}");
    }
    let bytes = [b"{\"name\":\"".as_slice(), &[0xff, 0xc0, 0x80], b"\"}"].concat();
    assert_eq!(app.send(json_request(Method::POST, KEYS, &key, bytes)).await.status, 400);
    let deep = "[".repeat(60_000);
    assert_eq!(app.send(json_request(Method::POST, KEYS, &key, deep)).await.status, 400);
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1, "nothing was made");

    // The edges themselves are inside.
    app.create(&key, json!({ "name": "𝄞".repeat(100), "expirationDays": 1 })).await;
    app.create(&key, json!({ "name": "a", "expirationDays": null })).await;
}

async fn an_id_in_any_other_form_is_not_found(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "by uuid" })).await;
    let id = made["keyId"].as_str().unwrap();
    for wrong in ["key_abc123", "%00", "..%2f", "0", &id.to_uppercase(), &id[4..], "'or'1'='1", "key_%C3%28"] {
        let reply = app.delete(&format!("{KEYS}/{wrong}"), &key).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "NOT_FOUND"), "{wrong}");
    }
    let uuid = momail_api_keys::id::KeyId::parse(id).unwrap().0;
    let reply = app.delete(&format!("{KEYS}/{uuid}"), &key).await;
    assert_eq!((reply.status.as_u16(), &reply.body["data"]["keyId"]), (200, &json!(id)));
}

async fn head_answers_like_get_and_costs_the_same(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let get = app.get(KEYS, &key).await;
    let head = app.send(request(Method::HEAD, KEYS, &key)).await;
    assert_eq!((head.status.as_u16(), head.bytes.len()), (200, 0));
    assert_eq!(head.header("content-type"), "application/json");
    let left = |reply: &crate::support::Reply| reply.header("x-ratelimit-remaining").parse::<u32>().unwrap();
    assert_eq!(left(&head), left(&get) - 1);
}
