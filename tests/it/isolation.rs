//! Accounts never meet: neither in lists, however they are asked for, nor in what many clients do to one key at once.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::{Value, json};

use crate::support::{Database, TestApp, is_long, on_both_stores};

on_both_stores!(
    no_page_order_or_filter_shows_a_key_of_another_account,
    a_page_of_events_that_begins_at_another_accounts_event_shows_none_of_it,
    of_fifty_deletes_at_once_one_revokes_and_none_revokes_later,
);

const KEYS: &str = "/v1/api-keys";
const ORDERS: [&str; 5] = ["", "&sort=createdAt", "&sort=name:desc", "&sort=lastUsed:desc", "&sort=expirationTs"];
const FILTERS: [&str; 4] = ["", "&status=active", "&q=common", "&status=active&q=o"];

fn ids(list: &Value) -> Vec<String> {
    list["data"].as_array().unwrap().iter().map(|key| key["keyId"].as_str().unwrap().to_owned()).collect()
}

async fn no_page_order_or_filter_shows_a_key_of_another_account(database: Database) {
    let app = TestApp::on(&database).await;
    let (number, sizes): (usize, &[usize]) = if is_long() { (1_000, &[1, 7, 99, 100]) } else { (60, &[7, 100]) };
    let mut accounts = Vec::new();
    for _ in 0..3 {
        let key = app.account(Plan::Enterprise).await.1;
        let mut own = BTreeSet::new();
        for n in 1..number {
            let made = app.create(&key, json!({ "name": format!("common {n}") })).await;
            own.insert(made["keyId"].as_str().unwrap().to_owned());
        }
        accounts.push((key, own));
    }
    for (key, own) in &accounts {
        for (size, query) in sizes.iter().flat_map(|size| ORDERS.map(|order| (*size, order))) {
            // One by one, a thousand keys are asked for in one order and by one filter only.
            for filter in FILTERS.iter().take(if size == 1 && !query.is_empty() { 0 } else { 4 }) {
                let mut found = Vec::new();
                for offset in (0..number).step_by(size) {
                    let page = app.get(&format!("{KEYS}?limit={size}&offset={offset}{query}{filter}"), key).await;
                    assert_eq!(page.status, 200, "{page:?}");
                    found.extend(ids(&page.body));
                }
                let others = found.iter().filter(|id| !own.contains(*id)).count();
                // The account's first key has another name.
                let first = usize::from(!filter.contains("common") && !filter.contains("q=o"));
                let distinct: BTreeSet<_> = found.iter().collect();
                let seen = (found.len(), distinct.len(), others);
                assert_eq!(seen, (own.len() + first, own.len() + first, first), "limit={size}{query}{filter}");
            }
        }
    }
}

async fn a_page_of_events_that_begins_at_another_accounts_event_shows_none_of_it(database: Database) {
    let app = TestApp::on(&database).await;
    let (ours, theirs) = (app.key().await, app.key().await);
    for name in ["a", "b", "c"] {
        app.create(&ours, json!({ "name": name })).await;
        app.create(&theirs, json!({ "name": name })).await;
    }
    let events = async |key: &str, query: &str| {
        let reply = app.get(&format!("{KEYS}/events{query}"), key).await;
        let events = reply.body["data"].as_array().unwrap_or_else(|| panic!("{reply:?}")).clone();
        events.iter().map(|event| event["eventId"].clone()).collect::<Vec<_>>()
    };
    let (of_ours, of_theirs) = (events(&ours, "").await, events(&theirs, "").await);
    for id in &of_theirs {
        let before = events(&ours, &format!("?before={id}")).await;
        assert!(before.iter().all(|event| of_ours.contains(event)), "{before:?}");
    }
}

async fn of_fifty_deletes_at_once_one_revokes_and_none_revokes_later(database: Database) {
    let replicas = [TestApp::on(&database).await, TestApp::on(&database).await, TestApp::on(&database).await];
    let (account, key) = replicas[0].account(Plan::Pro).await;
    let made = replicas[0].create(&key, json!({ "name": "popular" })).await;
    let path = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
    let replies = join_all((0..50).map(|n| replicas[n % 3].delete(&path, &key))).await;
    let with = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((with(200), with(404)), (1, 49));
    let revoked_at = async || -> DateTime<Utc> {
        let events = replicas[0].store.list_events(Some(account), None, 100).await.unwrap();
        let of_it: Vec<_> = events.iter().filter(|event| event.what == "revoked").collect();
        assert_eq!(of_it.len(), 1, "{of_it:?}");
        of_it[0].at
    };
    let first = revoked_at().await;
    let revoked_since = "select count(*) from api_keys where revoked_at is not null";
    assert_eq!(database.number(revoked_since).await, 1);
    for replica in &replicas {
        replica.clock.advance(std::time::Duration::from_secs(60));
        assert_eq!(replica.delete(&path, &key).await.status, 404);
    }
    assert_eq!(revoked_at().await, first);
    let moved = format!("{revoked_since} and revoked_at > {}", instant(first, database.is_postgres()));
    assert_eq!(database.number(&moved).await, 0, "the instant has moved");
}

/// An instant as the database has it.
fn instant(at: DateTime<Utc>, is_postgres: bool) -> String {
    if is_postgres { format!("'{}'::timestamptz", at.to_rfc3339()) } else { format!("'{}'", at.to_rfc3339()) }
}
