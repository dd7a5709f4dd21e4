//! How long a refusal takes must not tell whether there is a key with that prefix.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::scope;
use std::time::{Duration, Instant};

use axum::http::Method;
use rand::seq::SliceRandom;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::support::{
    Database, Service, is_long, json_request, mann_whitney, median, on_both_stores, request, unknown_key, unlimited,
    with_wrong_checksum, with_wrong_secret,
};

on_both_stores!(a_key_that_is_unknown_is_refused_as_slowly_as_one_with_the_wrong_secret);

const KEYS: &str = "/v1/api-keys";
/// What the service makes of each guess, long enough to hide a look-up.
const GUESSES_TAKE: Duration = Duration::from_millis(5);
/// What the first requests of a connection take is not meant.
const WARM_UP: usize = 10;
const KINDS: [&str; 4] = ["an unknown prefix", "a wrong secret", "a revoked key", "a wrong checksum"];

async fn a_key_that_is_unknown_is_refused_as_slowly_as_one_with_the_wrong_secret(database: Database) {
    database.open().migrate().await.unwrap();
    let key = Service::create_account(&database.url, "enterprise");
    let store = if database.is_postgres() { "PostgreSQL" } else { "SQLite" };
    for cache in ["lease", "off"] {
        let settings = [("MOMAIL_AUTH__CACHE", cache), ("MOMAIL_LOG__FILTER", "info")];
        let service = Service::start(&[&unlimited(&database.url)[..], &settings].concat());
        service.wait_until_ready_is(200).await;
        let doomed = service.send(json_request(Method::POST, KEYS, &key, json!({ "name": "a" }).to_string())).await;
        let revoked = doomed.body["data"]["apiKey"].as_str().unwrap().to_owned();
        assert_eq!(service.get(KEYS, &revoked).await.status, 200);
        let delete = request(Method::DELETE, doomed.header("location"), &key);
        assert_eq!(service.send(delete).await.status, 200);
        let (address, live) = (service.public.clone(), key.clone());
        let samples = spawn_blocking(move || sample(&address, &live, &revoked)).await.unwrap();

        for (kind, times) in KINDS.into_iter().zip(&samples) {
            let (median, z) = (median(times), mann_whitney(times, &samples[0]));
            eprintln!("{store}, {cache}: {median:?} for {kind}, z = {z:.2}");
        }
        let [unknown, wrong, ..] = [0, 1].map(|kind| median(&samples[kind]));
        assert!(unknown.min(wrong) >= GUESSES_TAKE, "{store}, {cache}: {unknown:?} if unknown, {wrong:?} if wrong");
        // A few samples on a machine that does other things say little of microseconds.
        let allowed = if is_long() { Duration::from_micros(50).min(unknown / 50) } else { GUESSES_TAKE };
        let gap = unknown.abs_diff(wrong);
        assert!(gap < allowed, "{store}, {cache}: {unknown:?} if unknown, {wrong:?} if wrong");
    }
}

/// Few enough to leave the service its processors.
fn connections() -> usize {
    if is_long() { 8 } else { 2 }
}

/// Shows keys of all kinds in turn, over connections that are warm.
fn sample(address: &str, live: &str, revoked: &str) -> [Vec<Duration>; 4] {
    let rounds = if is_long() { 20_000 } else { 80 };
    let each = || sample_over_one_connection(address, live, revoked, rounds / connections());
    let mut samples = [const { Vec::new() }; 4];
    scope(|scope| {
        let clients: Vec<_> = (0..connections()).map(|_| scope.spawn(each)).collect();
        for client in clients {
            for (all, of_one) in samples.iter_mut().zip(client.join().unwrap()) {
                all.extend(of_one);
            }
        }
    });
    samples
}

fn sample_over_one_connection(address: &str, live: &str, revoked: &str, rounds: usize) -> [Vec<Duration>; 4] {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut samples = [const { Vec::new() }; 4];
    let mut order = [0, 1, 2, 3];
    let mut length = 0;
    for round in 0..WARM_UP + rounds {
        order.shuffle(&mut rand::rng());
        for kind in order {
            let shown = match kind {
                0 => unknown_key(),
                1 => with_wrong_secret(live),
                2 => revoked.to_owned(),
                _ => with_wrong_checksum(live),
            };
            let request = format!("GET {KEYS} HTTP/1.1\r\nhost: keys.test\r\nx-api-key: {shown}\r\n\r\n");
            let began = Instant::now();
            stream.write_all(request.as_bytes()).unwrap();
            length = read_answer(&mut stream, length);
            if round >= WARM_UP {
                samples[kind].push(began.elapsed());
            }
        }
    }
    samples
}

/// Reads one answer, all of which are of the same length; 0 if it is not known yet.
fn read_answer(stream: &mut TcpStream, length: usize) -> usize {
    let mut answer = vec![0; length.max(4_096)];
    let mut read = 0;
    while read == 0 || read < length {
        read += stream.read(&mut answer[read..]).unwrap();
    }
    assert!(answer.starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&answer));
    read
}
