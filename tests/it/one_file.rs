//! Several processes on one file in SQLite: unusual, and right all the same.

use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::json;

use crate::support::{Connection, Database, Load, Service, accounts, is_long, json_request, request, unlimited};

const KEYS: &str = "/v1/api-keys";
/// A lease, and what a busy machine may need.
const LONGEST_ANSWER: Duration = Duration::from_secs(4);

async fn process(database: &Database) -> Service {
    let service = Service::start(&unlimited(&database.url));
    service.wait_until_ready_is(200).await;
    service.wait_until_leased().await;
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_on_one_file_each_keeps_what_the_other_promised() {
    let database = Database::sqlite();
    let keys = accounts(&database, 7).await;
    let mut processes = [process(&database).await, process(&database).await];
    let pause = Duration::from_millis(10);
    let loads = [0, 1].map(|n| Load::start(&processes[n].public, &keys[n * 3..][..3], pause));

    let mut connections = Vec::new();
    for process in &processes {
        connections.push(Connection::open(&process.public).await.unwrap());
    }
    let mut slowest = Duration::ZERO;
    for round in 0..if is_long() { 200 } else { 20 } {
        let (one, other) = (round % 2, (round + 1) % 2);
        let create = json_request(Method::POST, KEYS, &keys[6], json!({ "name": format!("{round}") }).to_string());
        let made = connections[one].send(create).await.unwrap().body["data"].take();
        let (id, key) = (made["keyId"].as_str().unwrap(), made["apiKey"].as_str().unwrap());
        for _ in 0..2 {
            assert_eq!(connections[other].send(request(Method::GET, KEYS, key)).await.unwrap().status, 200, "{round}");
        }
        let began = Instant::now();
        let delete = request(Method::DELETE, &format!("{KEYS}/{id}"), &keys[6]);
        assert_eq!(connections[one].send(delete).await.unwrap().status, 200);
        slowest = slowest.max(began.elapsed());
        for connection in &mut connections {
            assert_eq!(connection.send(request(Method::GET, KEYS, key)).await.unwrap().status, 401, "{round}");
        }
    }
    assert!(slowest < LONGEST_ANSWER, "{slowest:?}");
    let mut requests = 0;
    for (n, load) in loads.into_iter().enumerate() {
        let promises = load.end().await;
        for process in &processes {
            promises.assert_kept(&process.public).await;
        }
        // A slow disk may cost an answer, and nothing else.
        let failed: Vec<_> = promises
            .events
            .iter()
            .filter(|event| !event.succeeded && event.status != Some(503))
            .map(|event| event.status)
            .collect();
        assert!(failed.is_empty(), "process {n} failed: {failed:?}");
        requests += promises.events.len();
    }
    eprintln!("{requests} requests beside; the slowest revocation took {slowest:?}");
    database.assert_whole().await;

    // One that was killed is waited for no longer than a lease.
    processes[1].kill();
    let began = Instant::now();
    let load = Load::start(&processes[0].public, &keys, pause);
    tokio::time::sleep(LONGEST_ANSWER).await;
    let promises = load.end().await;
    assert!(
        promises
            .events
            .iter()
            .all(|event| (event.succeeded || event.status == Some(503)) && event.took() < LONGEST_ANSWER),
        "{:?}",
        began.elapsed()
    );
    assert!(promises.count().1 > 0, "nothing was revoked");
    database.assert_whole().await;
}
