//! A client chooses when its body comes: what was taken from its key meanwhile is gone all the same.

use axum::body::{Body, Bytes};
use axum::http::{Method, Request};
use futures_util::stream;
use momail_api_keys::account::Plan;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::{Database, Options, Reply, TestApp, json_request, on_both_stores, request};

on_both_stores!(
    a_key_that_was_revoked_while_its_body_was_awaited_makes_no_other,
    a_key_that_was_disabled_or_narrowed_meanwhile_does_not_give_itself_back_what_was_taken,
    a_secret_that_was_retired_meanwhile_does_not_lock_its_owner_out,
    secrets_that_ended_long_ago_are_not_kept_for_ever,
);

const KEYS: &str = "/v1/api-keys";

/// Two replicas, both with memory, and the owner's key.
async fn replicas(database: &Database) -> (TestApp, TestApp, String) {
    let first = TestApp::with(database, Options::cached()).await;
    let second = TestApp::at(database, Options::cached(), first.clock.clone()).await;
    let owner = first.account(Plan::Enterprise).await.1;
    (first, second, owner)
}

/// Sends a request whose body comes only when `meanwhile` has been done, which begins when somebody asks for the body: by then
/// the request has been let in.
async fn held(app: &TestApp, mut request: Request<Body>, body: &Value, meanwhile: impl Future<Output = ()>) -> Reply {
    let ((ask, asked), (come, comes)) = (oneshot::channel(), oneshot::channel());
    let text = Bytes::from(body.to_string());
    *request.body_mut() = Body::from_stream(stream::once(async move {
        ask.send(()).unwrap();
        comes.await.unwrap();
        Ok::<_, std::io::Error>(text)
    }));
    let meanwhile = async {
        asked.await.unwrap();
        meanwhile.await;
        come.send(()).unwrap();
    };
    tokio::join!(app.send(request), meanwhile).0
}

/// The head of such a request.
fn head(method: Method, path: &str, key: &str) -> Request<Body> {
    let mut request = json_request(method, path, key, String::new());
    request.headers_mut().remove("content-length");
    request
}

fn path(key: &Value) -> String {
    format!("{KEYS}/{}", key["keyId"].as_str().unwrap())
}

fn text(key: &Value) -> &str {
    key["apiKey"].as_str().unwrap()
}

async fn a_key_that_was_revoked_while_its_body_was_awaited_makes_no_other(database: Database) {
    let (first, second, owner) = replicas(&database).await;
    let thief = first.create(&owner, json!({ "name": "stolen" })).await;
    let revoke = async { assert_eq!(second.delete(&path(&thief), &owner).await.status, 200) };
    let made = held(&first, head(Method::POST, KEYS, text(&thief)), &json!({ "name": "survivor" }), revoke).await;
    assert_eq!(made.status, 401, "{made:?}");
    assert_eq!(first.get(KEYS, &owner).await.body["meta"]["total"], 1);
}

async fn a_key_that_was_disabled_or_narrowed_meanwhile_does_not_give_itself_back_what_was_taken(database: Database) {
    let (first, second, owner) = replicas(&database).await;
    let table = [
        (json!({ "enabled": false }), json!({ "enabled": true }), 401),
        (json!({ "permissions": [] }), json!({ "permissions": null }), 403),
    ];
    for (taken, wanted, expected) in table {
        let thief = first.create(&owner, json!({ "name": "stolen" })).await;
        let take = async {
            let patch = json_request(Method::PATCH, &path(&thief), &owner, taken.to_string());
            assert_eq!(second.send(patch).await.status, 200);
        };
        let given = held(&first, head(Method::PATCH, &path(&thief), text(&thief)), &wanted, take).await;
        assert_eq!(given.status, expected, "{taken}: {given:?}");
        let status = first.send(request(Method::DELETE, "/v1/api-keys/none", text(&thief))).await.status;
        assert_eq!(status, expected, "{taken} still holds");
    }
}

async fn a_secret_that_was_retired_meanwhile_does_not_lock_its_owner_out(database: Database) {
    let (first, second, owner) = replicas(&database).await;
    let leaked = first.create(&owner, json!({ "name": "leaked" })).await;
    let rotate = format!("{}/rotate", path(&leaked));
    let at_once = json!({ "gracePeriodHours": 0 });
    let (tell, told) = oneshot::channel();
    let rescue = async {
        let rotated = second.post(&rotate, &owner, &at_once).await;
        assert_eq!(rotated.status, 200, "{rotated:?}");
        tell.send(text(&rotated.body["data"]).to_owned()).unwrap();
    };
    let stolen = held(&first, head(Method::POST, &rotate, text(&leaked)), &at_once, rescue).await;
    assert_eq!(stolen.status, 401, "{stolen:?}");
    assert_eq!(first.get(KEYS, &told.await.unwrap()).await.status, 200, "the owner's new secret works");
}

async fn secrets_that_ended_long_ago_are_not_kept_for_ever(database: Database) {
    let mut app = TestApp::with(&database, Options::default()).await;
    app.write_last_used();
    let owner = app.account(Plan::Enterprise).await.1;
    let key = app.create(&owner, json!({ "name": "often rotated" })).await;
    let mut secret = text(&key).to_owned();
    for _ in 0..3 {
        assert_eq!(app.get(KEYS, &secret).await.status, 200);
    }
    app.flush_last_used().await;
    let used = app.get(&path(&key), &owner).await.body["data"]["lastUsed"].clone();
    assert!(used.is_string(), "{used}");
    for _ in 0..20 {
        app.clock.advance(std::time::Duration::from_secs(1));
        let rotated = app.post(&format!("{}/rotate", path(&key)), &owner, &json!({ "gracePeriodHours": 0 })).await;
        assert_eq!(rotated.status, 200, "{rotated:?}");
        text(&rotated.body["data"]).clone_into(&mut secret);
    }
    let secrets = database.number("select count(*) from key_secrets").await;
    assert!(secrets <= 1 + 3, "{secrets} secrets of two keys");
    assert_eq!(app.get(&path(&key), &owner).await.body["data"]["lastUsed"], used, "the use of a forgotten secret");
    assert_eq!(app.get(KEYS, &secret).await.status, 200);
}
