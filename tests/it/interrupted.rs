//! A signal to stop while something is half done: a write that the database holds up, and a start that has not ended.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join;
use rand::RngExt;
use serde_json::json;
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::support::{
    Connection, Database, Hold, Service, accounts, is_long, json_request, on_both_stores, request, unlimited,
};

on_both_stores!(
    a_write_that_is_held_up_during_a_stop_is_acknowledged_and_there_or_whole_or_absent,
    a_start_that_is_told_to_stop_at_any_moment_stops_and_the_next_one_succeeds,
    a_start_that_waits_for_somebodys_lock_can_be_stopped_and_keeps_no_lock,
);

const KEYS: &str = "/v1/api-keys";
/// Five seconds, and what a busy machine may add.
const LONGEST_STOP: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

async fn a_write_that_is_held_up_during_a_stop_is_acknowledged_and_there_or_whole_or_absent(database: Database) {
    let key = accounts(&database, 1).await.remove(0);
    let (mut acknowledged, mut carried_out) = (0, 0);
    let rounds = if is_long() { 100 } else { 6 };
    for n in 0..rounds {
        // Every second one has a grace that does not last until the lock is free.
        let grace = if n % 2 == 0 { "25000" } else { "200" };
        let stop = [("MOMAIL_SERVER__DRAIN_DELAY_MS", "0"), ("MOMAIL_SERVER__GRACE_MS", grace)];
        let mut service = Service::start(&[&unlimited(&database.url)[..], &stop].concat());
        service.wait_until_ready_is(200).await;
        let mut connection = Connection::open(&service.public).await.unwrap();
        assert_eq!(connection.send(request(Method::GET, KEYS, &key)).await.unwrap().status, 200);
        let hold = Hold::on(&database).await;
        let name = format!("round {n}");
        let write = connection.send(json_request(Method::POST, KEYS, &key, json!({ "name": name }).to_string()));
        let stop = async {
            sleep(Duration::from_millis(rand::rng().random_range(30..150))).await;
            service.signal("TERM");
            sleep(Duration::from_millis(rand::rng().random_range(0..700))).await;
            hold.release().await;
        };
        let (reply, ()) = join(write, stop).await;
        let status = block_in_place(|| service.wait());
        assert!(status.success(), "{status} {}", service.logs());

        let made = database.number(&format!("select count(*) from api_keys where name = '{name}'")).await;
        match reply.map(|reply| (reply.status.as_u16(), reply)) {
            Ok((201, reply)) => {
                acknowledged += 1;
                assert_eq!(made, 1, "round {n}: it was acknowledged");
                let prefix = &reply.body["data"]["apiKey"].as_str().unwrap()[3..11];
                let secrets = format!("select count(*) from key_secrets where prefix = '{prefix}'");
                assert_eq!(database.number(&secrets).await, 1, "round {n}");
            }
            Ok((status, reply)) => assert_eq!(status, 503, "round {n}: {reply:?}"),
            Err(_) => (),
        }
        carried_out += made;
        assert!(made <= 1, "round {n}: {made}");
    }
    let halves =
        "select count(*) from api_keys k where (select count(*) from key_secrets s where s.key_id = k.id) <> 1";
    assert_eq!(database.number(halves).await, 0);
    let wrong_counts = "select count(*) from accounts a
        where live_keys <> (select count(*) from api_keys k where k.account_id = a.id and k.revoked_at is null)";
    assert_eq!(database.number(wrong_counts).await, 0);
    eprintln!("{acknowledged} of {rounds} were acknowledged, {carried_out} were carried out");
    assert!(acknowledged > 0, "the cases are not what they seem");
}

/// A database that has no tables yet.
async fn without_tables(database: &Database) -> Database {
    if database.is_postgres() { Database::empty_postgres().await } else { Database::sqlite() }
}

async fn a_start_that_is_told_to_stop_at_any_moment_stops_and_the_next_one_succeeds(database: Database) {
    for n in 0..if is_long() { 20 } else { 5 } {
        let empty = without_tables(&database).await;
        let mut service = Service::spawn(&unlimited(&empty.url));
        sleep(Duration::from_millis(rand::rng().random_range(0..300))).await;
        let told = Instant::now();
        service.signal("TERM");
        let status = block_in_place(|| service.wait());
        let took = told.elapsed();
        // Told before it listens for signals, it is ended by the system.
        let logs = service.logs();
        assert!(status.success() || (status.code().is_none() && logs.is_empty()), "round {n}: {status} {logs}");
        assert!(took < LONGEST_STOP, "round {n}: {took:?}");
        wait_until_nobody_migrates(&empty).await;
        let next = Service::start(&unlimited(&empty.url));
        next.wait_until_ready_is(200).await;
        let versions = empty.number("select count(*) - max(version) from _sqlx_migrations where success").await;
        assert_eq!(versions, 0, "round {n}");
    }
}

async fn a_start_that_waits_for_somebodys_lock_can_be_stopped_and_keeps_no_lock(database: Database) {
    for _ in 0..if is_long() { 10 } else { 2 } {
        let empty = without_tables(&database).await;
        // Somebody else is about to make the first table, and takes their time.
        let hold = if database.is_postgres() {
            let mut session = empty.postgres_session().await;
            sqlx::raw_sql("begin; create table _sqlx_migrations (version bigint primary key)")
                .execute(&mut session)
                .await
                .unwrap();
            Hold::Postgres(session)
        } else {
            // The file is made, and nothing in it.
            empty.open().close();
            Hold::on(&empty).await
        };
        let mut service = Service::spawn(&unlimited(&empty.url));
        if database.is_postgres() {
            let waits = "select 1 - count(*) from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'";
            wait_until_none(&empty, waits).await;
        } else {
            // It has something to say as soon as it hears of signals.
            let deadline = Instant::now() + PATIENCE;
            while service.logs().is_empty() && Instant::now() < deadline {
                sleep(Duration::from_millis(10)).await;
            }
            sleep(Duration::from_millis(300)).await;
        }
        let told = Instant::now();
        service.signal("TERM");
        let status = block_in_place(|| service.wait());
        assert!(status.success(), "{status} {}", service.logs());
        assert!(told.elapsed() < LONGEST_STOP, "{:?}", told.elapsed());
        wait_until_nobody_migrates(&empty).await;
        eprintln!("no lock is left after {:?}", told.elapsed());
        assert!(told.elapsed() < LONGEST_STOP, "{:?}", told.elapsed());
        hold.release().await;
        let next = Service::start(&unlimited(&empty.url));
        next.wait_until_ready_is(200).await;
    }
}

async fn wait_until_nobody_migrates(database: &Database) {
    if database.is_postgres() {
        let locks = "select count(*) from pg_locks
            where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
        wait_until_none(database, locks).await;
    }
}

async fn wait_until_none(database: &Database, sql: &str) {
    let deadline = Instant::now() + PATIENCE;
    while database.number(sql).await != 0 {
        assert!(Instant::now() < deadline, "{sql}");
        sleep(Duration::from_millis(20)).await;
    }
}
