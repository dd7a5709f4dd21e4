//! What was acknowledged stays, whenever the process is killed, and however many write at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    Database, Ledger, Load, Options, Promises, Service, TestApp, accounts, is_long, json_request, on_both_stores,
    unlimited,
};

on_both_stores!(of_many_kills_none_breaks_a_promise);

const KEYS: &str = "/v1/api-keys";
const WRITERS: usize = 16;

async fn of_many_kills_none_breaks_a_promise(database: Database) {
    let keys = accounts(&database, WRITERS).await;
    let mut settings = unlimited(&database.url);
    // A revocation waits for the leases of those who were killed, and shall be answered before the next kill.
    settings.extend([("MOMAIL_AUTH__LEASE_MS", "20"), ("MOMAIL_AUTH__RENEW_MS", "5")]);
    let (mut all, mut cut_short) = (Promises::default(), 0);
    let mut service = Service::start(&settings);
    let kills = if is_long() { 200 } else { 10 };
    for _ in 0..kills {
        let ledger = Arc::new(Ledger::new());
        let load = Load::on_record(&ledger, &service.public, &keys, Duration::from_millis(2));
        ledger.wait_for(rand::random_range(20..120)).await;
        sleep(Duration::from_micros(rand::random_range(0..20_000))).await;
        service.kill();
        cut_short += load.end().await.events.iter().filter(|event| !event.succeeded).count();
        service = Service::start(&settings);
        let promises = ledger.promises();
        promises.assert_kept(&service.public).await;
        all.add(promises);
        database.assert_whole().await;
    }
    all.assert_kept(&service.public).await;
    assert_listed(&service, &keys, &database).await;
    eprintln!("{kills} kills, {:?} created and revoked, {cut_short} requests cut short", all.count());
    assert!(all.count().1 > kills && cut_short > kills);
}

/// Every key that is there and not revoked, acknowledged or not, is in its account's list.
async fn assert_listed(service: &Service, keys: &[String], database: &Database) {
    let mut listed = 0;
    for key in keys {
        let list = service.get(KEYS, key).await;
        let number = list.body["data"].as_array().unwrap().len();
        assert_eq!(list.body["meta"]["total"], number);
        listed += number;
    }
    let live = database.number("select count(*) from api_keys where revoked_at is null").await;
    assert_eq!(i64::try_from(listed).unwrap(), live);
}

#[tokio::test]
async fn whatever_the_umask_nobody_else_may_read_the_files() {
    for umask in ["000", "022", "077"] {
        let database = Database::sqlite();
        let service = Service::start_under(umask, &[("DATABASE_URL", &database.url)]);
        service.wait_until_ready_is(200).await;
        database.assert_private();
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
    let until = Instant::now() + Duration::from_secs(if is_long() { 60 } else { 4 });

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
    // Nothing takes longer than the bound of the store, however slow the disk is.
    assert!(times.len() > 64 && p99 < Duration::from_millis(3_500), "{p99:?}");
    // A slow disk may make the line too long. Nobody who stood in it found the file locked.
    assert_eq!(refused.into_inner(), app.store.connections().refused);
    let list = app.send(crate::support::request(Method::GET, KEYS, &writer)).await;
    assert_eq!(list.body["meta"]["total"], times.len() + 1);
}
