//! PostgreSQL stops, freezes, falls silent or was never there: every request is answered in time, and nobody restarts anything.

use std::ops::Range;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    Connection, Database, Event, Load, Pooler, PrivatePostgres, PrivateRedis, Promises, Pulse, Relay, Reply, Service,
    accounts, is_long, json_request, request, unlimited,
};

const KEYS: &str = "/v1/api-keys";
/// What no request may exceed, on however busy a machine.
const LONGEST_ANSWER: Duration = Duration::from_secs(5);
/// What half of the requests in an outage may not exceed: the promised three seconds, and some patience.
const USUAL_ANSWER: Duration = Duration::from_millis(3_500);
const LONGEST_RECOVERY: Duration = Duration::from_secs(5);

/// A replica that serves, and the key of an enterprise account.
async fn replica(url: &str, database: &Database) -> (Service, String) {
    let key = accounts(database, 1).await.remove(0);
    let service = Service::start(&unlimited(url));
    service.wait_until_ready_is(200).await;
    assert_eq!(service.get(KEYS, &key).await.status, 200);
    (service, key)
}

fn one_of_each(key: &str) -> [Request<Body>; 3] {
    [
        request(Method::GET, KEYS, key),
        json_request(Method::POST, KEYS, key, json!({ "name": "in vain" }).to_string()),
        request(Method::DELETE, "/v1/api-keys/key_01hm5cqv1kf3w9zq2n8x7t4b6d", key),
    ]
}

fn assert_refused(reply: &Reply) {
    assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"), "{reply:?}");
    assert_eq!(reply.body["success"], false);
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
}

/// Sends several requests of each kind at once: all are refused in time, and the process says that it lives but is not ready.
async fn assert_out_of_service(service: &Service, key: &str) {
    for path in ["/livez", "/readyz"] {
        let began = Instant::now();
        let (live, internal) =
            (service.get(path, "").await.status.as_u16(), service.get_internal(path).await.status.as_u16());
        let expected = if path == "/livez" { 200 } else { 503 };
        assert_eq!((live, internal), (expected, expected), "{path}\n{}", service.logs());
        assert!(began.elapsed() < 2 * LONGEST_ANSWER);
    }
    let requests = (0..8).flat_map(|_| one_of_each(key)).map(async |request| {
        let began = Instant::now();
        assert_refused(&service.send(request).await);
        began.elapsed()
    });
    let mut times = join_all(requests).await;
    times.sort_unstable();
    assert!(times[times.len() / 2] < USUAL_ANSWER && times[times.len() - 1] < LONGEST_ANSWER, "{times:?}");
}

/// Asks one thing at a time, as the only client of a quiet service would, until it is answered.
async fn assert_recovers(service: &Service, key: &str) -> Duration {
    let began = Instant::now();
    loop {
        let reply = service.get(KEYS, key).await;
        if reply.status == 200 {
            break;
        }
        assert_refused(&reply);
        assert!(began.elapsed() < LONGEST_RECOVERY, "it does not recover\n{}", service.logs());
        sleep(Duration::from_millis(50)).await;
    }
    let took = began.elapsed();
    assert!(took < LONGEST_RECOVERY, "{took:?}");
    service.wait_until_ready_is(200).await;
    took
}

/// Every request was answered, and in time; those that ended in the outage with 503, and those after it as ever.
fn assert_bounded(promises: &Promises, outage: &Range<Instant>, recovered: Instant) {
    let mut in_outage = Vec::new();
    for event in &promises.events {
        assert!(event.status.is_some(), "a request was not answered");
        assert!(event.took() < LONGEST_ANSWER, "an answer took {:?}", event.took());
        if event.began > outage.start && event.ended < outage.end {
            assert_eq!(event.status, Some(503));
            in_outage.push(event.took());
        }
        // It takes a moment to stop a server's many processes.
        if event.ended + Duration::from_secs(1) < outage.start || event.began > recovered {
            assert!(event.succeeded, "{:?} outside of the outage", event.status);
        }
    }
    in_outage.sort_unstable();
    eprintln!("{} requests ended in the outage, the slowest after {:?}", in_outage.len(), in_outage.last());
    assert!(in_outage.len() > 8 && in_outage[in_outage.len() / 2] < USUAL_ANSWER, "{in_outage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_stopped_all_is_503_and_afterwards_all_is_well() {
    let mut postgres = PrivatePostgres::start().await;
    let (service, key) = replica(&postgres.url(), &postgres.database()).await;
    let pulse = Pulse::of(&service);
    for _ in 0..2 {
        postgres.stop();
        assert_out_of_service(&service, &key).await;
        postgres.run().await;
        eprintln!("recovered after {:?}", assert_recovers(&service, &key).await);
    }
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_that_freezes_in_mid_load_holds_nobody_up() {
    let postgres = PrivatePostgres::start().await;
    let keys = accounts(&postgres.database(), 16).await;
    let service = Service::start(&unlimited(&postgres.url()));
    let pulse = Pulse::of(&service);
    service.wait_until_ready_is(200).await;
    let load = Load::start(&service.public, &keys, Duration::from_millis(60));
    sleep(Duration::from_secs(1)).await;

    postgres.freeze();
    let frozen = Instant::now();
    assert_eq!(service.get_internal("/livez").await.status, 200);
    sleep(Duration::from_secs(7)).await;
    let thawed = Instant::now();
    postgres.thaw();
    let took = assert_recovers(&service, &keys[0]).await;
    eprintln!("recovered after {took:?}");
    sleep(Duration::from_secs(3)).await;

    let promises = load.end().await;
    assert_bounded(&promises, &(frozen..thawed), thawed + took + Duration::from_secs(2));
    promises.assert_kept(&service.public).await;
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_in_mid_load_holds_nobody_up() {
    let postgres = PrivatePostgres::start().await;
    let relay = Relay::to(postgres.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", relay.port);
    let keys = accounts(&postgres.database(), 16).await;
    let service = Service::start(&unlimited(&url));
    let pulse = Pulse::of(&service);
    service.wait_until_ready_is(200).await;
    let load = Load::start(&service.public, &keys, Duration::from_millis(60));
    sleep(Duration::from_secs(1)).await;

    relay.swallow();
    let silent = Instant::now();
    assert_eq!(service.get_internal("/livez").await.status, 200);
    sleep(Duration::from_secs(7)).await;
    let heard = Instant::now();
    relay.pass();
    let took = assert_recovers(&service, &keys[0]).await;
    eprintln!("recovered after {took:?}");
    sleep(Duration::from_secs(3)).await;

    let promises = load.end().await;
    assert_bounded(&promises, &(silent..heard), heard + took + Duration::from_secs(3));
    promises.assert_kept(&service.public).await;
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_all_died_in_silence_are_replaced_at_once() {
    let postgres = PrivatePostgres::start().await;
    let relay = Relay::to(postgres.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", relay.port);
    let (service, key) = replica(&url, &postgres.database()).await;
    let pulse = Pulse::of(&service);
    let sessions = "select count(*) from pg_stat_activity where application_name = 'momail-api-keys'";
    // As many connections as lists may have of the pool's ten.
    let deadline = Instant::now() + LONGEST_ANSWER * 4;
    while postgres.database().number(sessions).await < 7 {
        assert!(Instant::now() < deadline, "they are not opened");
        join_all((0..40).map(|_| service.get(KEYS, &key))).await;
    }
    relay.swallow();
    relay.pass();
    // A connection used a moment ago is not asked whether it lives; here none shall have been.
    sleep(Duration::from_millis(1_200)).await;
    let took = assert_recovers(&service, &key).await;
    eprintln!("recovered after {took:?}");
    join_all((0..40).map(async |_| assert_eq!(service.get(KEYS, &key).await.status, 200))).await;
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_address_that_never_answers_lets_the_process_start() {
    let nowhere = Relay::to_nowhere().await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", nowhere.port);
    let key = accounts(&Database::sqlite(), 1).await.remove(0);
    let service = Service::start(&unlimited(&url));
    let pulse = Pulse::of(&service);
    assert_out_of_service(&service, &key).await;
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgresql_the_process_starts_and_becomes_ready_when_it_comes() {
    let mut postgres = PrivatePostgres::start().await;
    let key = accounts(&postgres.database(), 1).await.remove(0);
    postgres.stop();
    let service = Service::start(&unlimited(&postgres.url()));
    let pulse = Pulse::of(&service);
    assert_out_of_service(&service, &key).await;
    postgres.run().await;
    eprintln!("ready after {:?}", assert_recovers(&service, &key).await);
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_postgresql_under_load_cost_no_promise_and_no_late_error() {
    let mut postgres = PrivatePostgres::start().await;
    let keys = accounts(&postgres.database(), 16).await;
    let service = Service::start(&unlimited(&postgres.url()));
    let pulse = Pulse::of(&service);
    service.wait_until_ready_is(200).await;
    // Together some two hundred requests in a second.
    let load = Load::start(&service.public, &keys, Duration::from_millis(80));
    let mut outages = Vec::new();
    for _ in 0..if is_long() { 20 } else { 10 } {
        sleep(Duration::from_secs(3)).await;
        let down = Instant::now();
        postgres.stop();
        sleep(Duration::from_millis(300)).await;
        postgres.run().await;
        outages.push(down..Instant::now() + Duration::from_secs(2));
    }
    sleep(Duration::from_secs(3)).await;

    let promises = load.end().await;
    let failed: Vec<_> = promises.events.iter().filter(|event| !event.succeeded).collect();
    eprintln!("{} requests, {} failed; {:?}", promises.events.len(), failed.len(), promises.count());
    assert!(!failed.is_empty(), "nobody noticed the outages");
    for event in failed {
        assert_eq!(event.status, Some(503));
        assert!(event.took() < LONGEST_ANSWER, "an answer took {:?}", event.took());
        let excused = outages.iter().any(|outage| event.began < outage.end && event.ended > outage.start);
        assert!(excused, "an error long after an outage\n{}", service.logs());
    }
    promises.assert_kept(&service.public).await;
    let mut connection = Connection::open(&service.public).await.unwrap();
    assert_eq!(connection.send(request(Method::GET, KEYS, &keys[0])).await.unwrap().status, 200);
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_keeps_no_sessions_is_refused_with_the_reason() {
    let postgres = PrivatePostgres::start().await;
    let key = accounts(&postgres.database(), 1).await.remove(0);
    let pooler = Pooler::to(postgres.port());
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", pooler.port);
    let service = Service::start(&unlimited(&url));
    let pulse = Pulse::of(&service);
    assert_out_of_service(&service, &key).await;
    let logs = service.logs();
    assert!(logs.contains("waiting for the database") && logs.contains("unsupported startup parameter"), "{logs}");
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgresql_and_redis_answers_are_quick_and_memory_stays_as_it_is() {
    let (mut postgres, mut redis) = (PrivatePostgres::start().await, PrivateRedis::start().await);
    let keys = accounts(&postgres.database(), 48).await;
    let (url, redis_url) = (postgres.url(), redis.url());
    let mut settings = unlimited(&url);
    settings.extend([("REDIS_URL", redis_url.as_str()), ("MOMAIL_PLANS__ENTERPRISE__PER_MINUTE", "1000000")]);
    let service = Service::start(&settings);
    let pulse = Pulse::of(&service);
    service.wait_until_ready_is(200).await;
    postgres.stop();
    redis.stop();
    assert_out_of_service(&service, &keys[0]).await;
    // Together some five hundred requests in a second.
    let load = Load::start(&service.public, &keys, Duration::from_millis(80));
    sleep(Duration::from_secs(2)).await;
    let before = service.resident_memory();
    sleep(if is_long() { Duration::from_secs(600) } else { Duration::from_secs(5) }).await;
    let grown = service.resident_memory().saturating_sub(before);
    eprintln!("{before} bytes, and {grown} more");
    let promises = load.end().await;
    assert!(promises.events.len() > 500 && promises.events.iter().all(|event| event.status == Some(503)));
    let mut times: Vec<_> = promises.events.iter().map(Event::took).collect();
    times.sort_unstable();
    eprintln!("{} refusals, p50 {:?}, the last {:?}", times.len(), times[times.len() / 2], times[times.len() - 1]);
    assert!(times[times.len() / 2] < Duration::from_millis(500), "{:?}", times[times.len() / 2]);
    assert!(grown < 20 << 20, "{grown} bytes");
    redis.run().await;
    postgres.run().await;
    eprintln!("recovered after {:?}", assert_recovers(&service, &keys[0]).await);
    pulse.assert_steady().await;
}
