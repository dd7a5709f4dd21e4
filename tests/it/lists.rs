//! Lists of many keys: pages, orders and filters, the same on both stores.

use std::time::Duration;

use momail_api_keys::account::Plan;
use serde_json::{Value, json};

use crate::support::{Database, Options, TestApp, on_both_stores};

on_both_stores!(
    pages_follow_each_other_without_a_gap_and_say_whether_there_are_more,
    every_order_is_the_one_it_says,
    keys_are_found_by_their_status,
    keys_are_found_by_a_part_of_their_name_and_by_nothing_else,
    what_a_query_must_not_say_is_refused_by_name,
    a_search_never_leaves_its_account,
    a_rotated_key_is_one_key_on_its_page,
);

const KEYS: &str = "/v1/api-keys";

/// Names that databases with rules of their own would sort and compare in other ways.
const NAMES: [&str; 14] =
    ["zebra", "Zebra", "apple", "Apple", "Äpfel", "äpfel", "10", "9", "a b", "a_b", "a%b", "a!b", "éclair", "🔑"];

fn names(list: &Value) -> Vec<String> {
    list["data"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
}

async fn page(app: &TestApp, key: &str, query: &str) -> Value {
    let reply = app.get(&format!("{KEYS}?{query}"), key).await;
    assert_eq!(reply.status, 200, "{query} {reply:?}");
    reply.body
}

/// An account with a key of each name, made a second apart, each with its own life time and last use.
async fn account_with_names(app: &TestApp) -> String {
    let key = app.account(Plan::Enterprise).await.1;
    for (n, name) in NAMES.into_iter().enumerate() {
        app.clock.advance(Duration::from_secs(1));
        // Some never expire, and some are never used.
        let days = if n % 3 == 0 { Value::Null } else { json!((n * 7) % 13 + 1) };
        let made = app.create(&key, json!({ "name": name, "expirationDays": days })).await;
        if n % 4 != 0 {
            app.clock.advance(Duration::from_millis(((n * 5) % 11) as u64));
            app.get("/v1/api-keys/current", made["apiKey"].as_str().unwrap()).await;
        }
    }
    key
}

async fn pages_follow_each_other_without_a_gap_and_say_whether_there_are_more(database: Database) {
    let app = TestApp::on(&database).await;
    let key = account_with_names(&app).await;
    let all = app.get(KEYS, &key).await.body;
    assert_eq!(all["meta"], json!({ "total": 15 }), "without a page nothing is said of one");
    let mut collected = Vec::new();
    for offset in [0, 4, 8, 12] {
        let list = page(&app, &key, &format!("limit=4&offset={offset}")).await;
        let meta = json!({ "total": 15, "limit": 4, "offset": offset, "hasMore": offset < 11 });
        assert_eq!(list["meta"], meta);
        collected.extend(list["data"].as_array().unwrap().clone());
    }
    assert_eq!(json!(collected), all["data"], "the pages together are the list");
    for (query, number, meta) in [
        ("limit=15", 15, json!({ "total": 15, "limit": 15, "offset": 0, "hasMore": false })),
        ("limit=14", 14, json!({ "total": 15, "limit": 14, "offset": 0, "hasMore": true })),
        ("limit=100", 15, json!({ "total": 15, "limit": 100, "offset": 0, "hasMore": false })),
        ("offset=10", 5, json!({ "total": 15, "limit": 100, "offset": 10, "hasMore": false })),
        ("limit=5&offset=15", 0, json!({ "total": 15, "limit": 5, "offset": 15, "hasMore": false })),
        ("limit=5&offset=1000000", 0, json!({ "total": 15, "limit": 5, "offset": 1_000_000, "hasMore": false })),
        ("q=zebra&limit=1", 1, json!({ "total": 2, "limit": 1, "offset": 0, "hasMore": true })),
        ("q=zebra", 2, json!({ "total": 2 })),
        ("q=nobody", 0, json!({ "total": 0 })),
    ] {
        let list = page(&app, &key, query).await;
        assert_eq!((list["data"].as_array().unwrap().len(), &list["meta"]), (number, &meta), "{query}");
    }
}

async fn every_order_is_the_one_it_says(database: Database) {
    let mut app = TestApp::on(&database).await;
    app.write_last_used();
    let key = account_with_names(&app).await;
    app.flush_last_used().await;
    let list = app.get(KEYS, &key).await.body;
    let keys = list["data"].as_array().unwrap();
    for (by, member) in
        [("createdAt", "createdAt"), ("lastUsed", "lastUsed"), ("name", "name"), ("expirationTs", "expirationTs")]
    {
        for descending in [false, true] {
            let mut expected = keys.clone();
            // Times are texts that sort as times do; where two are the same, or two names, the ids decide.
            expected.sort_by(|one, other| {
                let value = |key: &Value| key[member].as_str().map(str::to_ascii_lowercase);
                let (one_value, other_value) = (value(one), value(other));
                let order =
                    one_value.cmp(&other_value).then_with(|| one["keyId"].as_str().cmp(&other["keyId"].as_str()));
                let order = if descending { order.reverse() } else { order };
                one_value.is_none().cmp(&other_value.is_none()).then(order)
            });
            let direction = if descending { ":desc" } else { ":asc" };
            let mut queries = vec![format!("sort={by}{direction}"), format!("sort={by}%3A{}", &direction[1..])];
            if !descending {
                queries.push(format!("sort={by}"));
            }
            for query in queries {
                let sorted = page(&app, &key, &query).await;
                assert_eq!(sorted["data"], json!(expected), "{query}: {:?}", names(&sorted));
                let second = page(&app, &key, &format!("{query}&limit=5&offset=5")).await;
                assert_eq!(second["data"], json!(expected[5..10]), "{query}");
            }
        }
    }
}

async fn keys_are_found_by_their_status(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let mut ids = Vec::new();
    for (name, days) in [("active", json!(2)), ("expired", json!(1)), ("disabled", json!(null)), ("both", json!(1))] {
        ids.push(app.create(&key, json!({ "name": name, "expirationDays": days })).await["keyId"].clone());
    }
    for disabled in &ids[2..] {
        let path = format!("{KEYS}/{}", disabled.as_str().unwrap());
        app.patch(&path, &key, &json!({ "enabled": false })).await;
    }
    let found = async |status: &str| names(&page(&app, &key, &format!("status={status}&sort=name")).await);
    assert_eq!(found("active").await, ["active", "expired", "first key"]);
    app.clock.advance(Duration::from_secs(86_400) - Duration::from_millis(1));
    assert_eq!(found("expired").await, [""; 0]);
    app.clock.advance(Duration::from_millis(1));
    assert_eq!(found("active").await, ["active", "first key"]);
    assert_eq!(found("expired").await, ["expired"]);
    assert_eq!(found("disabled").await, ["both", "disabled"]);
    for status in ["active", "expired", "disabled"] {
        let list = page(&app, &key, &format!("status={status}")).await;
        assert!(list["data"].as_array().unwrap().iter().all(|key| key["status"] == status));
    }
}

async fn keys_are_found_by_a_part_of_their_name_and_by_nothing_else(database: Database) {
    let app = TestApp::on(&database).await;
    let key = account_with_names(&app).await;
    let table: [(&str, &[&str]); 13] = [
        ("apple", &["Apple", "apple"]),
        ("PPL", &["Apple", "apple"]),
        ("a%20b", &["a b"]),
        ("a+b", &["a b"]),
        ("%25", &["a%b"]),
        ("_", &["a_b"]),
        ("!", &["a!b"]),
        ("%C3%A4", &["äpfel"]),
        ("%C3%84pfel", &["Äpfel"]),
        ("%F0%9F%94%91", &["🔑"]),
        ("%27+or+1=1+--", &[]),
        ("%5C", &[]),
        ("%%", &[]),
    ];
    for (q, expected) in table {
        let mut found = names(&page(&app, &key, &format!("q={q}")).await);
        found.sort_unstable();
        assert_eq!(found, expected, "{q}");
    }
    let both = page(&app, &key, "q=e&status=active&sort=createdAt&limit=2&offset=1").await;
    assert_eq!((names(&both), &both["meta"]["total"]), (vec!["zebra".to_owned(), "Zebra".to_owned()], &json!(7)));
}

/// A query, the name of what is wrong with it, and the words for it.
const REFUSED: [(&str, &str, &str); 27] = [
    ("limit=0", "limit", "must be a whole number from 1 to 100"),
    ("limit=101", "limit", "must be a whole number from 1 to 100"),
    ("limit=-1", "limit", "must be a whole number from 1 to 100"),
    ("limit=", "limit", "must be a whole number from 1 to 100"),
    ("limit", "limit", "must be a whole number from 1 to 100"),
    ("limit=1.5", "limit", "must be a whole number from 1 to 100"),
    ("limit=1e1", "limit", "must be a whole number from 1 to 100"),
    ("limit=%2B1", "limit", "must be a whole number from 1 to 100"),
    ("limit=99999999999999999999", "limit", "must be a whole number from 1 to 100"),
    ("offset=-1", "offset", "must be a whole number from 0 to 1000000"),
    ("offset=1000001", "offset", "must be a whole number from 0 to 1000000"),
    ("offset=x", "offset", "must be a whole number from 0 to 1000000"),
    ("sort=", "sort", "must be createdAt, lastUsed, name or expirationTs, with :asc or :desc"),
    ("sort=hash", "sort", "must be createdAt, lastUsed, name or expirationTs, with :asc or :desc"),
    ("sort=name:", "sort", "must be createdAt, lastUsed, name or expirationTs, with :asc or :desc"),
    ("sort=name:up", "sort", "must be createdAt, lastUsed, name or expirationTs, with :asc or :desc"),
    ("sort=Name", "sort", "must be createdAt, lastUsed, name or expirationTs, with :asc or :desc"),
    ("sort=name;drop+table+api_keys", "sort", "must be createdAt, lastUsed, name or expirationTs, with :asc or :desc"),
    ("status=revoked", "status", "must be active, expired or disabled"),
    ("status=Active", "status", "must be active, expired or disabled"),
    ("q=", "q", "must not be empty"),
    ("q=+", "q", "must not be empty"),
    ("q=a%00b", "q", "must not contain control characters"),
    ("limit=1&limit=2", "limit", "is there twice"),
    ("Limit=1", "Limit", "there is no such parameter"),
    ("page=2", "page", "there is no such parameter"),
    ("limit=1&x%20y=1", "x y", "there is no such parameter"),
];

async fn what_a_query_must_not_say_is_refused_by_name(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let long = format!("q={}", "a".repeat(101));
    let long = (long.as_str(), "q", "must have at most 100 characters");
    for (query, field, problem) in REFUSED.into_iter().chain([long]) {
        let reply = app.get(&format!("{KEYS}?{query}"), &key).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{query}");
        assert_eq!(reply.body["error"]["details"]["fields"], json!({ field: problem }), "{query}");
    }
    let several = app.get(&format!("{KEYS}?limit=0&sort=x&y"), &key).await;
    assert_eq!(several.body["error"]["details"]["fields"].as_object().unwrap().len(), 3, "all at once");
    let many = (0..33).map(|n| format!("p{n}=1")).collect::<Vec<_>>().join("&");
    let reply = app.get(&format!("{KEYS}?{many}"), &key).await;
    let fields = json!({ "query": "has more than 32 parameters" });
    assert_eq!((reply.status.as_u16(), &reply.body["error"]["details"]["fields"]), (400, &fields));
    // A key that was written in another way than the guard looks for is not repeated either.
    let hidden = format!("{KEYS}?q={}", key.replace('_', "%5F"));
    let reply = app.get(&hidden, &key).await;
    assert_eq!(reply.body["error"]["details"]["fields"], json!({ "q": "must not contain an API key" }));
    assert_eq!(app.get(&format!("{KEYS}?&"), &key).await.status, 200, "nothing is said");
}

async fn a_search_never_leaves_its_account(database: Database) {
    let app = TestApp::on(&database).await;
    let (ours, theirs) = (app.key().await, app.key().await);
    app.create(&theirs, json!({ "name": "theirs" })).await;
    let gone = app.create(&ours, json!({ "name": "gone" })).await;
    app.delete(&format!("{KEYS}/{}", gone["keyId"].as_str().unwrap()), &ours).await;
    for query in ["limit=100", "q=e", "status=active", "sort=name", "sort=lastUsed:desc&q=key"] {
        let list = page(&app, &ours, query).await;
        assert_eq!((names(&list), &list["meta"]["total"]), (vec!["first key".to_owned()], &json!(1)), "{query}");
    }
}

async fn a_rotated_key_is_one_key_on_its_page(database: Database) {
    let app = TestApp::with(&database, Options::default()).await;
    let key = app.key().await;
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        made.push(app.create(&key, json!({ "name": name })).await);
        app.clock.advance(Duration::from_secs(1));
    }
    for _ in 0..2 {
        let path = format!("{KEYS}/{}", made[1]["keyId"].as_str().unwrap());
        assert_eq!(app.post(&format!("{path}/rotate"), &key, &json!({ "gracePeriodHours": 1 })).await.status, 200);
        app.clock.advance(Duration::from_secs(3_600));
    }
    let list = page(&app, &key, "limit=2&offset=1&sort=createdAt").await;
    assert_eq!((names(&list), &list["meta"]["total"]), (vec!["a".to_owned(), "b".to_owned()], &json!(4)));
    let whole = app.get(KEYS, &key).await.body;
    assert_eq!(page(&app, &key, "limit=10").await["data"], whole["data"]);
}
