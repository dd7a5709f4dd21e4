//! A new release on the database of an earlier one: whatever it finds there goes on working, however often it is killed on the way.

use std::time::{Duration, Instant};

use axum::http::Method;
use rand::RngExt;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{Database, Earlier, Service, is_long, json_request, latest, request};

const KEYS: &str = "/v1/api-keys";
const PATIENCE: Duration = Duration::from_secs(30);

async fn assert_works(service: &Service, earlier: &Earlier) {
    service.wait_until_ready_is(200).await;
    for key in &earlier.live {
        let list = service.get(KEYS, key).await;
        assert_eq!((list.status.as_u16(), &list.body["meta"]["total"]), (200, &json!(2)), "{list:?}");
    }
    assert_eq!(service.get(KEYS, &earlier.revoked).await.status, 401);
}

/// What keys of old can do, a new one can, and the other way round.
async fn assert_changes(service: &Service, earlier: &Earlier) {
    let key = &earlier.live[0];
    let ask = async |method: Method, path: &str, body: serde_json::Value| {
        let reply = service.send(json_request(method, path, key, body.to_string())).await;
        assert!(reply.status.is_success(), "{path} {reply:?}");
        reply.body["data"].clone()
    };
    let list = service.get(KEYS, key).await;
    let old = list.body["data"].as_array().unwrap().iter().find(|key| key["name"] == "live as well").unwrap().clone();
    let path = format!("{KEYS}/{}", old["keyId"].as_str().unwrap());
    ask(Method::PATCH, &path, json!({ "name": "renamed", "expirationDays": 5 })).await;
    let rotated = ask(Method::POST, &format!("{path}/rotate"), json!({})).await;
    let made = ask(Method::POST, KEYS, json!({ "name": "new" })).await;
    for text in [&rotated["apiKey"], &made["apiKey"]] {
        assert_eq!(service.get(KEYS, text.as_str().unwrap()).await.status, 200);
    }
    assert_eq!(service.send(request(Method::DELETE, &path, key)).await.status, 200);
    assert_eq!(service.get(KEYS, &earlier.live[1]).await.status, 401);
    let events = service.get("/v1/api-keys/events", key).await;
    assert_eq!(events.body["data"].as_array().unwrap().len(), 4, "{events:?}");
}

#[tokio::test]
async fn whatever_an_earlier_release_left_goes_on_working() {
    for version in 1..latest() {
        for database in [Database::sqlite(), Database::empty_postgres().await] {
            let earlier = database.of_release(version).await;
            let service = Service::start(&[("DATABASE_URL", &database.url)]);
            assert_works(&service, &earlier).await;
            assert_changes(&service, &earlier).await;
            assert!(!service.stdout().contains("first key"), "there was an account");
        }
    }
}

#[tokio::test]
async fn eight_replicas_start_together_on_the_data_of_an_earlier_release() {
    for _ in 0..if is_long() { 20 } else { 2 } {
        let database = Database::empty_postgres().await;
        let earlier = database.of_release(rand::rng().random_range(1..latest())).await;
        let mut replicas: Vec<_> = (0..8).map(|_| Service::spawn(&[("DATABASE_URL", &database.url)])).collect();
        for replica in &mut replicas {
            replica.wait_until_it_listens();
        }
        for replica in &replicas {
            assert_works(replica, &earlier).await;
        }
        assert_eq!(database.number("select count(*) - count(distinct version) from _sqlx_migrations").await, 0);
        assert_eq!(database.number("select max(version) from _sqlx_migrations").await, latest());
    }
}

/// Waits until a migration stands in front of what is held, as far as the database can tell.
async fn wait_until_it_waits(database: &Database) {
    if !database.is_postgres() {
        return sleep(Duration::from_millis(rand::random_range(0..150))).await;
    }
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let deadline = Instant::now() + PATIENCE;
    while database.number(waiting).await == 0 {
        assert!(Instant::now() < deadline, "no migration waits");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_migration_that_is_killed_on_its_way_is_finished_by_the_next_start() {
    for round in 0..if is_long() { 20 } else { 3 } {
        for database in [Database::sqlite(), Database::empty_postgres().await] {
            let earlier = database.of_release(rand::rng().random_range(1..latest())).await;
            let settings = [("DATABASE_URL", database.url.as_str())];
            let hold = database.hold_up_migrations().await;
            let mut killed = Service::spawn(&settings);
            wait_until_it_waits(&database).await;
            let mut waiting = Service::spawn(&settings);
            if round % 2 == 0 {
                // It stands before the lock when it is killed; whoever waits behind it lives.
                waiting.wait_until_it_listens();
                let (live, ready) = (waiting.get_internal("/livez").await, waiting.get_internal("/readyz").await);
                assert_eq!((live.status.as_u16(), ready.status.as_u16()), (200, 503));
                killed.kill();
                hold.give_back().await;
            } else {
                // It is killed somewhere in the middle of what it does.
                hold.give_back().await;
                sleep(Duration::from_micros(rand::random_range(0..40_000))).await;
                killed.kill();
                waiting.wait_until_it_listens();
            }
            assert_works(&waiting, &earlier).await;
            drop(waiting);
            let next = Service::start(&settings);
            assert_works(&next, &earlier).await;
            assert_eq!(database.number("select count(*) from _sqlx_migrations where success").await, latest());
            if !database.is_postgres() {
                database.assert_sound().await;
            }
        }
    }
}
