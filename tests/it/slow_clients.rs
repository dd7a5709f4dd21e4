//! Clients that are slow, silent, deaf or too many: they lose their connections, and honest ones notice nothing.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

use crate::support::{Connection, RawConnection, Service, is_long, json_request, request};

const KEYS: &str = "/v1/api-keys";
const POST: &str = "POST /v1/api-keys HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
/// Limits that a test can wait for, and which a busy machine does not meet by accident.
const SHORT: [(&str, &str); 4] = [
    ("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "1000"),
    ("MOMAIL_SERVER__KEEP_ALIVE_MS", "3000"),
    ("MOMAIL_SERVER__BODY_TIMEOUT_MS", "1000"),
    ("MOMAIL_SERVER__WRITE_TIMEOUT_MS", "1000"),
];
/// Beside a limit, for a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(10);

fn service() -> Service {
    Service::unlimited(&[&SHORT[..], &[("MOMAIL_LOG__FILTER", "warn")]].concat())
}

/// Sends one byte at a time for as long as the server takes them; says how long that was.
async fn drip(address: &str, bytes: &str) -> Duration {
    let mut connection = RawConnection::open(address).await;
    let started = Instant::now();
    for byte in bytes.bytes().cycle().take(300) {
        if connection.stream.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    started.elapsed()
}

/// Asks all the time until `others` have ended, and says how many answers there were and how long the slowest took.
async fn be_served_while<T>(service: &Service, others: impl Future<Output = T>) -> (T, u32, Duration) {
    let key = service.first_key();
    let (mut served, mut slowest) = (0, Duration::ZERO);
    let mut honest = async || {
        loop {
            let started = Instant::now();
            assert_eq!(service.get(KEYS, &key).await.status, 200);
            (served, slowest) = (served + 1, slowest.max(started.elapsed()));
            sleep(Duration::from_millis(5)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = others => outcome,
        () = honest() => unreachable!("it asks for ever"),
    };
    (outcome, served, slowest)
}

#[tokio::test]
async fn hundreds_of_heads_that_never_end_are_cut_while_others_are_served() {
    let service = service();
    service.get(KEYS, &service.first_key()).await;
    let before = service.resident_memory();
    let slow = join_all((0..300).map(|_| drip(&service.public, "GET / HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaa")));
    let silent = join_all((0..300).map(async |_| RawConnection::open(&service.public).await.closed_after().await));
    let most = async {
        let mut most = 0;
        loop {
            most = most.max(service.resident_memory());
            sleep(Duration::from_millis(50)).await;
            if service.metric("http_connections", &[]).await < 10.0 {
                break most;
            }
        }
    };
    let attack = async {
        tokio::join!(slow, silent, async {
            sleep(Duration::from_millis(500)).await;
            most.await
        })
    };
    let ((slow, silent, most), served, slowest) = be_served_while(&service, attack).await;

    for took in slow.into_iter().chain(silent) {
        assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(1) + SLACK, "{took:?}");
    }
    assert!(served >= 20 && slowest < Duration::from_secs(3), "{served} answers, the slowest after {slowest:?}");
    let grown = most.saturating_sub(before);
    assert!(grown < 50 << 20, "600 connections took {grown} bytes");
}

/// Sends a piece of a body now and then, until there is an answer.
async fn drip_body(address: &str, head: &str, piece: &str) -> (u16, Duration) {
    let mut connection = RawConnection::send(address, head).await;
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(1) + SLACK, "the body is still waited for");
        let _ = connection.stream.try_write(piece.as_bytes());
        if let Ok(answer) = timeout(Duration::from_millis(100), connection.answer()).await {
            let answer = answer.expect("it was closed without an answer");
            assert!(!answer.code().is_empty(), "{answer:?}");
            connection.closed_after().await;
            return (answer.status, started.elapsed());
        }
    }
}

#[tokio::test]
async fn a_body_that_never_ends_is_408_and_the_end_of_its_connection() {
    let service = service();
    let key = format!("X-API-Key: {}\r\n", service.first_key());
    let table = [
        (format!("{POST}{key}Content-Length: 60000\r\n\r\n"), "a"),
        (format!("{POST}{key}Transfer-Encoding: chunked\r\n\r\n"), "1\r\na\r\n"),
        (format!("{POST}{key}Content-Length: 60000\r\n\r\n"), ""),
    ];
    for (head, piece) in table {
        let (answer, served, _) = be_served_while(&service, drip_body(&service.public, &head, piece)).await;
        assert_eq!(answer.0, 408, "{piece:?}");
        let took = answer.1;
        assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(1) + SLACK, "{piece:?} {took:?}");
        assert!(served > 5);
    }
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_cut() {
    let service = service();
    let key = service.first_key();
    let mut connection = Connection::open(&service.public).await.unwrap();
    for _ in 0..200 {
        let body = json!({ "name": "n".repeat(100) }).to_string();
        assert_eq!(connection.send(json_request(Method::POST, KEYS, &key, body)).await.unwrap().status, 201);
    }
    let before = service.resident_memory();
    let deaf = async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(service.public.parse().unwrap()).await.unwrap();
        let list = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\n\r\n");
        // It goes on asking until nobody listens any more.
        while stream.write_all(list.as_bytes()).await.is_ok() {}
    };
    let (cut, served, _) = be_served_while(&service, timeout(Duration::from_secs(5) + SLACK, deaf)).await;
    assert!(cut.is_ok(), "it may still ask");
    assert!(served > 5);
    let grown = service.resident_memory().saturating_sub(before);
    assert!(grown < 32 << 20, "answers that nobody read took {grown} bytes");
}

#[tokio::test]
async fn a_kept_connection_may_rest_for_as_long_as_the_settings_say() {
    let service = service();
    let mut connection = Connection::open(&service.public).await.unwrap();
    // Each rest is longer than a head may take, and together they are longer than one rest may be.
    for _ in 0..4 {
        assert_eq!(connection.send(request(Method::GET, "/livez", "")).await.unwrap().status, 200);
        sleep(Duration::from_millis(1_200)).await;
    }
    let mut connection = RawConnection::send(&service.public, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
    connection.answer().await.unwrap();
    let rested = connection.closed_after().await;
    assert!(rested >= Duration::from_millis(2_900) && rested < Duration::from_secs(3) + SLACK, "{rested:?}");
}

#[tokio::test]
async fn half_a_head_on_a_kept_connection_gets_no_longer_than_on_a_new_one() {
    let service =
        Service::unlimited(&[("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "1000"), ("MOMAIL_SERVER__KEEP_ALIVE_MS", "600000")]);
    let mut connection = RawConnection::send(&service.public, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
    connection.answer().await.unwrap();
    connection.write("GET /livez HTT").await;
    let took = connection.closed_after().await;
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(1) + SLACK, "{took:?}");
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_and_health_is_still_answered_inside() {
    let settings = [("MOMAIL_SERVER__MAX_CONNECTIONS", "50"), ("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "600000")];
    let service = Service::unlimited(&settings);
    let idle = join_all((0..60).map(|_| RawConnection::open(&service.public))).await;
    // The one that asks is open as well.
    while service.metric("http_connections", &[]).await < 51.0 {
        sleep(Duration::from_millis(10)).await;
    }
    let mut waiting = RawConnection::send(&service.public, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(timeout(Duration::from_millis(300), waiting.answer()).await.is_err(), "the cap was not kept");
    assert_eq!(service.get_internal("/livez").await.status, 200);
    assert_eq!(service.get_internal("/readyz").await.status, 200);

    drop(idle);
    let released = Instant::now();
    assert_eq!(waiting.answer().await.unwrap().status, 200, "whoever waited is served");
    assert_eq!(service.get("/livez", "").await.status, 200);
    assert!(released.elapsed() < SLACK, "{:?}", released.elapsed());
}

#[tokio::test]
async fn a_burst_of_connections_finds_room_while_the_process_is_held_up() {
    let service = service();
    service.signal("STOP");
    let burst = join_all((0..1_000).map(|_| RawConnection::open(&service.public)));
    let burst = timeout(Duration::from_secs(10), burst).await;
    service.signal("CONT");
    let mut burst = burst.expect("the queue is too short: connections had to be tried again");
    let closed = join_all(burst.iter_mut().map(RawConnection::closed_after)).await;
    assert!(closed.iter().all(|took| *took < Duration::from_secs(1) + SLACK), "{:?}", closed.iter().max());
}

#[tokio::test]
async fn accepting_goes_on_when_there_are_descriptors_again() {
    let service = Service::unlimited(&[("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "600000")]);
    let key = service.first_key();
    assert_eq!(service.get(KEYS, &key).await.status, 200);
    let limited =
        Command::new("prlimit").args(["--nofile=64:64", "--pid", &service.pid().to_string()]).status().unwrap();
    assert!(limited.success());
    let started = Instant::now();
    let many = join_all((0..150).map(|_| RawConnection::open(&service.public))).await;
    let complaints = || service.logs().matches("no connection could be accepted").count();
    while complaints() < 3 {
        assert!(started.elapsed() < Duration::from_secs(30), "the descriptors never ran out: {}", service.logs());
        sleep(Duration::from_millis(20)).await;
    }
    // It pauses between attempts instead of spinning.
    let (complained, elapsed) = (complaints(), started.elapsed());
    let attempts = 10 + elapsed.as_millis() / 50;
    assert!(complained as u128 <= attempts, "{complained} complaints in {elapsed:?}");

    drop(many);
    let released = Instant::now();
    assert_eq!(service.get(KEYS, &key).await.status, 200);
    assert_eq!(service.get_internal("/readyz").await.status, 200);
    assert!(released.elapsed() < SLACK, "{:?}", released.elapsed());
}

#[tokio::test]
async fn more_connections_than_there_are_descriptors_leave_some_for_health_checks_and_the_database() {
    let descriptors = if is_long() { 1_024 } else { 256 };
    let settings = [
        ("DESCRIPTORS", &*descriptors.to_string()),
        ("PROGRAM", Service::program().to_str().unwrap()),
        ("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "600000"),
    ];
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/few_descriptors");
    let service = Service::start_of(Path::new(program), &settings);
    let key = service.first_key();
    let crowd = join_all((0..descriptors + 100).map(|_| RawConnection::open(&service.public))).await;
    let cap = f64::from(u32::try_from(descriptors).unwrap()) * 0.75;
    let deadline = Instant::now() + SLACK;
    // The one that asks is open as well.
    while service.metric("http_connections", &[]).await < cap {
        assert!(Instant::now() < deadline, "not as many are taken as may be\n{}", service.logs());
        sleep(Duration::from_millis(10)).await;
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(service.get_internal(path).await.status, 200, "{path}");
    }
    drop(crowd);
    let released = Instant::now();
    assert_eq!(service.get(KEYS, &key).await.status, 200);
    eprintln!("answered {:?} after {} connections were given up", released.elapsed(), descriptors + 100);
    assert!(released.elapsed() < if is_long() { Duration::from_secs(2) } else { SLACK }, "{:?}", released.elapsed());
    assert!(!service.logs().contains("no connection could be accepted"), "{}", service.logs());
}

#[tokio::test]
async fn a_body_may_take_its_own_time_whatever_the_other_limits_are() {
    let service = Service::unlimited(&[
        ("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "500"),
        ("MOMAIL_SERVER__KEEP_ALIVE_MS", "500"),
        ("MOMAIL_SERVER__WRITE_TIMEOUT_MS", "500"),
        ("MOMAIL_SERVER__BODY_TIMEOUT_MS", "60000"),
    ]);
    let head = format!("{POST}X-API-Key: {}\r\nContent-Length: 12\r\n\r\n{{", service.first_key());
    let mut connection = RawConnection::send(&service.public, head).await;
    for piece in [r#""name""#, r#":"a""#, "}"] {
        sleep(Duration::from_millis(700)).await;
        connection.write(piece).await;
    }
    assert_eq!(connection.answer().await.unwrap().status, 201);
}
