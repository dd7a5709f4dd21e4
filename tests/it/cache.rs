//! Keys kept in memory under a lease: what the memory saves, and that a change still holds at once on every replica.

use std::time::{Duration, Instant};

use axum::http::Method;
use chrono::{TimeZone, Utc};
use momail_api_keys::account::Plan;
use momail_api_keys::clock::Clock;
use momail_api_keys::store::StoreError;
use serde_json::json;

use crate::support::{
    Database, Options, TestApp, on_both_stores, request, unknown_key, with_wrong_checksum, with_wrong_secret,
};

on_both_stores!(
    a_key_in_memory_is_not_read_again,
    a_bad_key_costs_one_look_at_the_database_and_one_that_cannot_be_a_key_none,
    from_its_end_on_a_key_opens_nothing_on_any_replica_though_it_is_in_memory,
    a_revoked_key_is_refused_by_every_replica_once_the_answer_is_out,
    an_operators_sql_is_heard_of_within_the_lease,
    a_change_of_very_many_keys_is_heard_of_as_one_of_all,
    keys_are_made_listed_and_used_without_a_change_that_others_must_hear_of,
    nothing_is_promised_when_nobody_can_say_who_is_to_be_waited_for,
    last_known_answers_stand_for_the_grace_and_no_longer,
);

const KEYS: &str = "/v1/api-keys";

pub(crate) async fn until_leased(app: &TestApp) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !app.app.auth.cache().unwrap().is_leased() {
        assert!(Instant::now() < deadline, "no lease");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn replicas(database: &Database) -> [TestApp; 3] {
    let replicas = [
        TestApp::with(database, Options::cached()).await,
        TestApp::with(database, Options::cached()).await,
        TestApp::with(database, Options::cached()).await,
    ];
    for replica in &replicas {
        until_leased(replica).await;
    }
    replicas
}

async fn a_key_in_memory_is_not_read_again(database: Database) {
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    until_leased(&app).await;
    for _ in 0..50 {
        assert_eq!(app.get(KEYS, &key).await.status, 200);
    }
    let usage = app.app.auth.cache().unwrap().usage();
    assert!(usage.keys == 1 && usage.hits >= 40 && usage.misses <= 10, "{usage:?}");
}

async fn a_bad_key_costs_one_look_at_the_database_and_one_that_cannot_be_a_key_none(database: Database) {
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    until_leased(&app).await;
    assert_eq!(app.get(KEYS, &key).await.status, 200);
    let looks = || app.app.auth.cache().unwrap().usage().misses;
    let table = [
        (String::new(), 0),
        ("mk_nonsense".to_owned(), 0),
        (with_wrong_checksum(&key), 0),
        (with_wrong_checksum(&unknown_key()), 0),
        (unknown_key(), 1),
        (with_wrong_secret(&key), 0),
    ];
    for (bad, cost) in table {
        let before = looks();
        assert_eq!(app.get(KEYS, &bad).await.status, 401);
        assert_eq!(looks() - before, cost, "{bad}");
    }
}

async fn from_its_end_on_a_key_opens_nothing_on_any_replica_though_it_is_in_memory(database: Database) {
    let clock = Clock::held(Utc.with_ymd_and_hms(2024, 1, 15, 12, 30, 0).unwrap());
    let mut replicas = Vec::new();
    for options in [Options::cached(), Options::default(), Options::cached()] {
        replicas.push(TestApp::at(&database, options, clock.clone()).await);
    }
    let key = replicas[0].key().await;
    let made = replicas[0].create(&key, json!({ "name": "short", "expirationDays": 1 })).await;
    let text = made["apiKey"].as_str().unwrap();
    clock.advance(Duration::from_secs(86_400) - Duration::from_millis(1));
    for replica in &replicas {
        if replica.app.auth.cache().is_some() {
            until_leased(replica).await;
        }
        for _ in 0..2 {
            assert_eq!(replica.get(KEYS, text).await.status, 200, "a millisecond before");
        }
    }
    clock.advance(Duration::from_millis(1));
    for replica in &replicas {
        let reply = replica.get(KEYS, text).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (401, "UNAUTHORIZED"));
        assert_eq!(reply.body["error"]["message"], "The API key expired at 2024-01-16T12:30:00.000Z.");
    }
    let usage = replicas[2].app.auth.cache().unwrap().usage();
    assert!(usage.hits > 0 && !usage.lease_left.is_zero(), "it was judged from memory: {usage:?}");
}

async fn a_revoked_key_is_refused_by_every_replica_once_the_answer_is_out(database: Database) {
    let replicas = replicas(&database).await;
    let key = replicas[0].account(Plan::Enterprise).await.1;
    for round in 0..30 {
        let made = replicas[round % 3].create(&key, json!({ "name": "doomed" })).await;
        let text = made["apiKey"].as_str().unwrap();
        for replica in &replicas {
            assert_eq!(replica.get(KEYS, text).await.status, 200);
            assert_eq!(replica.get(KEYS, text).await.status, 200);
        }
        let path = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
        assert_eq!(replicas[(round + 1) % 3].delete(&path, &key).await.status, 200);
        for replica in &replicas {
            assert_eq!(replica.get(KEYS, text).await.status, 401, "round {round}");
        }
    }
}

async fn an_operators_sql_is_heard_of_within_the_lease(database: Database) {
    let replicas = replicas(&database).await;
    let mut statements = vec!["update api_keys set revoked_at = created_at", "delete from key_secrets"];
    if database.is_postgres() {
        statements.push("truncate key_secrets");
    }
    for sql in statements {
        let key = replicas[0].key().await;
        for replica in &replicas {
            assert_eq!(replica.get(KEYS, &key).await.status, 200);
        }
        database.sql(sql).await;
        for replica in &replicas {
            // A request or two may still find the old state; after the lease none does.
            let deadline = Instant::now() + Duration::from_secs(10);
            while replica.get(KEYS, &key).await.status == 200 {
                assert!(Instant::now() < deadline, "{sql} is never heard of");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn a_change_of_very_many_keys_is_heard_of_as_one_of_all(database: Database) {
    const MANY: usize = 12_000;
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    until_leased(&app).await;
    assert_eq!(app.get(KEYS, &key).await.status, 200);
    let first = app.store.follow(None, uuid::Uuid::now_v7()).await.unwrap().latest;
    let (numbers, id, hash) = if database.is_postgres() {
        (format!("select generate_series(1, {MANY})"), "gen_random_uuid()", "sha256('none')")
    } else {
        (format!("select 1 union all select i + 1 from n where i < {MANY}"), "randomblob(16)", "randomblob(32)")
    };
    let fill = format!(
        "with recursive n(i) as ({numbers})
         insert into api_keys (id, account_id, name, created_at)
         select {id}, k.account_id, 'one of many', k.created_at from n, api_keys k;
         insert into key_secrets (prefix, key_id, hash, created_at)
         select substr('00000000' || row_number() over (), length('00000000' || row_number() over ()) - 7), id, {hash}, created_at
         from api_keys where name = 'one of many';"
    );
    database.sql(&fill).await;
    database.sql("update api_keys set revoked_at = created_at").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while app.get(KEYS, &key).await.status != 401 {
        assert!(Instant::now() < deadline, "it is never heard of");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nobody is made to read them all: whoever is so far behind forgets everything.
    let feed = app.store.follow(Some(first), uuid::Uuid::now_v7()).await.unwrap();
    assert!(!feed.is_complete && feed.changes.len() <= 10_001, "{}", feed.changes.len());
}

async fn keys_are_made_listed_and_used_without_a_change_that_others_must_hear_of(database: Database) {
    const COUNTED: &str = "select max(n) from change_feed";
    let mut app = TestApp::with(&database, Options::cached()).await;
    app.write_last_used();
    let key = app.key().await;
    until_leased(&app).await;
    let before = database.number(COUNTED).await;
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(app.create(&key, json!({ "name": format!("key {n}") })).await);
        assert_eq!(app.get(KEYS, made[n]["apiKey"].as_str().unwrap()).await.status, 200);
    }
    app.flush_last_used().await;
    assert_eq!(database.number("select count(*) from key_secrets where last_used_at is not null").await, 6);
    assert_eq!(database.number(COUNTED).await, before, "whoever makes or uses a key holds nobody up");
    let path = format!("{KEYS}/{}", made[0]["keyId"].as_str().unwrap());
    assert_eq!(app.delete(&path, &key).await.status, 200);
    assert_eq!(database.number(COUNTED).await, before + 1);
}

async fn nothing_is_promised_when_nobody_can_say_who_is_to_be_waited_for(database: Database) {
    // By a clock that runs: how long is waited is the point.
    let app = TestApp::at(&database, Options::cached(), Clock::system()).await;
    until_leased(&app).await;
    app.app.auth.settle().await.unwrap();
    app.store.close();
    let began = Instant::now();
    let outcome = app.app.auth.settle().await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

async fn last_known_answers_stand_for_the_grace_and_no_longer(database: Database) {
    let mut options = Options::cached();
    options.cache.as_mut().unwrap().stale_grace = Duration::from_secs(60);
    let app = TestApp::with(&database, options).await;
    let (known, unknown) = (app.key().await, app.key().await);
    until_leased(&app).await;
    let ask = async |key: &str| app.internal_send(request(Method::GET, "/forward-auth", key)).await.status;
    assert_eq!(ask(&known).await, 200);
    app.store.close();
    app.clock.advance(Duration::from_secs(30));
    assert_eq!((ask(&known).await.as_u16(), ask(&unknown).await.as_u16()), (200, 503));
    assert_eq!(app.app.auth.cache().unwrap().usage().stale, 1);
    app.clock.advance(Duration::from_secs(40));
    assert_eq!(ask(&known).await, 503);
}
