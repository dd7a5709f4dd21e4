//! The change feed: nothing holds it up, nothing is missed, and a number from another history is not taken for one of this.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axum::http::Method;
use momail_api_keys::account::Plan;
use momail_api_keys::store::{FeedPosition, Store, Subject};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::cache::{replicas, until_leased};
use crate::support::{Database, Options, TestApp, json_request, on_both_stores, setting};

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

const KEYS: &str = "/v1/api-keys";
const PATIENCE: Duration = Duration::from_secs(20);

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn latest(store: &Store) -> FeedPosition {
    store.follow(None, Uuid::nil()).await.unwrap().latest
}

fn prefix(key: &str) -> &str {
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

/// Opens a transaction of an operator's that changes an account's plan, and leaves it open.
async fn open_transaction(database: &Database, sql: &str) -> PgConnection {
    let mut session = database.postgres_session().await;
    sqlx::raw_sql(AssertSqlSafe(format!("begin; {sql}"))).execute(&mut session).await.unwrap();
    session
}

#[tokio::test]
async fn open_transaction_holds_up_no_other_account() {
    let database = Database::postgres().await;
    let [app, other, _third] = replicas(&database).await;
    let (busy, _) = app.account(Plan::Pro).await;
    let (_, key) = app.account(Plan::Enterprise).await;
    let made = app.create(&key, json!({ "name": "doomed" })).await;
    let text = made["apiKey"].as_str().unwrap();
    assert_eq!(other.get(KEYS, text).await.status, 200);
    let session =
        open_transaction(&database, &format!("update accounts set plan = 'free' where id = '{}'", busy.0)).await;
    let path = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
    assert_eq!(app.delete(&path, &key).await.status, 200, "an operator's transaction is open on another account");
    assert_eq!(other.get(KEYS, text).await.status, 401);
    session.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_of_one_key_never_deadlock() {
    const ROUNDS: usize = 30;
    let database = Database::postgres().await;
    let mut app = TestApp::with(&database, Options::cached()).await;
    app.write_last_used();
    let key = app.account(Plan::Enterprise).await.1;
    let made = app.create(&key, json!({ "name": "rotated" })).await;
    let path = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
    let ask = async |method: Method, path: String, body: Value, allowed: &[u16]| {
        for _ in 0..ROUNDS {
            let reply = app.send(json_request(method.clone(), &path, &key, body.to_string())).await;
            assert!(allowed.contains(&reply.status.as_u16()), "{method} {path}: {reply:?}");
        }
    };
    let rename = ask(Method::PATCH, path.clone(), json!({ "name": "renamed", "retireNow": true }), &[200]);
    let rotate = ask(Method::POST, format!("{path}/rotate"), json!({}), &[200, 409]);
    let disable = ask(Method::PATCH, path.clone(), json!({ "enabled": false, "retireNow": true }), &[200]);
    let touch = async {
        for round in 0..ROUNDS {
            let touch = format!(
                "with locked as (select prefix from key_secrets order by prefix for no key update)
                 update key_secrets s set last_used_at = s.created_at + make_interval(secs => {round})
                 from locked l where l.prefix = s.prefix"
            );
            database.sql(&touch).await;
        }
    };
    futures_util::join!(rename, rotate, disable, touch);
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(database.number(deadlocks).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_all_isolation_levels_are_followed() {
    const CHANGES: usize = 60;
    let database = Database::postgres().await;
    let app = TestApp::on(&database).await;
    let mut prefixes = Vec::new();
    for _ in 0..3 {
        let key = app.account(Plan::Enterprise).await.1;
        let mut of_account = Vec::new();
        for n in 0..CHANGES {
            let made = app.create(&key, json!({ "name": format!("key {n}") })).await;
            of_account.push(prefix(made["apiKey"].as_str().unwrap()).to_owned());
        }
        prefixes.push(of_account);
    }
    let expected: HashSet<_> = prefixes.iter().flatten().cloned().collect();
    let start = latest(&app.store).await;
    let sessions: Vec<_> = ["read committed", "repeatable read", "serializable"]
        .into_iter()
        .zip(prefixes)
        .map(|(level, prefixes)| {
            let url = database.url.clone();
            tokio::spawn(async move {
                let mut session = PgConnection::connect(&url).await.unwrap();
                for (n, prefix) in prefixes.iter().enumerate() {
                    // A savepoint that is rolled back takes its part of the change along, and nothing else.
                    let undone = "savepoint s; update accounts set plan = 'free'; rollback to savepoint s;";
                    let pause = if n % 7 == 0 { "select pg_sleep(0.01);" } else { "" };
                    let change = format!(
                        "begin isolation level {level}; {undone}
                         update key_secrets set retires_at = created_at where prefix = '{prefix}'; {pause} commit"
                    );
                    sqlx::raw_sql(AssertSqlSafe(change)).execute(&mut session).await.unwrap();
                }
                session.close().await.unwrap();
            })
        })
        .collect();
    let (mut position, mut seen, mut numbers) = (start, HashSet::new(), HashSet::new());
    loop {
        let are_done = sessions.iter().all(tokio::task::JoinHandle::is_finished);
        let feed = app.store.follow(Some(position), Uuid::nil()).await.unwrap();
        assert!(feed.is_complete, "{feed:?}");
        for (n, subject) in feed.changes {
            assert!(n > position.n && n <= feed.latest.n, "{n} came after {position:?} had been applied");
            let Subject::Secret(prefix) = subject else { panic!("an undone change was announced") };
            assert!(seen.insert(prefix.as_str().to_owned()), "{prefix} was announced twice");
            assert!(numbers.insert(n), "{n} was given twice");
        }
        position = feed.latest;
        if are_done {
            break;
        }
    }
    for session in sessions {
        session.await.unwrap();
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn large_commit_takes_one_number() {
    const ACCOUNTS: usize = 2_000;
    let database = Database::postgres().await;
    let app = TestApp::on(&database).await;
    let fill = format!(
        "insert into accounts (id, name, plan, created_at)
         select gen_random_uuid(), 'one of many', 'pro', now() from generate_series(1, {ACCOUNTS})"
    );
    database.sql(&fill).await;
    let before = latest(&app.store).await;
    database.sql("update accounts set plan = 'free'").await;
    let feed = app.store.follow(Some(before), Uuid::nil()).await.unwrap();
    assert_eq!((feed.latest.n, feed.changes.len(), feed.is_complete), (before.n + 1, ACCOUNTS, true));
}

#[tokio::test]
async fn sqlite_replace_is_announced() {
    let statements = [
        "replace into key_secrets (prefix, key_id, hash, created_at)
         select prefix, key_id, randomblob(32), created_at from key_secrets where prefix = '{prefix}'",
        "insert or replace into key_secrets (prefix, key_id, hash, created_at, retires_at)
         select prefix, key_id, hash, created_at, created_at from key_secrets where prefix = '{prefix}'",
        "update or replace key_secrets set prefix = '{prefix}' where prefix = '{other}'",
        "insert into key_secrets (prefix, key_id, hash, created_at) select prefix, key_id, hash, created_at
         from key_secrets where prefix = '{prefix}' on conflict (prefix) do update set hash = randomblob(32)",
        "replace into key_secrets (rowid, prefix, key_id, hash, created_at)
         select rowid, 'zzzzzzzz', key_id, hash, created_at from key_secrets where prefix = '{prefix}'",
        "replace into api_keys (id, account_id, name, created_at, revoked_at)
         select id, account_id, name, created_at, created_at from api_keys
         where id = (select key_id from key_secrets where prefix = '{prefix}')",
        "update or replace api_keys set id = (select key_id from key_secrets where prefix = '{prefix}'), revoked_at = created_at
         where name = 'spare'",
    ];
    for foreign_keys in ["off", "on"] {
        for statement in statements {
            let database = Database::sqlite();
            let app = TestApp::with(&database, Options::cached()).await;
            let (key, other) = (app.key().await, app.key().await);
            until_leased(&app).await;
            for key in [&key, &other] {
                assert_eq!(app.get(KEYS, key).await.status, 200);
            }
            let spare = "insert into api_keys (id, account_id, name, created_at)
                 select randomblob(16), account_id, 'spare', created_at from api_keys limit 1";
            let statement = statement.replace("{prefix}", prefix(&key)).replace("{other}", prefix(&other));
            database.sql(&format!("{spare}; pragma foreign_keys = {foreign_keys}; {statement}")).await;
            let is_refused = async || app.get(KEYS, &key).await.status == 401;
            until(&format!("foreign keys {foreign_keys}: {statement}"), is_refused).await;
        }
    }
}

#[tokio::test]
async fn sqlite_replaced_account_is_announced() {
    let database = Database::sqlite();
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    until_leased(&app).await;
    assert_eq!(app.get(KEYS, &key).await.body["data"][0]["plan"], "pro");
    database
        .sql("replace into accounts (id, name, plan, created_at) select id, name, 'free', created_at from accounts")
        .await;
    until("the plan is free", async || app.get(KEYS, &key).await.body["data"][0]["plan"] == "free").await;
}
