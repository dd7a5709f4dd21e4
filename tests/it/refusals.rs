//! What the log says of those who were not let in: each once, with who it was; and of a flood no more than a reader can bear.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::future::{join, join_all};
use serde_json::{Value, json};

use crate::support::{
    Connection, Database, RawConnection, Service, is_long, json_request, median, on_both_stores, request, unknown_key,
    with_wrong_checksum, with_wrong_secret,
};

on_both_stores!(each_refusal_is_logged_once_with_its_reason_and_where_it_came_from);

const KEYS: &str = "/v1/api-keys";
/// Requests sent before their answers are read.
const BATCH: usize = 50;
const ATTACKERS: usize = 4;

/// The access log's lines of a service that has ended.
fn lines(service: &Service) -> Vec<Value> {
    service.logs().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

async fn each_refusal_is_logged_once_with_its_reason_and_where_it_came_from(database: Database) {
    database.open().migrate().await.unwrap();
    let key = Service::create_account(&database.url, "free");
    let mut service = Service::start(&[
        ("DATABASE_URL", &database.url),
        // In an hour nothing comes back while the test lasts.
        ("MOMAIL_PLANS__FREE__PER_MINUTE", "0"),
        ("MOMAIL_PLANS__FREE__PER_HOUR", "6"),
        ("MOMAIL_AUTH__FAILED_PER_MINUTE", "6"),
        ("MOMAIL_PROXIES__TRUSTED", "127.0.0.0/8"),
    ]);
    service.wait_until_ready_is(200).await;
    let make = async |name: &str| {
        let made = service.send(json_request(Method::POST, KEYS, &key, json!({ "name": name }).to_string())).await;
        (made.header("location").to_owned(), made.body["data"]["apiKey"].as_str().unwrap().to_owned())
    };
    let (revoked_path, revoked) = make("revoked").await;
    let (disabled_path, disabled) = make("disabled").await;
    let edit = json_request(Method::PATCH, &disabled_path, &key, json!({ "enabled": false }).to_string());
    assert_eq!(service.send(edit).await.status, 200);
    assert_eq!(service.send(request(Method::DELETE, &revoked_path, &key)).await.status, 200);

    let (unknown, wrong, mistyped) = (unknown_key(), with_wrong_secret(&key), with_wrong_checksum(&key));
    let in_query = format!("{KEYS}?api_key={key}");
    // Each with its status, and the key that may be named.
    let table = [
        ("missing", 401, KEYS, "", None),
        ("malformed", 401, KEYS, "mk_nonsense", None),
        ("wrong_checksum", 401, KEYS, &mistyped, None),
        ("unknown", 401, KEYS, &unknown, Some(&unknown)),
        ("wrong_secret", 401, KEYS, &wrong, Some(&key)),
        ("revoked", 401, KEYS, &revoked, Some(&revoked)),
        ("disabled", 401, KEYS, &disabled, Some(&disabled)),
        ("misplaced", 429, &*in_query, "", None),
        ("unknown", 429, KEYS, &unknown, Some(&unknown)),
        ("", 200, KEYS, &key, Some(&key)),
        ("", 200, KEYS, &key, Some(&key)),
        ("rate_limit", 429, KEYS, &key, Some(&key)),
    ];
    for (n, (why, status, path, shown, _)) in table.iter().enumerate() {
        let mut asked = request(Method::GET, path, shown);
        asked.headers_mut().insert("x-request-id", format!("r-{n}").parse().unwrap());
        asked.headers_mut().insert("x-forwarded-for", "203.0.113.5".parse().unwrap());
        assert_eq!(service.send(asked).await.status, *status, "{n} {why}");
    }
    assert_eq!(service.terminate().code(), Some(0));
    let lines = lines(&service);
    for (n, (why, status, _, _, named)) in table.iter().enumerate() {
        let of_it: Vec<_> = lines.iter().filter(|line| line["request_id"] == format!("r-{n}")).collect();
        assert_eq!(of_it.len(), 1, "{n} {why}: {of_it:?}");
        let text = |member: &str| of_it[0][member].as_str().unwrap_or_default();
        let client = if why.is_empty() { "" } else { "203.0.113.5" };
        let prefix = named.map_or("", |key| &key[3..11]);
        assert_eq!((text("refused"), text("client"), text("key_prefix")), (*why, client, prefix), "{n}");
        assert_eq!(
            (of_it[0]["status"].as_u64(), text("timestamp").ends_with('Z')),
            (Some(u64::from(*status)), true),
            "{n}"
        );
    }
}

/// Asks for what needs no database, over and over, until the end; how many were refused.
async fn attack(service: &Service, end: Instant) -> u64 {
    let mut connection = RawConnection::open(&service.public).await;
    let key = unknown_key();
    let bad = with_wrong_checksum(&key);
    let requests = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {bad}\r\n\r\n").repeat(BATCH);
    let mut refused = 0;
    while Instant::now() < end {
        connection.write(&requests).await;
        for _ in 0..BATCH {
            assert_eq!(connection.answer().await.unwrap().status, 401);
            refused += 1;
        }
    }
    refused
}

/// How long each request of somebody with a good key took.
async fn be_served(service: &Service, key: &str, end: Instant) -> Vec<Duration> {
    let mut connection = Connection::open(&service.public).await.unwrap();
    let mut times = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        let asked: Request<Body> = request(Method::GET, KEYS, key);
        assert_eq!(connection.send(asked).await.unwrap().status, 200);
        times.push(began.elapsed());
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_keys_costs_the_log_a_hundred_lines_a_second_and_others_nothing() {
    let mut service = Service::unlimited(&[]);
    service.wait_until_ready_is(200).await;
    let key = service.first_key();
    let calm = median(&be_served(&service, &key, Instant::now() + Duration::from_secs(1)).await);
    let seconds = if is_long() { 20 } else { 3 };
    let end = Instant::now() + Duration::from_secs(seconds);
    let attacks = join_all((0..ATTACKERS).map(async |_| attack(&service, end).await));
    let (refused, served) = join(attacks, be_served(&service, &key, end)).await;
    assert_eq!(service.terminate().code(), Some(0));

    let (mut written, mut left_out, mut let_in) = (0, 0, 0);
    let mut by_second = HashMap::<String, u64>::new();
    for line in lines(&service) {
        match (&line["status"], &line["message"]) {
            (status, _) if *status == 401 => written += 1,
            (_, message) if *message == "refusals left out" => left_out += line["count"].as_u64().unwrap(),
            (status, _) => {
                let_in += usize::from(*status == 200 && line["route"] == KEYS);
                continue;
            }
        }
        *by_second.entry(line["timestamp"].as_str().unwrap()[..19].to_owned()).or_default() += 1;
    }
    let most = by_second.values().max().unwrap();
    let (refused, during) = (refused.iter().sum::<u64>(), median(&served));
    eprintln!("{} refusals a second, {written} lines in {seconds} s, {most} in the fullest", refused / seconds);
    eprintln!("a good key: {during:?} beside {calm:?}, {} requests", served.len());
    assert_eq!(written + left_out, refused, "each is written or counted");
    assert!(left_out > 0 && written <= 99 * (seconds + 2), "{written} lines in {seconds} s");
    // A second of the clock may have the end of one count and the beginning of another.
    assert!(*most <= 200, "{most} lines in one second");
    assert!(let_in >= served.len(), "{let_in} lines of {} requests with a good key", served.len());
    assert!(during < Duration::from_secs(1), "{during:?} beside {calm:?}");
}
