//! Rotation: a key's new secret, and the old one that works beside it for a while.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::{Value, json};

use crate::support::{Database, Options, Reply, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    a_rotated_key_is_the_same_key_with_another_secret,
    the_old_secret_works_until_its_grace_ends_to_the_millisecond,
    the_last_use_of_each_secret_is_shown,
    a_key_has_two_secrets_at_the_most,
    what_a_rotation_must_not_say_is_refused_by_name,
    of_rotations_at_once_one_succeeds,
    a_secret_that_is_ended_at_once_opens_nothing_on_any_replica,
    nobody_is_shown_the_secret_of_a_key_that_may_do_more,
    both_secrets_count_against_the_same_limits,
);

const KEYS: &str = "/v1/api-keys";
const CURRENT: &str = "/v1/api-keys/current";

fn item(key: &Value) -> String {
    format!("{KEYS}/{}", key["keyId"].as_str().unwrap())
}

fn text(key: &Value) -> &str {
    key["apiKey"].as_str().unwrap()
}

async fn rotate(app: &TestApp, key: &str, target: &Value, body: &Value) -> Reply {
    app.post(&format!("{}/rotate", item(target)), key, body).await
}

async fn a_rotated_key_is_the_same_key_with_another_secret(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a", "expirationDays": 9, "permissions": ["domains:read"] })).await;
    let before = app.get(&item(&made), &key).await.body["data"].clone();
    app.clock.advance(Duration::from_secs(60));
    // Without a body, it is a day.
    let reply = app.send(request(Method::POST, &format!("{}/rotate", item(&made)), &key)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.body["meta"]["warning"], "This API key will only be shown once. Please store it securely.");
    let rotated = &reply.body["data"];
    for member in ["keyId", "name", "plan", "rateLimit", "expirationTs", "createdAt", "permissions"] {
        assert_eq!(rotated[member], made[member], "{member}");
    }
    assert_ne!(text(rotated), text(&made));
    assert_eq!(rotated["keyPrefix"], format!("{}****", &text(rotated)[..6]));
    let previous = json!({ "keyPrefix": made["keyPrefix"], "lastUsed": null, "retiresTs": "2024-01-16T12:31:00.000Z" });
    assert_eq!(rotated["previousSecret"], previous);

    let mut expected = before.clone();
    expected["keyPrefix"] = rotated["keyPrefix"].clone();
    expected["previousSecret"] = previous;
    let shown = app.get(&item(&made), &key).await;
    assert_eq!(shown.body["data"], expected);
    let list = app.get(KEYS, &key).await;
    assert_eq!((&list.body["data"][0], &list.body["meta"]["total"]), (&expected, &json!(2)), "it is one key");
    for reply in [&shown, &list] {
        let shown = String::from_utf8_lossy(&reply.bytes);
        assert!(!shown.contains(&text(rotated)[12..]) && !shown.contains(&text(&made)[12..]), "it shows a secret");
    }
    for secret in [text(&made), text(rotated)] {
        let current = app.get(CURRENT, secret).await;
        assert_eq!((current.status.as_u16(), &current.body["data"]["key"]["keyId"]), (200, &made["keyId"]));
    }
    assert_eq!(app.delete(&item(&made), &key).await.status, 200);
    for secret in [text(&made), text(rotated)] {
        assert_eq!(app.get(CURRENT, secret).await.status, 401, "both end with their key");
    }
    assert_eq!(rotate(&app, &key, &made, &json!({})).await.status, 404);
}

async fn the_old_secret_works_until_its_grace_ends_to_the_millisecond(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a" })).await;
    let rotated = rotate(&app, &key, &made, &json!({ "gracePeriodHours": 2 })).await;
    assert_eq!(rotated.body["data"]["previousSecret"]["retiresTs"], "2024-01-15T14:30:00.000Z");
    app.clock.advance(Duration::from_secs(7_200) - Duration::from_millis(1));
    assert_eq!(app.get(CURRENT, text(&made)).await.status, 200);
    app.clock.advance(Duration::from_millis(1));
    let retired = app.get(CURRENT, text(&made)).await;
    assert_eq!((retired.status.as_u16(), &retired.bytes), (401, &app.get(CURRENT, "mk_no").await.bytes));
    assert_eq!(app.get(CURRENT, text(&rotated.body["data"])).await.status, 200);
    assert_eq!(app.get(&item(&made), &key).await.body["data"]["previousSecret"], Value::Null);
}

async fn the_last_use_of_each_secret_is_shown(database: Database) {
    let mut app = TestApp::on(&database).await;
    app.write_last_used();
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a", "permissions": [] })).await;
    let seen = async |app: &TestApp| {
        let shown = app.get(&item(&made), &key).await.body["data"].clone();
        (shown["lastUsed"].clone(), shown["previousSecret"]["lastUsed"].clone())
    };
    let at = |second: u32| json!(format!("2024-01-15T12:30:{second:02}.000Z"));
    app.clock.advance(Duration::from_secs(1));
    app.get(CURRENT, text(&made)).await;
    let rotated = rotate(&app, &key, &made, &json!({})).await.body["data"].clone();
    assert_eq!(rotated["previousSecret"]["lastUsed"], at(1));
    assert_eq!(seen(&app).await, (at(1), at(1)), "the key's own last use is that of any of its secrets");
    app.clock.advance(Duration::from_secs(1));
    app.get(CURRENT, text(&rotated)).await;
    assert_eq!(seen(&app).await, (at(2), at(1)));
    app.clock.advance(Duration::from_secs(1));
    app.get(CURRENT, text(&made)).await;
    assert_eq!(seen(&app).await, (at(3), at(3)), "somebody still uses the old one");
    app.flush_last_used().await;
    let other = TestApp::at(&database, Options::default(), app.clock.clone()).await;
    assert_eq!(seen(&other).await, (at(3), at(3)), "the database says the same");
    app.patch(&item(&made), &key, &json!({ "retireNow": true })).await;
    assert_eq!(seen(&other).await, (at(3), Value::Null), "the key's last use stays");
    rotate(&app, &key, &made, &json!({})).await;
    assert_eq!(seen(&other).await, (at(3), at(2)), "that of a secret long gone is the key's as well");
}

async fn a_key_has_two_secrets_at_the_most(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a" })).await;
    let second = rotate(&app, &key, &made, &json!({ "gracePeriodHours": 1 })).await.body["data"].clone();
    for body in [json!({}), json!({ "gracePeriodHours": 0 })] {
        let refused = rotate(&app, &key, &made, &body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (409, "CONFLICT"));
        let details = json!({ "reason": "two_secrets", "retiresTs": "2024-01-15T13:30:00.000Z" });
        assert_eq!(refused.body["error"]["details"], details);
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("until 2024-01-15T13:30:00.000Z. End it first: PATCH the key with"), "{message}");
    }
    assert_eq!(app.get(CURRENT, text(&second)).await.status, 200, "a refused rotation changes nothing");

    let retired = app.patch(&item(&made), &key, &json!({ "retireNow": true })).await;
    assert_eq!((retired.status.as_u16(), &retired.body["data"]["previousSecret"]), (200, &Value::Null));
    assert_eq!(app.get(CURRENT, text(&made)).await.status, 401);
    assert_eq!(app.get(CURRENT, text(&second)).await.status, 200);
    // Saying it again, or without need, or with `false`, ends nothing.
    for word in [true, false] {
        assert_eq!(app.patch(&item(&made), &key, &json!({ "retireNow": word })).await.status, 200);
    }
    assert_eq!(app.get(CURRENT, text(&second)).await.status, 200);
    let third = rotate(&app, &key, &made, &json!({ "gracePeriodHours": 1 })).await.body["data"].clone();
    app.clock.advance(Duration::from_secs(3_600));
    let fourth = rotate(&app, &key, &made, &json!({ "gracePeriodHours": 168 })).await.body["data"].clone();
    let opens = join_all([&made, &second, &third, &fourth].map(|key| app.get(CURRENT, text(key)))).await;
    assert_eq!(opens.iter().map(|reply| reply.status.as_u16()).collect::<Vec<_>>(), [401, 401, 200, 200]);
}

/// A body, the name of what is wrong with it, and the words for it.
const REFUSED: [(&str, &str, &str); 9] = [
    ("", "body", "is not JSON: EOF while parsing a value at line 1 column 0"),
    ("[]", "body", "must be a JSON object of at most 32 members"),
    (r#"{"gracePeriodHours":-1}"#, "gracePeriodHours", "must be a whole number from 0 to 168"),
    (r#"{"gracePeriodHours":169}"#, "gracePeriodHours", "must be a whole number from 0 to 168"),
    (r#"{"gracePeriodHours":1.5}"#, "gracePeriodHours", "must be a whole number or null"),
    (r#"{"gracePeriodHours":"24"}"#, "gracePeriodHours", "must be a whole number or null"),
    (r#"{"gracePeriodHours":9223372036854775808}"#, "gracePeriodHours", "must be a whole number from 0 to 168"),
    (r#"{"graceperiodhours":1}"#, "graceperiodhours", "there is no such member"),
    (r#"{"retireNow":true}"#, "retireNow", "there is no such member"),
];

async fn what_a_rotation_must_not_say_is_refused_by_name(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a" })).await;
    let path = format!("{}/rotate", item(&made));
    for (body, field, problem) in REFUSED {
        let reply = app.send(json_request(Method::POST, &path, &key, body.to_owned())).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{body}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ field: problem }), "{body}");
    }
    let mut without_type = request(Method::POST, &path, &key);
    *without_type.body_mut() = "{}".into();
    assert_eq!(app.send(without_type).await.status, 415);
    assert_eq!(app.post(&format!("{path}?x"), &key, &json!({})).await.status, 400);
    let theirs = app.key().await;
    for nobody in [format!("{KEYS}/key_01hm5cqv1kf3w9zq2n8x7t4b6d/rotate"), format!("{KEYS}/nonsense/rotate")] {
        assert_eq!(app.post(&nobody, &key, &json!({})).await.status, 404, "{nobody}");
    }
    assert_eq!(app.post(&path, &theirs, &json!({})).await.status, 404, "another account's");
    assert_eq!(app.get(&path, &key).await.status, 405);
    assert_eq!(app.get(&item(&made), &key).await.body["data"]["previousSecret"], Value::Null, "nothing was rotated");
    for edge in [json!(168), json!(null)] {
        assert_eq!(rotate(&app, &key, &made, &json!({ "gracePeriodHours": edge })).await.status, 200);
        app.patch(&item(&made), &key, &json!({ "retireNow": true })).await;
    }
}

async fn of_rotations_at_once_one_succeeds(database: Database) {
    let replicas = [TestApp::on(&database).await, TestApp::on(&database).await];
    let key = replicas[0].key().await;
    for _ in 0..5 {
        let made = replicas[0].create(&key, json!({ "name": "wanted" })).await;
        let body = json!({ "gracePeriodHours": 1 });
        let replies = join_all((0..20).map(|n| rotate(&replicas[n % 2], &key, &made, &body))).await;
        let with = |status: u16| replies.iter().filter(|reply| reply.status == status).collect::<Vec<_>>();
        assert_eq!((with(200).len(), with(409).len()), (1, 19));
        assert_eq!(replicas[1].get(CURRENT, text(&with(200)[0].body["data"])).await.status, 200);
        assert_eq!(replicas[1].get(CURRENT, text(&made)).await.status, 200);
    }
    let more = "select count(*) from api_keys k
        where (select count(*) from key_secrets s where s.key_id = k.id and s.retires_at is null) <> 1";
    assert_eq!(database.number(more).await, 0);
}

async fn a_secret_that_is_ended_at_once_opens_nothing_on_any_replica(database: Database) {
    let replicas =
        [TestApp::with(&database, Options::cached()).await, TestApp::with(&database, Options::cached()).await];
    let deadline = Instant::now() + Duration::from_secs(30);
    while !replicas.iter().all(|replica| replica.app.auth.cache().unwrap().is_leased()) {
        assert!(Instant::now() < deadline, "no lease");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One that is behind the others by a minute must refuse it all the same.
    replicas[0].clock.advance(Duration::from_secs(60));
    let key = replicas[0].account(Plan::Enterprise).await.1;
    let mut current = replicas[0].create(&key, json!({ "name": "turning" })).await;
    for round in 0..6 {
        for replica in replicas.iter().chain(&replicas) {
            assert_eq!(replica.get(CURRENT, text(&current)).await.status, 200);
        }
        let hours = json!({ "gracePeriodHours": round % 2 });
        let next = rotate(&replicas[0], &key, &current, &hours).await.body["data"].clone();
        if round % 2 == 1 {
            for replica in &replicas {
                assert_eq!(replica.get(CURRENT, text(&current)).await.status, 200, "round {round}");
            }
            replicas[0].patch(&item(&current), &key, &json!({ "retireNow": true })).await;
        }
        for replica in replicas.iter().chain(&replicas) {
            assert_eq!(replica.get(CURRENT, text(&current)).await.status, 401, "round {round}");
            assert_eq!(replica.get(CURRENT, text(&next)).await.status, 200, "round {round}");
        }
        current = next;
    }
}

async fn nobody_is_shown_the_secret_of_a_key_that_may_do_more(database: Database) {
    let app = TestApp::on(&database).await;
    let first = app.key().await;
    let writer = app.create(&first, json!({ "name": "writer", "permissions": ["api-keys:write"] })).await;
    let more = app.create(&first, json!({ "name": "more", "permissions": ["domains:read"] })).await;
    let refused = rotate(&app, text(&writer), &more, &json!({})).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (403, "FORBIDDEN"));
    assert_eq!(refused.body["error"]["details"], json!({ "reason": "permission", "missing": ["domains:read"] }));
    let everything = app.create(&first, json!({ "name": "all" })).await;
    assert_eq!(rotate(&app, text(&writer), &everything, &json!({})).await.status, 403);
    assert_eq!(app.get(&item(&more), &first).await.body["data"]["previousSecret"], Value::Null);
    assert_eq!(rotate(&app, text(&writer), &writer, &json!({})).await.status, 200, "a key may rotate itself");
    // To end an old secret only takes away.
    assert_eq!(rotate(&app, &first, &more, &json!({})).await.status, 200);
    assert_eq!(app.patch(&item(&more), text(&writer), &json!({ "retireNow": true })).await.status, 200);
    assert_eq!(app.get(CURRENT, text(&more)).await.status, 401);
}

async fn both_secrets_count_against_the_same_limits(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let key = app.account(Plan::Free).await.1;
    let made = app.create(&key, json!({ "name": "a" })).await;
    assert_eq!(app.get(CURRENT, text(&made)).await.header("x-ratelimit-remaining"), "19");
    let rotated = rotate(&app, &key, &made, &json!({})).await.body["data"].clone();
    assert_eq!(app.get(CURRENT, text(&rotated)).await.header("x-ratelimit-remaining"), "18");
    assert_eq!(app.get(CURRENT, text(&made)).await.header("x-ratelimit-remaining"), "17");
}
