//! What keys may do: on every route of the router's own table, in what they hand on, and in what gateways are told.

use axum::http::Method;
use momail_api_keys::account::Plan;
use momail_api_keys::http::{self, Endpoint};
use momail_api_keys::permission::Permissions;
use serde_json::{Value, json};

use crate::support::{Database, OTHER_PERMISSIONS, Options, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    every_route_opens_to_exactly_the_sets_that_hold_what_it_needs,
    a_permission_is_judged_after_the_limit_and_before_the_body,
    a_key_hands_on_what_it_has_and_no_more,
    what_is_no_list_of_permissions_is_refused_by_name,
    a_gateway_is_told_what_the_key_may_do,
    keys_from_before_there_were_permissions_may_do_everything,
    a_change_of_permissions_is_a_change_and_one_of_the_name_is_none,
);

const KEYS: &str = "/v1/api-keys";
const OWN: [&str; 2] = ["api-keys:read", "api-keys:write"];

/// A key of the account that `maker` belongs to, with just these permissions.
async fn key_with(app: &TestApp, maker: &str, permissions: &[&str]) -> String {
    let made = app.create(maker, json!({ "name": "of few rights", "permissions": permissions })).await;
    made["apiKey"].as_str().unwrap().to_owned()
}

async fn every_route_opens_to_exactly_the_sets_that_hold_what_it_needs(database: Database) {
    let app = TestApp::on(&database).await;
    let catalogue = app.store.catalogue().clone();
    let sets: [&[&str]; 5] = [&[], &OWN[..1], &OWN[1..], &OWN, &OTHER_PERMISSIONS];
    let endpoints = http::endpoints();
    assert!(endpoints.len() >= 3 && endpoints.iter().any(|endpoint| endpoint.needs != Permissions::NOTHING));
    for Endpoint { method, path, needs, .. } in &endpoints {
        let path = path.replace("{id}", "key_01hm5cqv1kf3w9zq2n8x7t4b6d");
        for set in sets {
            // Of an account of its own: what the route does to it must not reach the next one.
            let maker = app.account(Plan::Pro).await.1;
            let key = key_with(&app, &maker, set).await;
            let reply = app.send(request(method.clone(), &path, &key)).await;
            let holds = catalogue.parse(set.iter().copied()).unwrap().contains(*needs);
            assert_eq!(reply.status != 403, holds, "{method} {path} {set:?}: {reply:?}");
            assert_ne!(reply.status, 401, "{method} {path} {set:?}");
            if !holds {
                let missing: Vec<_> = catalogue.names(*needs).collect();
                assert_eq!(reply.body["error"]["code"], "FORBIDDEN");
                let details = json!({ "reason": "permission", "missing": missing });
                assert_eq!(reply.body["error"]["details"], details, "{method} {path} {set:?}");
                let message = format!("The key is not permitted to do this: it lacks {}.", missing.join(", "));
                assert_eq!(reply.body["error"]["message"], message);
            }
            let first = app.send(request(method.clone(), &path, &maker)).await;
            assert_ne!(first.status, 403, "{method} {path}: the first key may do everything");
        }
    }
}

async fn a_permission_is_judged_after_the_limit_and_before_the_body(database: Database) {
    let app = TestApp::with(&database, Options::published()).await;
    let maker = app.account(Plan::Free).await.1;
    let key = key_with(&app, &maker, &OWN[..1]).await;
    for left in (10..20).rev() {
        let refused = app.send(json_request(Method::POST, KEYS, &key, "{".to_owned())).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (403, "FORBIDDEN"));
        assert_eq!(refused.header("x-ratelimit-remaining"), left.to_string(), "a refusal is a request");
    }
    for path in ["/v1/nothing", "/v1/api-keys/a/b"] {
        assert_eq!(app.get(path, &key).await.status, 404, "{path}");
    }
    assert_eq!(app.send(request(Method::PUT, KEYS, &key)).await.status, 405);
    while app.get(KEYS, &key).await.status == 200 {}
    assert_eq!(app.post(KEYS, &key, &json!({})).await.status, 429);
    assert_eq!(app.post(KEYS, "mk_x", &json!({})).await.status, 401);
}

async fn a_key_hands_on_what_it_has_and_no_more(database: Database) {
    let app = TestApp::on(&database).await;
    let first = app.key().await;
    let everything: Vec<_> = OWN.into_iter().chain(OTHER_PERMISSIONS).collect();

    // Without a word, a key is as its maker; with one, it is what was asked for, in the catalogue's order.
    let like_first = app.create(&first, json!({ "name": "a" })).await;
    assert_eq!(like_first["permissions"], json!(everything));
    let asked = json!(["domains:read", "api-keys:write", "domains:read"]);
    let few = app.create(&first, json!({ "name": "b", "permissions": asked })).await;
    assert_eq!(few["permissions"], json!(["api-keys:write", "domains:read"]));
    let few_key = few["apiKey"].as_str().unwrap();
    for same in [json!({ "name": "c" }), json!({ "name": "c", "permissions": null })] {
        assert_eq!(app.create(few_key, same).await["permissions"], few["permissions"]);
    }
    let none = app.create(few_key, json!({ "name": "d", "permissions": [] })).await;
    assert_eq!(none["permissions"], json!([]));

    let listed = app.get(KEYS, &first).await.body["data"].as_array().unwrap().clone();
    let list_of = |id: &Value| listed.iter().find(|key| key["keyId"] == *id).unwrap()["permissions"].clone();
    for made in [&like_first, &few, &none] {
        assert_eq!(list_of(&made["keyId"]), made["permissions"]);
    }

    let before = listed.len();
    let table = [
        (vec!["domains:write"], vec!["domains:write"]),
        (vec!["api-keys:read", "domains:read"], vec!["api-keys:read"]),
        (everything.clone(), vec!["api-keys:read", "domains:write", "emails:read"]),
    ];
    for (asked, missing) in table {
        let refused = app.post(KEYS, few_key, &json!({ "name": "e", "permissions": asked })).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (403, "FORBIDDEN"));
        assert_eq!(refused.body["error"]["details"], json!({ "reason": "permission", "missing": missing }));
    }
    assert_eq!(app.get(KEYS, &first).await.body["meta"]["total"], before, "nothing was made");
}

/// What is said of permissions, and the words in which it is refused.
const NO_LISTS: [(&str, &str); 9] = [
    (r#""api-keys:read""#, "must be a list of permissions or null"),
    ("5", "must be a list of permissions or null"),
    ("true", "must be a list of permissions or null"),
    (r#"{"api-keys:read":true}"#, "must be a list of permissions or null"),
    ("[5]", "must be a list of permissions or null"),
    ("[null]", "must be a list of permissions or null"),
    (r#"["api-keys:read",["domains:read"]]"#, "must be a list of permissions or null"),
    (r#"["*"]"#, "there is no *; there are api-keys:read, api-keys:write, domains:read, domains:write, emails:read"),
    (
        r#"["domains:read","domains:rea"]"#,
        "there is no domains:rea; there are api-keys:read, api-keys:write, domains:read, domains:write, emails:read",
    ),
];

async fn what_is_no_list_of_permissions_is_refused_by_name(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    for (permissions, problem) in NO_LISTS {
        let body = format!(r#"{{"name":"a","permissions":{permissions}}}"#);
        let reply = app.send(json_request(Method::POST, KEYS, &key, body)).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{permissions}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ "permissions": problem }), "{permissions}");
    }
    // A key that was pasted there is not repeated, nor is a text without end.
    for pasted in [key.clone(), "x".repeat(10_000)] {
        let reply = app.post(KEYS, &key, &json!({ "name": "a", "permissions": [pasted] })).await;
        assert_eq!(reply.status, 400);
        let problem = reply.body["error"]["details"]["fields"]["permissions"].as_str().unwrap();
        assert!(problem.starts_with("there is no (a name); there are "), "{problem}");
    }
    assert_eq!(app.get(KEYS, &key).await.body["meta"]["total"], 1, "nothing was made");
}

async fn a_gateway_is_told_what_the_key_may_do(database: Database) {
    let app = TestApp::on(&database).await;
    let maker = app.key().await;
    let everything = format!("{} {}", OWN.join(" "), OTHER_PERMISSIONS.join(" "));
    let table: [(&[&str], &str); 3] = [
        (&[], ""),
        (&["domains:read"], "domains:read"),
        (&["emails:read", "api-keys:read"], "api-keys:read emails:read"),
    ];
    for path in ["/forward-auth", "/forward-auth/nginx"] {
        // Twice, because what was told once is remembered.
        for _ in 0..2 {
            let told = app.internal_send(request(Method::GET, path, &maker)).await;
            assert_eq!((told.status.as_u16(), told.header("x-permissions")), (200, &*everything));
            for (set, expected) in table {
                let key = key_with(&app, &maker, set).await;
                let told = app.internal_send(request(Method::POST, path, &key)).await;
                assert_eq!(told.status, 200, "what is not this service's is the application's to judge");
                assert_eq!(told.headers.get("x-permissions").unwrap(), expected, "it is always there");
            }
        }
    }
}

async fn keys_from_before_there_were_permissions_may_do_everything(database: Database) {
    let app = TestApp::on(&database).await;
    let maker = app.key().await;
    let few = key_with(&app, &maker, &[]).await;
    assert_eq!(app.get(KEYS, &few).await.status, 403);
    // As the migration leaves what was there before it.
    database.sql("update api_keys set permissions = null").await;
    assert_eq!(app.get(KEYS, &few).await.status, 200);
    // What has left the catalogue permits nothing and harms nothing.
    database.sql("update api_keys set permissions = 'gone:read api-keys:read'").await;
    let list = app.get(KEYS, &few).await;
    assert_eq!((list.status.as_u16(), &list.body["data"][0]["permissions"]), (200, &json!(["api-keys:read"])));
}

async fn a_change_of_permissions_is_a_change_and_one_of_the_name_is_none(database: Database) {
    let app = TestApp::on(&database).await;
    app.key().await;
    let count = async || database.number("select cast(n as bigint) from change_counter").await;
    let before = count().await;
    database.sql("update api_keys set name = 'renamed'").await;
    assert_eq!(count().await, before);
    database.sql("update api_keys set permissions = 'api-keys:read'").await;
    assert_eq!(count().await, before + 1);
}
