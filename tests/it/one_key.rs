//! One key: shown, changed, switched off and on again; and the key that asks about itself.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join;
use momail_api_keys::account::Plan;
use serde_json::{Value, json};

use crate::support::{Database, Options, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    a_key_is_shown_as_the_list_shows_it,
    an_edit_changes_what_it_says_and_nothing_else,
    what_an_edit_must_not_say_is_refused_by_name,
    a_lifetime_is_counted_from_the_edit_and_brings_an_expired_key_back,
    a_disabled_key_is_refused_like_a_revoked_one_and_can_come_back,
    another_accounts_key_cannot_be_seen_or_changed,
    no_key_gives_more_than_it_has,
    edits_at_once_lose_nothing_of_each_other,
    what_an_edit_takes_away_is_gone_on_every_replica_once_it_is_answered,
    a_key_is_told_whose_it_is_and_how_far_it_may_go,
    a_key_without_any_permission_may_ask_about_itself_and_revoke_itself,
);

const KEYS: &str = "/v1/api-keys";
const CURRENT: &str = "/v1/api-keys/current";

fn item(key: &Value) -> String {
    format!("{KEYS}/{}", key["keyId"].as_str().unwrap())
}

fn text(key: &Value) -> &str {
    key["apiKey"].as_str().unwrap()
}

async fn a_key_is_shown_as_the_list_shows_it(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "seen", "expirationDays": 1, "permissions": ["domains:read"] })).await;
    app.internal_send(request(Method::GET, "/forward-auth", text(&made))).await;
    app.clock.advance(Duration::from_secs(1));
    let list = app.get(KEYS, &key).await;
    let shown = app.get(&item(&made), &key).await;
    assert_eq!((shown.status.as_u16(), &shown.body["data"]), (200, &list.body["data"][0]));
    assert_eq!(shown.body["data"]["lastUsed"], "2024-01-15T12:30:00.000Z");
    assert_eq!((&shown.body["data"]["enabled"], &shown.body["data"]["status"]), (&json!(true), &json!("active")));
    let uuid = momail_api_keys::id::KeyId::parse(made["keyId"].as_str().unwrap()).unwrap().0;
    assert_eq!(app.get(&format!("{KEYS}/{uuid}"), &key).await.bytes, shown.bytes);

    app.clock.advance(Duration::from_secs(86_400));
    assert_eq!(app.get(&item(&made), &key).await.body["data"]["status"], "expired");
    app.delete(&item(&made), &key).await;
    let revoked = app.get(&item(&made), &key).await;
    let unknown = app.get(&format!("{KEYS}/key_01hm5cqv1kf3w9zq2n8x7t4b6d"), &key).await;
    assert_eq!((revoked.status.as_u16(), &revoked.bytes), (404, &unknown.bytes));
    assert_eq!(app.get(&format!("{}?x=1", item(&made)), &key).await.status, 400);
}

async fn an_edit_changes_what_it_says_and_nothing_else(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a", "expirationDays": 5, "permissions": ["domains:read"] })).await;
    let mut expected = app.get(&item(&made), &key).await.body["data"].clone();
    let everything = app.get(CURRENT, &key).await.body["data"]["key"]["permissions"].clone();
    let edits = [
        (json!({ "name": "  b " }), json!({ "name": "b" })),
        (
            json!({ "permissions": ["emails:read", "domains:read"] }),
            json!({ "permissions": ["domains:read", "emails:read"] }),
        ),
        (json!({ "permissions": [] }), json!({ "permissions": [] })),
        (json!({ "permissions": null }), json!({ "permissions": everything })),
        (json!({ "expirationDays": 1 }), json!({ "expirationTs": "2024-01-16T12:30:00.000Z" })),
        (json!({ "expirationDays": null }), json!({ "expirationTs": null })),
        (json!({ "enabled": false }), json!({ "enabled": false, "status": "disabled" })),
        (json!({ "enabled": false }), json!({})),
        (json!({ "enabled": true, "name": "c" }), json!({ "enabled": true, "status": "active", "name": "c" })),
    ];
    for (edit, change) in edits {
        let reply = app.patch(&item(&made), &key, &edit).await;
        for (member, value) in change.as_object().unwrap() {
            expected[member] = value.clone();
        }
        assert_eq!((reply.status.as_u16(), &reply.body["data"]), (200, &expected), "{edit}");
        assert_eq!(app.get(&item(&made), &key).await.body["data"], expected, "{edit}");
    }
}

/// A body, the name of what is wrong with it, and the words for it.
const REFUSED: [(&str, &str, &str); 17] = [
    ("", "body", "is not JSON: EOF while parsing a value at line 1 column 0"),
    ("[]", "body", "must be a JSON object of at most 32 members"),
    ("{}", "body", "must say what to change: name, permissions, expirationDays, enabled or retireNow"),
    (r#"{"name":null}"#, "name", "must be a text"),
    (r#"{"name":1}"#, "name", "must be a text"),
    (r#"{"name":" "}"#, "name", "must not be empty"),
    (r#"{"name":"a\nb"}"#, "name", "must not contain control characters"),
    (r#"{"expirationDays":0}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"expirationDays":366}"#, "expirationDays", "must be a whole number from 1 to 365"),
    (r#"{"expirationDays":"5"}"#, "expirationDays", "must be a whole number or null"),
    (r#"{"enabled":null}"#, "enabled", "must be true or false"),
    (r#"{"enabled":"true"}"#, "enabled", "must be true or false"),
    (r#"{"enabled":1}"#, "enabled", "must be true or false"),
    (r#"{"retireNow":null}"#, "retireNow", "must be true or false"),
    (r#"{"permissions":"api-keys:read"}"#, "permissions", "must be a list of permissions or null"),
    (r#"{"plan":"enterprise"}"#, "plan", "there is no such member"),
    (r#"{"enabled":false,"enabled":true}"#, "enabled", "is there twice"),
];

async fn what_an_edit_must_not_say_is_refused_by_name(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "stays" })).await;
    let before = app.get(&item(&made), &key).await;
    for (body, field, problem) in REFUSED {
        let reply = app.send(json_request(Method::PATCH, &item(&made), &key, body.to_owned())).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{body}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ field: problem }), "{body}");
    }
    let two = app.patch(&item(&made), &key, &json!({ "name": "b", "enabled": 5, "status": "active" })).await;
    let fields = json!({ "enabled": "must be true or false", "status": "there is no such member" });
    assert_eq!(two.body["error"]["details"]["fields"], fields);
    assert_eq!(app.send(request(Method::PATCH, &item(&made), &key)).await.status, 415);
    assert_eq!(app.patch(CURRENT, &key, &json!({ "name": "b" })).await.status, 405);
    assert_eq!(app.get(&item(&made), &key).await.bytes, before.bytes);
    for nobody in ["key_01hm5cqv1kf3w9zq2n8x7t4b6d", "nonsense"] {
        let reply = app.patch(&format!("{KEYS}/{nobody}"), &key, &json!({ "name": "b" })).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "NOT_FOUND"));
    }
}

async fn a_lifetime_is_counted_from_the_edit_and_brings_an_expired_key_back(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "short", "expirationDays": 1 })).await;
    app.clock.advance(Duration::from_secs(2 * 86_400));
    assert_eq!(app.get(CURRENT, text(&made)).await.status, 401);
    let reply = app.patch(&item(&made), &key, &json!({ "expirationDays": 1 })).await;
    assert_eq!(reply.body["data"]["expirationTs"], "2024-01-18T12:30:00.000Z");
    app.clock.advance(Duration::from_secs(86_400) - Duration::from_millis(1));
    assert_eq!(app.get(CURRENT, text(&made)).await.status, 200);
    app.clock.advance(Duration::from_millis(1));
    assert_eq!(app.get(CURRENT, text(&made)).await.status, 401);
}

async fn a_disabled_key_is_refused_like_a_revoked_one_and_can_come_back(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let [off, gone] = ["off", "gone"].map(|name| app.create(&key, json!({ "name": name })));
    let (off, gone) = join(off, gone).await;
    assert_eq!(app.delete(&item(&gone), &key).await.status, 200);
    let of_revoked = app.get(KEYS, text(&gone)).await;
    for _ in 0..2 {
        assert_eq!(app.patch(&item(&off), &key, &json!({ "enabled": false })).await.status, 200);
        let of_disabled = app.get(KEYS, text(&off)).await;
        assert_eq!((of_disabled.status.as_u16(), &of_disabled.bytes), (401, &of_revoked.bytes));
        assert_eq!(app.internal_send(request(Method::GET, "/forward-auth", text(&off))).await.status, 401);
        assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 2, "it keeps its place");
        assert_eq!(app.patch(&item(&off), &key, &json!({ "enabled": true })).await.status, 200);
        assert_eq!(app.get(KEYS, text(&off)).await.status, 200);
    }
    assert_eq!(app.patch(&item(&gone), &key, &json!({ "enabled": true })).await.status, 404);
    assert_eq!(app.get(KEYS, text(&gone)).await.status, 401);
    // A disabled key can be revoked, and a key may disable itself.
    assert_eq!(app.patch(&item(&off), text(&off), &json!({ "enabled": false })).await.status, 200);
    assert_eq!(app.get(KEYS, text(&off)).await.status, 401);
    assert_eq!(app.delete(&item(&off), &key).await.status, 200);
}

async fn another_accounts_key_cannot_be_seen_or_changed(database: Database) {
    let app = TestApp::on(&database).await;
    let (ours, theirs) = (app.key().await, app.key().await);
    let made = app.create(&theirs, json!({ "name": "not yours" })).await;
    let before = app.get(&item(&made), &theirs).await;
    for edit in [json!({ "name": "mine" }), json!({ "enabled": false }), json!({ "permissions": [] })] {
        let foreign = app.patch(&item(&made), &ours, &edit).await;
        let unknown = app.patch(&format!("{KEYS}/key_01hm5cqv1kf3w9zq2n8x7t4b6d"), &ours, &edit).await;
        assert_eq!((foreign.status.as_u16(), &foreign.bytes), (404, &unknown.bytes));
    }
    assert_eq!(app.get(&item(&made), &ours).await.status, 404);
    assert_eq!(app.get(&item(&made), &theirs).await.bytes, before.bytes);
}

async fn no_key_gives_more_than_it_has(database: Database) {
    let app = TestApp::on(&database).await;
    let first = app.key().await;
    let editor =
        app.create(&first, json!({ "name": "editor", "permissions": ["api-keys:write", "domains:read"] })).await;
    let of =
        async |permissions: Value| app.create(&first, json!({ "name": "edited", "permissions": permissions })).await;
    let more = of(json!(["domains:read", "emails:read"])).await;
    let less = of(json!(["domains:read"])).await;
    let all = of(Value::Null).await;
    let too_much = [json!(["domains:write"]), json!(["domains:read", "api-keys:read"])];
    for target in [&less, &more, &editor] {
        for permissions in &too_much {
            let refused = app.patch(&item(target), text(&editor), &json!({ "permissions": permissions })).await;
            assert_eq!((refused.status.as_u16(), refused.code()), (403, "FORBIDDEN"), "{permissions}");
            assert_eq!(refused.body["error"]["details"]["reason"], "permission");
        }
    }
    // Towards a key that has more than itself, it may do only what takes away.
    for (target, missing) in [(&more, json!(["emails:read"])), (&all, Value::Null)] {
        for edit in [
            json!({ "permissions": ["domains:read"] }),
            json!({ "permissions": null }),
            json!({ "enabled": true }),
            json!({ "expirationDays": 1 }),
            json!({ "expirationDays": null }),
            json!({ "name": "b", "enabled": true }),
        ] {
            let refused = app.patch(&item(target), text(&editor), &edit).await;
            assert_eq!((refused.status.as_u16(), refused.code()), (403, "FORBIDDEN"), "{edit}");
            if !missing.is_null() {
                assert_eq!(refused.body["error"]["details"]["missing"], missing, "{edit}");
            }
        }
        assert_eq!(app.get(&item(target), &first).await.body["data"]["name"], "edited", "nothing was changed");
        for edit in [json!({ "name": "renamed" }), json!({ "enabled": false })] {
            assert_eq!(app.patch(&item(target), text(&editor), &edit).await.status, 200, "{edit}");
        }
        assert_eq!(app.patch(&item(target), text(&editor), &json!({ "enabled": true })).await.status, 403);
        assert_eq!(app.delete(&item(target), text(&editor)).await.status, 200);
    }
    // Towards one that has as much or less, it may do everything.
    let all = json!({ "permissions": null, "expirationDays": null, "enabled": true });
    let widened = app.patch(&item(&less), text(&editor), &all).await;
    assert_eq!(widened.body["data"]["permissions"], json!(["api-keys:write", "domains:read"]));
    // What it gives away of its own, it cannot take back.
    let own = json!({ "permissions": ["api-keys:write"] });
    assert_eq!(app.patch(&item(&editor), text(&editor), &own).await.status, 200);
    let back = json!({ "permissions": ["api-keys:write", "domains:read"] });
    assert_eq!(app.patch(&item(&editor), text(&editor), &back).await.status, 403);
}

async fn edits_at_once_lose_nothing_of_each_other(database: Database) {
    let (one, other) = (TestApp::on(&database).await, TestApp::on(&database).await);
    let key = one.key().await;
    let made = one.create(&key, json!({ "name": "busy" })).await;
    let path = item(&made);
    for round in 1..30 {
        let (name, days) = (json!({ "name": format!("{round}") }), json!({ "expirationDays": round }));
        let (named, dated) = join(one.patch(&path, &key, &name), other.patch(&path, &key, &days)).await;
        assert_eq!((named.status.as_u16(), dated.status.as_u16()), (200, 200));
        let now = one.get(&path, &key).await.body["data"].clone();
        assert_eq!(now["name"], name["name"], "round {round}");
        assert_eq!(now["expirationTs"], dated.body["data"]["expirationTs"], "round {round}");
    }
}

async fn what_an_edit_takes_away_is_gone_on_every_replica_once_it_is_answered(database: Database) {
    let replicas =
        [TestApp::with(&database, Options::cached()).await, TestApp::with(&database, Options::cached()).await];
    let deadline = Instant::now() + Duration::from_secs(30);
    while !replicas.iter().all(|replica| replica.app.auth.cache().unwrap().is_leased()) {
        assert!(Instant::now() < deadline, "no lease");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let key = replicas[0].account(Plan::Enterprise).await.1;
    let made = replicas[0].create(&key, json!({ "name": "changing" })).await;
    let edits = [
        (json!({ "permissions": ["api-keys:write"] }), 403),
        (json!({ "permissions": ["api-keys:read"] }), 200),
        (json!({ "enabled": false }), 401),
        (json!({ "enabled": true }), 200),
    ];
    for round in 0..3 {
        for (edit, status) in &edits {
            assert_eq!(replicas[round % 2].patch(&item(&made), &key, edit).await.status, 200);
            // Twice each, so that what is in memory is asked as well.
            for replica in replicas.iter().chain(&replicas) {
                assert_eq!(replica.get(KEYS, text(&made)).await.status, *status, "round {round}: {edit}");
            }
        }
    }
}

async fn a_key_is_told_whose_it_is_and_how_far_it_may_go(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let (account, key) = app.account(Plan::Free).await;
    for left in (17..20).rev() {
        let reply = app.get(CURRENT, &key).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-ratelimit-remaining")), (200, &*left.to_string()));
        let data = &reply.body["data"];
        assert_eq!(data["accountId"], account.to_string());
        let reset = format!("2024-01-15T12:30:{:02}.000Z", 3 * (20 - left));
        assert_eq!(data["limit"], json!({ "window": "minute", "limit": 20, "remaining": left, "resetTs": reset }));
        assert_eq!((&data["key"]["name"], &data["key"]["plan"]), (&json!("first key"), &json!("free")));
    }
    let list = app.get(KEYS, &key).await;
    assert_eq!(app.get(CURRENT, &key).await.body["data"]["key"], list.body["data"][0]);
    let bytes = app.get(CURRENT, &key).await.bytes;
    assert!(!String::from_utf8_lossy(&bytes).contains(&key[12..]), "it shows the secret");
    assert_eq!(app.get(CURRENT, "").await.status, 401);

    let none = momail_api_keys::account::Allowance { per_minute: 0, per_hour: 0, per_day: 0, max_keys: 5 };
    let plans = momail_api_keys::account::Plans { free: none, pro: none, enterprise: none };
    let app = TestApp::with(&database, Options { plans, ..Options::default() }).await;
    let unlimited = app.get(CURRENT, &key).await;
    assert_eq!(
        (&unlimited.body["data"]["limit"], &unlimited.body["data"]["key"]["rateLimit"]),
        (&Value::Null, &Value::Null)
    );
}

async fn a_key_without_any_permission_may_ask_about_itself_and_revoke_itself(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let bare = app.create(&key, json!({ "name": "bare", "permissions": [] })).await;
    assert_eq!(app.get(CURRENT, text(&bare)).await.body["data"]["key"]["keyId"], bare["keyId"]);
    assert_eq!(app.get(&item(&bare), text(&bare)).await.status, 403);
    assert_eq!(app.delete(&item(&bare), text(&bare)).await.status, 403);
    let reply = app.delete(CURRENT, text(&bare)).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["data"]),
        (200, &json!({ "keyId": bare["keyId"], "revoked": true }))
    );
    for path in [CURRENT, KEYS] {
        assert_eq!(app.get(path, text(&bare)).await.status, 401);
    }
    assert_eq!(app.delete(CURRENT, text(&bare)).await.status, 401);
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1);
}
