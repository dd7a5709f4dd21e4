//! What the operator may change about a key and ask about it, beside making and ending it.

use serde_json::{Value, json};

use crate::support::{Database, Ran, Service, on_both_stores};

on_both_stores!(a_key_is_changed_member_by_member, a_keys_requests_are_shown_by_the_day);

const KEYS: &str = "/v1/api-keys";

/// A new account's name is `Acme`; the id and the text of its key.
fn key(database: &Database) -> (String, String) {
    let made = database.operate(&["accounts", "create", "--name", "Acme", "--plan", "pro", "--json"]).json();
    let text = |name: &str| made["key"][name].as_str().unwrap().to_owned();
    (text("keyId"), text("apiKey"))
}

fn shown(database: &Database) -> Value {
    database.operate(&["keys", "list", "--account", "Acme", "--json"]).json()[0].clone()
}

fn change(database: &Database, id: &str, arguments: &[&str]) -> Ran {
    database.operate(&[&["keys", "change", id], arguments].concat())
}

async fn a_key_is_changed_member_by_member(database: Database) {
    let (id, _) = key(&database);
    let everything = shown(&database)["permissions"].clone();
    let done = change(&database, &id, &["--name", "renamed", "--permissions", "emails:write,api-keys:read"]).done();
    assert_eq!(done, format!("{id} is changed: name permissions\n"));
    let key = shown(&database);
    assert_eq!((&key["name"], &key["permissions"]), (&json!("renamed"), &json!(["api-keys:read", "emails:write"])));
    assert_eq!(key["expirationTs"], Value::Null, "what was not named stays");

    change(&database, &id, &["--expiration-days", "7"]).done();
    assert!(shown(&database)["expirationTs"].is_string());
    change(&database, &id, &["--expiration-days", "never", "--permissions", "all"]).done();
    let key = shown(&database);
    assert_eq!((&key["expirationTs"], &key["permissions"]), (&Value::Null, &everything));

    let complaint = change(&database, &id, &["--permissions", "cakes:eat"]).failed();
    assert!(complaint.starts_with("error: there is no permission `cakes:eat`"), "{complaint}");
    database.operate(&["keys", "revoke", &id]).done();
    let gone = format!("error: there is no key {id}, or it is revoked already\n");
    assert_eq!(change(&database, &id, &["--name", "late"]).failed(), gone);
}

async fn a_keys_requests_are_shown_by_the_day(database: Database) {
    let (id, key) = key(&database);
    assert_eq!(database.operate(&["keys", "usage", &id, "--days", "7"]).done(), "no requests in 7 days\n");
    let mut service = Service::start(&[("DATABASE_URL", &database.url)]);
    service.wait_until_ready_is(200).await;
    for _ in 0..3 {
        assert_eq!(service.get(KEYS, &key).await.status, 200);
    }
    assert!(service.terminate().success());
    let usage = database.operate(&["keys", "usage", &id, "--json"]).json();
    assert_eq!((&usage["keyId"], &usage["total"]), (&json!(id), &json!({ "allowed": 3, "refused": 0 })));
    assert_eq!((usage["days"].as_array().unwrap().len(), usage["hours"].as_array().unwrap().len()), (30, 48));
    let table = database.operate(&["keys", "usage", &id]).done();
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("DAY         ALLOWED  REFUSED"), "{table}");
    assert!((2..=3).contains(&lines.len()), "a day, or two around midnight: {table}");
}
