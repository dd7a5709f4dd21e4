//! The API's description, by snapshot. That it tells the truth is checked with every answer that `TestApp` gives.

use axum::http::Method;
use momail_api_keys::http::openapi_document;
use serde_json::Value;

use crate::support::{Options, TestApp, request};

#[test]
fn the_document_is_the_one_that_was_read_and_accepted() {
    insta::assert_snapshot!(openapi_document());
}

#[tokio::test]
async fn it_is_served_and_not_sent_again_to_whoever_has_it() {
    let app = TestApp::alone(Options::default()).await;
    let reply = app.get("/openapi.json", "").await;
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "application/json"));
    assert_eq!(reply.bytes, openapi_document().as_bytes());
    assert_eq!(reply.header("cache-control"), "no-cache");

    let known = |tags: &str| {
        let mut request = request(Method::GET, "/openapi.json", "");
        request.headers_mut().insert("if-none-match", tags.parse().unwrap());
        request
    };
    let etag = reply.header("etag").to_owned();
    for tags in [etag.clone(), format!("\"older\", {etag}"), format!("W/{etag}")] {
        let again = app.send(known(&tags)).await;
        assert_eq!((again.status.as_u16(), again.bytes.len(), again.header("etag")), (304, 0, etag.as_str()), "{tags}");
    }
    assert_eq!(app.send(known("\"older\"")).await.status, 200);
}

/// Every reference in the document leads somewhere.
#[test]
fn no_reference_hangs() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => (),
        }
    }
    let document: Value = serde_json::from_str(&openapi_document()).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}
