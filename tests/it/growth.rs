//! Many keys: looked up through indexes, revoked at once, and asked for all together by a replica that has just started.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use momail_api_keys::secret::Prefix;
use serde_json::json;
use sqlx::postgres::PgListener;
use tokio::time::{sleep, timeout};

use crate::support::{Connection, Database, Service, TestApp, is_long, json_request, request, unlimited};

const KEYS: &str = "/v1/api-keys";
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives the newest account so many more keys, without the work of counting them one by one. Their prefixes are numbers, from
/// `first` on.
async fn add_keys(database: &Database, first: u32, number: u32) {
    let last = first + number - 1;
    let sql = format!(
        "begin;
         alter table api_keys disable trigger user;
         create temporary table made on commit drop as
             select gen_random_uuid() as id, lpad(n::text, 8, '0') as prefix, a.id as account_id
             from generate_series({first}, {last}) n cross join (select id from accounts order by id desc limit 1) a;
         insert into api_keys (id, account_id, name, created_at) select id, account_id, 'many', now() from made;
         insert into key_secrets (prefix, key_id, hash, created_at)
             select prefix, id, sha256(prefix::bytea), now() from made;
         update accounts set live_keys = live_keys + {number} where id in (select account_id from made);
         alter table api_keys enable trigger user;
         commit"
    );
    database.sql(&sql).await;
    // In a session of its own: it takes no transaction.
    database.sql("vacuum analyze").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_a_hundred_thousand_keys_each_is_found_through_an_index() {
    let database = Database::postgres().await;
    let app = TestApp::on(&database).await;
    let owner = app.account(Plan::Pro).await.0;
    add_keys(&database, 1, 100_000).await;
    let other = app.account(Plan::Pro).await.0;
    app.store.close();
    let scans = async |kind: &str| {
        let sum =
            format!("select sum({kind})::bigint from pg_stat_user_tables where relname in ('api_keys', 'key_secrets')");
        database.number(&sum).await
    };
    // Sessions report what they have done when they end.
    let sessions =
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let until_reported = async || {
        let deadline = Instant::now() + PATIENCE;
        while database.number(sessions).await > 0 {
            assert!(Instant::now() < deadline, "the sessions do not end");
            sleep(Duration::from_millis(20)).await;
        }
    };
    until_reported().await;
    let (sequential, by_index) = (scans("seq_scan").await, scans("idx_scan").await);

    let store = database.open();
    let prefix = Prefix::parse("00054321").unwrap();
    for _ in 0..10 {
        assert_eq!(store.find_credential(prefix).await.unwrap().unwrap().account_id, owner);
        assert_eq!(store.list_keys(other).await.unwrap().len(), 1);
    }
    store.close();
    until_reported().await;
    let (sequential, by_index) = (scans("seq_scan").await - sequential, scans("idx_scan").await - by_index);
    assert!(sequential == 0 && by_index >= 40, "{sequential} times all keys were read, {by_index} times an index");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_are_revoked_by_one_statement() {
    let database = Database::postgres().await;
    let key = Service::create_account(&database.url, "enterprise");
    add_keys(&database, 1, 10_000).await;
    let service = Service::start(&[&unlimited(&database.url)[..], &[("MOMAIL_AUTH__CACHE", "lease")]].concat());
    service.wait_until_ready_is(200).await;
    for _ in 0..5 {
        assert_eq!(service.get(KEYS, &key).await.status, 200);
    }
    let began = Instant::now();
    database.sql("update api_keys set revoked_at = now()").await;
    eprintln!("revoked after {:?}", began.elapsed());
    // The lease, and what clocks may differ by.
    sleep(Duration::from_millis(1_020)).await;
    assert_eq!(service.get(KEYS, &key).await.status, 401);
    let live = "select count(*) from accounts where live_keys <> 0";
    assert_eq!(database.number(live).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_under_load_reads_each_key_once() {
    const CLIENTS: usize = 500;
    const DISTINCT: usize = 50;
    let database = Database::postgres().await;
    let first = Service::create_account(&database.url, "enterprise");
    let settings = [&unlimited(&database.url)[..], &[("MOMAIL_AUTH__CACHE", "lease")]].concat();
    let maker = Service::start(&settings);
    maker.wait_until_ready_is(200).await;
    let mut connection = Connection::open(&maker.public).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..DISTINCT {
        let create = json_request(Method::POST, KEYS, &first, json!({ "name": "one of many" }).to_string());
        let reply = connection.send(create).await.unwrap();
        keys.push(reply.body["data"]["apiKey"].as_str().unwrap().to_owned());
    }
    for waits_for_lease in [false, true] {
        let service = Service::start(&settings);
        if waits_for_lease {
            service.wait_until_leased().await;
        }
        let connections = join_all((0..CLIENTS).map(|_| Connection::open(&service.internal))).await;
        let requests = connections.into_iter().enumerate().map(async |(n, connection)| {
            let began = Instant::now();
            let reply =
                connection.unwrap().send(request(Method::GET, "/forward-auth", &keys[n % DISTINCT])).await.unwrap();
            assert_eq!(reply.status, 200, "{reply:?}");
            began.elapsed()
        });
        let mut times = join_all(requests).await;
        times.sort_unstable();
        let reads = service.metric("cache_misses_total", &[]).await;
        eprintln!("{reads} reads; answered after {:?} (median) to {:?}", times[CLIENTS / 2], times[CLIENTS - 1]);
        // Without a lease nobody may go by another's read, so each does its own.
        let most: u32 = if waits_for_lease { 100 } else { 500 };
        assert!(reads <= f64::from(most), "{reads} reads");
        assert!(times[CLIENTS - 1] < Duration::from_secs(5), "{times:?}");
    }
}

/// An account of a thousand keys, among so many others.
async fn thousand_keys(database: &Database, others: u32) -> (TestApp, String) {
    let app = TestApp::on(database).await;
    if others > 0 {
        app.account(Plan::Enterprise).await;
        add_keys(database, 1_001, others).await;
    }
    let key = app.account(Plan::Enterprise).await.1;
    add_keys(database, 1, 1_000).await;
    (app, key)
}

/// How long a look-up of any key takes, and a page of the account's list: a quick one and the slowest of a hundred.
async fn times(app: &TestApp, key: &str, keys: u32) -> [(Duration, Duration); 2] {
    let (mut finds, mut pages) = (Vec::new(), Vec::new());
    for _ in 0..if is_long() { 200 } else { 20 } {
        let prefix = Prefix::parse(&format!("{:08}", rand::random_range(1..=keys))).unwrap();
        let began = Instant::now();
        assert!(app.store.find_credential(prefix).await.unwrap().is_some());
        finds.push(began.elapsed());
        let began = Instant::now();
        let page = app.get(&format!("{KEYS}?limit=20&offset={}", rand::random_range(0..900)), key).await;
        assert_eq!(page.body["data"].as_array().unwrap().len(), 20);
        pages.push(began.elapsed());
    }
    [finds, pages].map(|mut times| {
        times.sort_unstable();
        (times[times.len() / 10], times[times.len() * 99 / 100])
    })
}

fn keep_best(best: &mut [(Duration, Duration); 2], now: [(Duration, Duration); 2]) {
    for (best, now) in best.iter_mut().zip(now) {
        *best = (best.0.min(now.0), best.1.min(now.1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_very_many_keys_look_ups_and_pages_take_as_long_as_among_few() {
    let others = if is_long() { 999_000 } else { 49_000 };
    let (few, many) = (Database::postgres().await, Database::postgres().await);
    let ((app, key), (large_app, large_key)) = (thousand_keys(&few, 0).await, thousand_keys(&many, others).await);
    let (mut among_few, mut among_many) = ([(Duration::MAX, Duration::MAX); 2], [(Duration::MAX, Duration::MAX); 2]);
    // In turn, for whatever else the machine does begins and ends in between.
    for _ in 0..5 {
        keep_best(&mut among_few, times(&app, &key, 1_000).await);
        keep_best(&mut among_many, times(&large_app, &large_key, 1_000 + others).await);
    }
    for (what, (few, few_slow), (many, many_slow)) in
        [("look-up", among_few[0], among_many[0]), ("page", among_few[1], among_many[1])]
    {
        eprintln!(
            "{what}: {few:?} (p99 {few_slow:?}) among 1,000, {many:?} (p99 {many_slow:?}) among {}",
            1_000 + others
        );
        // The slow ones say more of a busy machine than of the number of keys.
        assert!(many < 3 * few + Duration::from_millis(1), "{what}: {few:?} among few, {many:?} among many");
    }
}

/// Changes are told of while the writers hold the counter, so making keys must be none, and many at once are told of once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn making_keys_is_not_announced_and_many_changes_are_announced_once() {
    let database = Database::postgres().await;
    let app = TestApp::on(&database).await;
    let key = app.account(Plan::Enterprise).await.1;
    let mut listener = PgListener::connect(&database.url).await.unwrap();
    listener.listen("changes").await.unwrap();
    let began = Instant::now();
    join_all((0..200).map(|_| app.create(&key, json!({ "name": "quiet" })))).await;
    eprintln!("200 keys were made in {:?}", began.elapsed());
    add_keys(&database, 1, 10_000).await;
    database.sql("update api_keys set revoked_at = now()").await;
    let heard = timeout(PATIENCE, listener.recv()).await.unwrap().unwrap();
    assert!(heard.payload().len() <= 100);
    let again = timeout(Duration::from_millis(300), listener.recv()).await;
    assert!(again.is_err(), "{again:?}");
}
