//! What was acknowledged stays, whenever the process is killed, and however many write at once.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    Database, Load, Options, Promises, Service, TestApp, accounts, json_request, on_both_stores, unlimited,
};

on_both_stores!(of_fifty_kills_none_breaks_a_promise);

const KEYS: &str = "/v1/api-keys";

async fn of_fifty_kills_none_breaks_a_promise(database: Database) {
    let keys = accounts(&database, 4).await;
    let mut settings = unlimited(&database.url);
    // A revocation waits for the leases of those who were killed, and shall be answered before the next kill.
    settings.extend([("MOMAIL_AUTH__LEASE_MS", "20"), ("MOMAIL_AUTH__RENEW_MS", "5")]);
    let mut all = Promises::default();
    let mut service = Service::start(&settings);
    for _ in 0..50 {
        let load = Load::start(&service.public, &keys, Duration::from_millis(2));
        sleep(Duration::from_millis(rand::random_range(20..200))).await;
        service.kill();
        let promises = load.end().await;
        service = Service::start(&settings);
        promises.assert_kept(&service.public).await;
        all.add(promises);
        assert_whole(&database).await;
    }
    all.assert_kept(&service.public).await;
    let cut_short = all.events.iter().filter(|event| !event.succeeded).count();
    eprintln!("{:?} created and revoked, {cut_short} requests cut short", all.count());
    assert!(all.count().1 > 50 && cut_short > 50);
}

/// There is no half of anything, and nobody else may read the files.
async fn assert_whole(database: &Database) {
    let faults = [
        // A key that was not acknowledged is there with its one secret, once, and counted, or it is not there.
        "select count(*) from api_keys k where (select count(*) from key_secrets s where s.key_id = k.id) <> 1",
        "select count(*) - count(distinct name) from api_keys where name <> 'first key'",
        "select count(*) from accounts a
         where live_keys <> (select count(*) from api_keys k where k.account_id = a.id and k.revoked_at is null)",
    ];
    for fault in faults {
        assert_eq!(database.number(fault).await, 0, "{fault}");
    }
    if database.is_postgres() {
        return;
    }
    let fault = "select count(*) from pragma_integrity_check where integrity_check <> 'ok'";
    assert_eq!(database.number(fault).await, 0);
    assert_eq!(database.number("select count(*) from pragma_foreign_key_check").await, 0);
    for suffix in ["", "-wal", "-shm"] {
        let path = format!("{}{suffix}", database.path().display());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writers_and_their_readers_never_find_sqlite_locked() {
    let mut options = Options::default();
    options.plans.enterprise.max_keys = 1_000_000;
    let database = Database::sqlite();
    let app = TestApp::with(&database, options).await;
    let (writer, reader) = (app.account(Plan::Enterprise).await.1, app.account(Plan::Enterprise).await.1);
    let (done, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(4);

    let writers = async {
        let times = join_all((0..64).map(async |_| {
            let mut times = Vec::new();
            while Instant::now() < until {
                let began = Instant::now();
                let body = json!({ "name": "one of very many" }).to_string();
                let reply = app.send(json_request(Method::POST, KEYS, &writer, body)).await;
                if reply.status == 201 {
                    times.push(began.elapsed());
                } else {
                    assert_eq!(reply.status, 503, "{reply:?}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            times
        }));
        let times = times.await;
        done.store(true, Ordering::Relaxed);
        times
    };
    let readers = join_all((0..4).map(async |_| {
        let mut reads = 0;
        while !done.load(Ordering::Relaxed) {
            assert_eq!(app.get(KEYS, &reader).await.status, 200);
            reads += 1;
        }
        reads
    }));
    let (times, reads) = tokio::join!(writers, readers);
    let mut times: Vec<_> = times.into_iter().flatten().collect();
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    eprintln!("{} creates, p99 {p99:?}; {} reads", times.len(), reads.iter().sum::<u32>());
    assert!(times.len() > 64 && p99 < Duration::from_secs(2), "{p99:?}");
    // A slow disk may make the line too long. Nobody who stood in it found the file locked.
    assert_eq!(refused.into_inner(), app.store.connections().refused);
    let list = app.send(crate::support::request(Method::GET, KEYS, &writer)).await;
    assert_eq!(list.body["meta"]["total"], times.len() + 1);
}
