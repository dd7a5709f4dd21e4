//! The order of changes in PostgreSQL: no transaction holds up another account, and none is missed, whatever runs at once.

use std::collections::HashSet;

use axum::http::Method;
use momail_api_keys::account::Plan;
use momail_api_keys::store::Subject;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::cache::replicas;
use crate::change_feed::{KEYS, latest, prefix};
use crate::support::{Database, Options, TestApp, json_request};

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
