//! Sessions of the database that others disturb: clients that hang up, an operator's locks, a primary that may no longer write.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::support::{
    Connection, Database, PrivatePostgres, Pulse, Service, accounts, is_long, json_request, on_both_stores, request,
    unlimited,
};

on_both_stores!(clients_that_hang_up_leave_nothing_behind);

const KEYS: &str = "/v1/api-keys";
/// The listener's session writes nothing, and so has nothing to notice.
const OURS: &str = "application_name = 'momail-api-keys' and query not ilike 'listen%'";
const PATIENCE: Duration = Duration::from_secs(20);

async fn replica(database: &Database) -> (Service, String) {
    let key = accounts(database, 1).await.remove(0);
    let service = Service::start(&unlimited(&database.url));
    service.wait_until_ready_is(200).await;
    (service, key)
}

/// Waits until a query of the operator's yields 0.
async fn wait_until_none(database: &Database, sql: &str) {
    let deadline = Instant::now() + PATIENCE;
    while database.number(sql).await != 0 {
        assert!(Instant::now() < deadline, "{sql}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Sends requests on connections of their own and hangs up some milliseconds later, whatever has come back.
async fn hang_up_often(address: &str, key: &str, ids: &[String], seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    // Twenty thousand in all, if there is time.
    for n in 0..if is_long() { 313 } else { 60 } {
        let request = if n % 2 == 0 {
            let body = r#"{"name":"abandoned"}"#;
            let head = "content-type: application/json\r\ncontent-length";
            format!("POST {KEYS} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n{head}: {}\r\n\r\n{body}", body.len())
        } else {
            let id = &ids[dice.random_range(0..ids.len())];
            format!("DELETE {KEYS}/{id} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n\r\n")
        };
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        sleep(Duration::from_micros(dice.random_range(0..20_000))).await;
    }
}

async fn clients_that_hang_up_leave_nothing_behind(database: Database) {
    let (service, key) = replica(&database).await;
    let pulse = Pulse::inside(&service);
    let mut connection = Connection::open(&service.public).await.unwrap();
    let mut ids = Vec::new();
    let create = || json_request(Method::POST, KEYS, &key, json!({ "name": "wanted" }).to_string());
    for _ in 0..300 {
        let made = connection.send(create()).await.unwrap();
        ids.push(made.body["data"]["keyId"].as_str().unwrap().to_owned());
    }
    join_all((0..64).map(|seed| hang_up_often(&service.public, &key, &ids, seed))).await;

    if database.is_postgres() {
        let busy = "select count(*) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'";
        wait_until_none(&database, busy).await;
    }
    wait_until_the_pool_rests(&service).await;
    for n in 0..1_000 {
        let (request, expected) = match n % 3 {
            0 => (create(), 201),
            1 => (request(Method::PUT, "/v1/api-keys/none", &key), 405),
            _ => (request(Method::DELETE, "/v1/api-keys/none", &key), 404),
        };
        let reply = connection.send(request).await.unwrap();
        assert_eq!(reply.status, expected, "{reply:?}\n{}", service.logs());
    }
    let wrong_counts = "select count(*) from accounts a
        where live_keys <> (select count(*) from api_keys k where k.account_id = a.id and k.revoked_at is null)";
    assert_eq!(database.number(wrong_counts).await, 0);
    let without_one_secret = "select count(*) from api_keys k
        where (select count(*) from key_secrets s where s.key_id = k.id) <> 1";
    assert_eq!(database.number(without_one_secret).await, 0);
    let list = connection.send(request(Method::GET, KEYS, &key)).await.unwrap();
    let live = database.number("select sum(live_keys) from accounts").await;
    assert_eq!(list.body["meta"]["total"], live);
    eprintln!("{live} keys live, {} abandoned creations were carried out", abandoned(&database).await);
    pulse.assert_steady().await;
}

async fn abandoned(database: &Database) -> i64 {
    database.number("select count(*) from api_keys where name = 'abandoned'").await
}

/// As many connections are idle as are open, and no more are open than there may be.
async fn wait_until_the_pool_rests(service: &Service) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = String::from_utf8(service.get_internal("/metrics").await.bytes).unwrap();
        let gauge = |name: &str| -> u32 {
            let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
        };
        let (open, idle) = (gauge("database_connections"), gauge("database_connections_idle"));
        assert!(open <= 11, "{open} connections are open");
        if open == idle {
            return;
        }
        assert!(Instant::now() < deadline, "{idle} of {open} connections are idle");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_lock_holds_each_request_up_for_a_moment_only() {
    let database = Database::postgres().await;
    let (service, key) = replica(&database).await;
    let pulse = Pulse::of(&service);
    let mut session = database.postgres_session().await;
    let lock = "begin; lock table api_keys in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut session).await.unwrap();
    // A minute, if there is time.
    for _ in 0..if is_long() { 25 } else { 2 } {
        let requests = (0..30).map(async |n| {
            let request = match n % 3 {
                0 => request(Method::GET, KEYS, &key),
                1 => json_request(Method::POST, KEYS, &key, r#"{"name":"in vain"}"#),
                _ => request(Method::DELETE, "/v1/api-keys/key_01hm5cqv1kf3w9zq2n8x7t4b6d", &key),
            };
            let began = Instant::now();
            let reply = service.send(request).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"));
            began.elapsed()
        });
        let mut times = join_all(requests).await;
        times.sort_unstable();
        eprintln!("refused after {:?} to {:?}", times[0], times[29]);
        assert!(times[15] < Duration::from_millis(3_500) && times[29] < Duration::from_secs(5), "{times:?}");
    }
    sqlx::raw_sql("rollback").execute(&mut session).await.unwrap();
    let replies = join_all((0..40).map(|_| service.get(KEYS, &key))).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{}", service.logs());
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_server_that_may_no_longer_write_are_given_up() {
    let postgres = PrivatePostgres::start().await;
    let database = postgres.database();
    let (service, key) = replica(&database).await;
    let read_only = format!(
        "alter database postgres set default_transaction_read_only = on;
         select pg_terminate_backend(pid) from pg_stat_activity where {OURS}"
    );
    open_all_connections(&database, &service, &key).await;
    let newest =
        format!("select (extract(epoch from max(backend_start)) * 1000000)::bigint from pg_stat_activity where {OURS}");
    let newest = database.number(&newest).await;
    database.sql(&read_only).await;
    let create = || json_request(Method::POST, KEYS, &key, json!({ "name": "written" }).to_string());
    for _ in 0..3 {
        let began = Instant::now();
        let reply = service.send(create()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"));
        assert!(began.elapsed() < Duration::from_secs(2), "it is refused at once");
    }
    let old = format!(
        "select count(*) from pg_stat_activity where {OURS} and extract(epoch from backend_start) * 1000000 <= {newest}"
    );
    wait_until_none(&database, &old).await;

    let writable = "begin read write; alter database postgres reset default_transaction_read_only; commit";
    database.sql(writable).await;
    let began = Instant::now();
    let mut refused = 0;
    // Connections from before may still be read-only.
    while service.send(create()).await.status != 201 {
        refused += 1;
        assert!(began.elapsed() < Duration::from_secs(10), "it does not recover\n{}", service.logs());
    }
    eprintln!("written after {:?} and {refused} refusals", began.elapsed());
    assert!(refused <= 2, "{refused} refusals");
    let replies = join_all((0..40).map(|_| service.send(create()))).await;
    assert!(replies.iter().all(|reply| reply.status == 201), "{}", service.logs());
}

/// Makes the replica open as many connections as lists may have of its pool's ten.
async fn open_all_connections(database: &Database, service: &Service, key: &str) {
    let sessions = format!("select 7 - count(*) from pg_stat_activity where {OURS}");
    let deadline = Instant::now() + PATIENCE;
    while database.number(&sessions).await > 0 {
        join_all((0..40).map(|_| service.get(KEYS, key))).await;
        assert!(Instant::now() < deadline);
    }
}
