//! The change feed: nothing holds it up, nothing is missed, and a number from another history is not taken for one of this.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use momail_api_keys::account::Plan;
use momail_api_keys::store::{FeedPosition, Store};
use serde_json::json;
use uuid::Uuid;

use crate::cache::{replicas, until_leased};
use crate::support::{Database, Options, TestApp, on_both_stores, setting};

on_both_stores!(
    cached_keys_survive_an_expired_lease,
    bulk_plan_change_is_applied_in_one_pass,
    rename_and_empty_update_change_no_feed,
    restored_backup_is_noticed_despite_equal_numbers,
    replica_is_kept_despite_a_clock_step,
    silent_replica_is_removed_after_a_minute,
    replica_registers_with_nothing_applied,
    progress_of_another_history_is_ignored,
    trimmed_feed_keeps_its_last_change,
    earlier_version_reads_the_feed,
);

pub(crate) const KEYS: &str = "/v1/api-keys";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn latest(store: &Store) -> FeedPosition {
    store.follow(None, Uuid::nil()).await.unwrap().latest
}

pub(crate) fn prefix(key: &str) -> &str {
    &key[3..11]
}

async fn cached_keys_survive_an_expired_lease(database: Database) {
    let app = TestApp::with(&database, Options::cached()).await;
    let (owner, key) = app.account(Plan::Pro).await;
    let doomed = app.create(&key, json!({ "name": "doomed" })).await;
    until_leased(&app).await;
    let doomed = doomed["apiKey"].as_str().unwrap();
    for key in [&key, doomed] {
        assert_eq!(app.get(KEYS, key).await.status, 200);
    }
    let cache = app.app.auth.cache().unwrap();
    let before = cache.usage();
    assert_eq!(before.keys, 2, "{owner}");
    // As after a stall of a minute in which one key was changed.
    app.clock.advance(Duration::from_secs(25));
    let revoke = format!("update key_secrets set retires_at = created_at where prefix = '{}'", prefix(doomed));
    database.sql(&revoke).await;
    app.clock.advance(Duration::from_secs(25));
    until_leased(&app).await;
    assert_eq!((app.get(KEYS, &key).await.status.as_u16(), app.get(KEYS, doomed).await.status.as_u16()), (200, 401));
    let after = cache.usage();
    assert_eq!(after.misses - before.misses, 1, "only the changed key was read again: {before:?} {after:?}");
}

async fn bulk_plan_change_is_applied_in_one_pass(database: Database) {
    const ACCOUNTS: usize = 300;
    let mut options = Options::cached();
    options.cache.as_mut().unwrap().max_keys = 10_000;
    let app = TestApp::with(&database, options).await;
    let mut keys = Vec::new();
    for _ in 0..ACCOUNTS {
        keys.push(app.account(Plan::Free).await.1);
    }
    until_leased(&app).await;
    for key in &keys {
        assert_eq!(app.get(KEYS, key).await.body["data"][0]["plan"], "free");
    }
    database.sql("update accounts set plan = 'pro'").await;
    for key in &keys {
        until("the plan is changed", async || app.get(KEYS, key).await.body["data"][0]["plan"] == "pro").await;
    }
    let feed = app.store.follow(Some(latest(&app.store).await), Uuid::nil()).await.unwrap();
    assert!(feed.is_complete && feed.changes.is_empty(), "{feed:?}");
}

async fn rename_and_empty_update_change_no_feed(database: Database) {
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "one", "permissions": ["domains:read"] })).await;
    let path = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
    let before = latest(&app.store).await;
    for body in [json!({ "name": "two" }), json!({ "enabled": true }), json!({ "permissions": ["domains:read"] })] {
        assert_eq!(app.patch(&path, &key, &body).await.status, 200);
        assert_eq!(latest(&app.store).await, before, "{body} makes no cached key untrue");
    }
    assert_eq!(app.patch(&path, &key, &json!({ "enabled": false })).await.status, 200);
    assert_eq!(latest(&app.store).await.n, before.n + 1);
}

/// Brings a database back to what it was when `backup` was made, while services run on it.
fn restore(database: &Database, backup: &[u8]) {
    if database.is_postgres() {
        let drop_all = "drop schema public cascade; create schema public";
        let script = [b"begin;", drop_all.as_bytes(), b";\n", backup, b"\ncommit;"].concat();
        let program = std::path::Path::new(&setting("TEST_POSTGRES_BIN")).join("psql");
        run(Command::new(program).args(["-q", "-v", "ON_ERROR_STOP=1"]).arg(&database.url), &script);
    } else {
        let copy = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(copy.path(), backup).unwrap();
        let script = format!(".timeout 10000\n.restore {}\n", copy.path().display());
        run(Command::new("sqlite3").arg(database.path()), script.as_bytes());
    }
}

fn back_up(database: &Database) -> Vec<u8> {
    if database.is_postgres() {
        return database.dump();
    }
    let copy = tempfile::NamedTempFile::new().unwrap();
    let script = format!(".backup {}\n", copy.path().display());
    run(Command::new("sqlite3").arg(database.path()), script.as_bytes());
    std::fs::read(copy.path()).unwrap()
}

fn run(command: &mut Command, input: &[u8]) {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
}

async fn restored_backup_is_noticed_despite_equal_numbers(database: Database) {
    let app = TestApp::with(&database, Options::cached()).await;
    let (_, key) = app.account(Plan::Pro).await;
    let made = app.create(&key, json!({ "name": "revoked after the restore" })).await;
    let victim = made["apiKey"].as_str().unwrap();
    until_leased(&app).await;
    let backup = back_up(&database);
    let revoke = |prefix: &str| {
        format!(
            "update api_keys set revoked_at = created_at where id = (select key_id from key_secrets where prefix = '{prefix}')"
        )
    };
    // So many changes are lost in the restore.
    for n in 0..3 {
        let lost = app.create(&key, json!({ "name": format!("lost {n}") })).await;
        database.sql(&revoke(prefix(lost["apiKey"].as_str().unwrap()))).await;
    }
    let lost = latest(&app.store).await;
    until("the changes are applied", async || {
        app.store.followers().await.unwrap().replicas.iter().all(|(applied, _)| *applied >= lost.n)
    })
    .await;
    assert_eq!(app.get(KEYS, victim).await.status, 200);
    // Nothing is polled while the history is exchanged and as many changes are made as were lost.
    app.clock.advance(Duration::from_secs(5));
    restore(&database, &backup);
    database.sql(&revoke(prefix(victim))).await;
    for plan in ["free", "enterprise"] {
        database.sql(&format!("update accounts set plan = '{plan}'")).await;
    }
    let now = latest(&app.store).await;
    assert_eq!(now.n, lost.n, "the numbers are the same");
    assert_ne!(now.id, lost.id, "the histories are not");
    app.clock.advance(Duration::from_secs(5));
    until("the revoked key is refused", async || app.get(KEYS, victim).await.status == 401).await;
    until_leased(&app).await;
    assert_eq!(app.get(KEYS, victim).await.status, 401);
}

async fn replica_is_kept_despite_a_clock_step(database: Database) {
    let [one, other, _third] = replicas(&database).await;
    let replace = if database.is_postgres() {
        "create or replace view database_clock as
             select (extract(epoch from clock_timestamp()) * 1000)::bigint + 900000000 as ms"
    } else {
        "drop view database_clock;
         create view database_clock as select cast(unixepoch('subsec') * 1000 as integer) + 900000000 as ms"
    };
    database.sql(replace).await;
    let registered = "select count(*) from replicas where beats >= 1";
    // The others do not get to their heartbeats, since their clocks stand.
    one.clock.advance(Duration::from_secs(25));
    until("a heartbeat is given", async || database.number(registered).await == 1).await;
    one.clock.advance(Duration::from_secs(25));
    until("another is", async || database.number("select count(*) from replicas where beats >= 2").await == 1).await;
    assert_eq!(database.number("select count(*) from replicas").await, 3, "no clock says that they are silent");
    let key = one.key().await;
    assert_eq!(other.get(KEYS, &key).await.status, 200);
}

async fn silent_replica_is_removed_after_a_minute(database: Database) {
    let [one, other, third] = replicas(&database).await;
    drop(third);
    let beat = async |times: i64| {
        let beats = format!("select count(*) from replicas where beats >= {times}");
        for replica in [&one, &other] {
            replica.clock.advance(Duration::from_secs(11));
        }
        until("two replicas give a heartbeat", async || database.number(&beats).await == 2).await;
    };
    for times in 1..=5 {
        beat(times).await;
    }
    assert_eq!(database.number("select count(*) from replicas").await, 3, "55 seconds are not a minute");
    for times in 6..=7 {
        beat(times).await;
    }
    until("the silent one is removed", async || database.number("select count(*) from replicas").await == 2).await;
    until("with its progress", async || {
        let orphans = "select count(*) from replica_progress where replica_id not in (select id from replicas)";
        database.number(orphans).await == 0
    })
    .await;
}

async fn replica_registers_with_nothing_applied(database: Database) {
    let store = database.open();
    store.migrate().await.unwrap();
    let (replica, position) = (Uuid::now_v7(), latest(&store).await);
    let applied = async || store.followers().await.unwrap().replicas[0].0;
    store.register_replica(replica, 1_000).await.unwrap();
    assert_eq!(applied().await, -1);
    store.report_progress(replica, position, true).await.unwrap();
    assert_eq!(applied().await, position.n);
    store.register_replica(replica, 1_000).await.unwrap();
    assert_eq!(applied().await, -1, "what it had applied may have been in another history");
}

async fn progress_of_another_history_is_ignored(database: Database) {
    let store = database.open();
    store.migrate().await.unwrap();
    let (replica, position) = (Uuid::now_v7(), latest(&store).await);
    store.register_replica(replica, 1_000).await.unwrap();
    let other = FeedPosition { id: Uuid::now_v7(), ..position };
    for as_before in [false, true] {
        store.report_progress(replica, other, as_before).await.unwrap();
        assert_eq!(store.followers().await.unwrap().replicas[0].0, -1);
    }
    store.report_progress(replica, position, false).await.unwrap();
    assert_eq!(store.followers().await.unwrap().replicas[0].0, position.n);
    store.deregister_replica(replica).await.unwrap();
    store.report_progress(replica, position, false).await.unwrap();
    assert_eq!(database.number("select count(*) from replica_progress").await, 0);
}

async fn trimmed_feed_keeps_its_last_change(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, _) = app.account(Plan::Pro).await;
    let first = latest(&app.store).await;
    app.set_plan(account, Plan::Free).await;
    // As if ten thousand others had come between.
    database.sql(&format!("update change_feed set n = n + 20000 where n > {}", first.n)).await;
    app.store.trim_changes().await.unwrap();
    assert_eq!(database.number("select count(*) from change_feed").await, 1);
    assert_eq!(database.number("select count(*) from changed where account_id is not null").await, 1);
    app.store.trim_changes().await.unwrap();
    let last = latest(&app.store).await;
    assert_eq!(last.n, first.n + 20_001);
    assert!(!app.store.follow(Some(first), Uuid::nil()).await.unwrap().is_complete);
}

/// The statements with which replicas of the version before follow the feed, word for word.
async fn earlier_version_reads_the_feed(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, key) = app.account(Plan::Pro).await;
    let id = if database.is_postgres() { "gen_random_uuid()" } else { "randomblob(16)" };
    let register = format!(
        "insert into replicas (id, applied, lease_ms, renewed_ms)
         select {id}, (select n from change_counter), 1000, ms from database_clock
         where true
         on conflict (id) do update set applied = excluded.applied, lease_ms = excluded.lease_ms, renewed_ms = excluded.renewed_ms"
    );
    database.sql(&register).await;
    let before = database.number("select n from change_counter").await;
    app.set_plan(account, Plan::Free).await;
    let secret = format!("update key_secrets set retires_at = created_at where prefix = '{}'", prefix(&key));
    database.sql(&secret).await;
    let followed =
        |column: &str| format!("select count({column}) from change_counter c left join changes f on f.n > {before}");
    assert_eq!(database.number(&followed("f.account_id")).await, 1);
    assert_eq!(database.number(&followed("f.prefix")).await, 1);
    let oldest = database.number("select coalesce((select min(n) from changes), 0)").await;
    assert!((1..=before + 1).contains(&oldest), "{oldest} after {before}");
    assert_eq!(database.number("select n from change_counter").await, before + 2);
    database.sql("delete from changes where n <= (select n from change_counter) - 10000").await;
    database.sql("update replicas set applied = (select n from change_counter), renewed_ms = renewed_ms + 1").await;
    assert_eq!(app.store.followers().await.unwrap().replicas[0].0, before + 2);
    // What this version writes for those beside it.
    let feed = app.store.follow(None, Uuid::nil()).await.unwrap();
    assert!(feed.has_earlier_replicas);
    let replica = Uuid::now_v7();
    app.store.register_replica(replica, 1_000).await.unwrap();
    app.store.report_progress(replica, feed.latest, feed.has_earlier_replicas).await.unwrap();
    let standing = "select count(*) from change_counter c left join replicas r on true where r.applied >= c.n";
    assert_eq!(database.number(standing).await, 2, "a change of an earlier replica waits for no lease");
    if database.is_postgres() {
        database.sql("truncate key_secrets").await;
        assert_eq!(database.number("select count(*) from changes").await, 0, "they forget everything");
        assert_eq!(database.number("select n from change_counter").await, before + 3);
    }
}
