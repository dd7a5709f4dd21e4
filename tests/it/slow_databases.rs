//! A database that answers late, is locked by somebody else, or has too few connections: everything ends in time, and nobody hangs.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    Database, Event, Hold, Load, PrivatePostgres, Pulse, Relay, Service, accounts, is_long, json_request,
    on_both_stores, unlimited,
};

on_both_stores!(while_somebody_else_keeps_the_lock_reads_go_on_and_writes_end_in_time);

const KEYS: &str = "/v1/api-keys";
/// What no request may exceed, on however busy a machine.
const LONGEST_ANSWER: Duration = Duration::from_secs(5);
/// The promised three seconds, and some patience.
const USUAL_ANSWER: Duration = Duration::from_millis(3_500);
const LONGEST_RECOVERY: Duration = Duration::from_secs(5);

fn create(key: &str) -> Request<Body> {
    json_request(Method::POST, KEYS, key, json!({ "name": "written" }).to_string())
}

async fn assert_recovers(service: &Service, key: &str) {
    let began = Instant::now();
    while service.send(create(key)).await.status != 201 {
        assert!(began.elapsed() < LONGEST_RECOVERY, "it does not recover\n{}", service.logs());
    }
    eprintln!("recovered after {:?}", began.elapsed());
    let replies = join_all((0..40).map(|_| service.send(create(key)))).await;
    assert!(replies.iter().all(|reply| reply.status == 201), "{}", service.logs());
}

fn assert_in_time(mut times: Vec<Duration>) {
    times.sort_unstable();
    let (usual, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    eprintln!("{} answers, p50 {usual:?}, p99 {late:?}, the last {:?}", times.len(), times[times.len() - 1]);
    assert!(usual < USUAL_ANSWER && times[times.len() - 1] < LONGEST_ANSWER, "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_on_which_each_packet_is_late_makes_nobody_wait_for_ever() {
    let postgres = PrivatePostgres::start().await;
    let relay = Relay::to(postgres.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", relay.port);
    let keys = accounts(&postgres.database(), 32).await;
    let service = Service::start(&unlimited(&url));
    service.wait_until_ready_is(200).await;
    let pulse = Pulse::of(&service);
    relay.delay(Duration::from_millis(500), 1);
    let load = Load::start(&service.public, &keys, Duration::from_millis(100));
    let began = Instant::now();
    while began.elapsed() < if is_long() { Duration::from_secs(120) } else { Duration::from_secs(8) } {
        let asked = Instant::now();
        let ready = service.get_internal("/readyz").await.status.as_u16();
        assert!(matches!(ready, 200 | 503) && asked.elapsed() < LONGEST_ANSWER, "{ready} after {:?}", asked.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    let promises = load.end().await;
    assert!(promises.events.iter().all(|event| matches!(event.status, Some(200 | 201 | 503))));
    assert_in_time(promises.events.iter().map(Event::took).collect());
    relay.pass();
    assert_recovers(&service, &keys[0]).await;
    promises.assert_kept(&service.public).await;
    pulse.assert_steady().await;
}

async fn while_somebody_else_keeps_the_lock_reads_go_on_and_writes_end_in_time(database: Database) {
    let key = accounts(&database, 1).await.remove(0);
    let service = Service::start(&unlimited(&database.url));
    service.wait_until_ready_is(200).await;
    let pulse = Pulse::of(&service);
    let before = database.number("select count(*) from api_keys").await;
    let hold = Hold::on(&database).await;
    let began = Instant::now();
    let mut times = Vec::new();
    while began.elapsed() < if is_long() { Duration::from_secs(60) } else { Duration::from_secs(5) } {
        // Fewer than there are connections: readers find some.
        let writes = (0..5).map(async |_| {
            let began = Instant::now();
            let reply = service.send(create(&key)).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"));
            began.elapsed()
        });
        let reads = (0..20).map(async |n| {
            sleep(Duration::from_millis(100 * n)).await;
            let began = Instant::now();
            let path = if n % 2 == 0 { KEYS } else { "/readyz" };
            let reply = service.get(path, &key).await;
            assert_eq!(reply.status, 200, "{path} {reply:?}");
            assert!(began.elapsed() < USUAL_ANSWER, "{path} took {:?}", began.elapsed());
        });
        let (took, _) = tokio::join!(join_all(writes), join_all(reads));
        times.extend(took);
    }
    assert_in_time(times);
    hold.release().await;
    assert_recovers(&service, &key).await;
    // What was under way when the lock was released may have been carried out, although nobody waited for it any more.
    let written = database.number("select count(*) from api_keys").await - before;
    assert!((41..=46).contains(&written), "{written} were written, and 41 were acknowledged");
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_connections_than_the_pools_may_have_are_shared_and_the_operator_finds_one() {
    // Three are kept for superusers, which leaves twelve for three pools of ten.
    let postgres = PrivatePostgres::start_for(15).await;
    let database = postgres.users_database().await;
    let keys = accounts(&database, 36).await;
    let replicas: Vec<_> = (0..3).map(|_| Service::start(&unlimited(&database.url))).collect();
    let pulses: Vec<_> = replicas.iter().map(Pulse::of).collect();
    let loads: Vec<_> = replicas
        .iter()
        .zip(keys.chunks(12))
        .map(|(replica, keys)| Load::start(&replica.public, keys, Duration::from_millis(20)))
        .collect();
    let began = Instant::now();
    while began.elapsed() < if is_long() { Duration::from_secs(60) } else { Duration::from_secs(6) } {
        assert!(postgres.database().number("select count(*) from pg_stat_activity").await > 0);
        sleep(Duration::from_millis(200)).await;
    }
    let promises = join_all(loads.into_iter().map(Load::end)).await;
    for (replica, promises) in replicas.iter().zip(promises) {
        let (all, done) = (&promises.events, promises.events.iter().filter(|event| event.succeeded).count());
        eprintln!("{done} of {} succeeded", all.len());
        assert!(all.iter().all(|event| event.succeeded || event.status == Some(503)));
        // Whoever finds no connection waits for one, perhaps more than once in a request.
        assert!(all.iter().all(|event| event.took() < 2 * LONGEST_ANSWER));
        assert!(done * 2 > all.len(), "{}", replica.logs());
        promises.assert_kept(&replica.public).await;
    }
    for pulse in pulses {
        pulse.assert_steady().await;
    }
}
