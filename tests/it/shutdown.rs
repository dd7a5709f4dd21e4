//! How the service stops: readiness first, then no new connections, then what is under way, then the end.

use std::time::{Duration, Instant};

use axum::http::Method;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::support::{
    Connection, Database, PrivatePostgres, RawConnection, Service, json_request, on_both_stores, request,
};

on_both_stores!(the_last_uses_in_memory_are_in_the_database_after_a_clean_stop, a_request_under_way_is_finished);

const KEYS: &str = "/v1/api-keys";
const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
/// Longer than any test runs: what holds a connection open is not ended by these.
const PATIENT: [(&str, &str); 4] = [
    ("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "600000"),
    ("MOMAIL_SERVER__KEEP_ALIVE_MS", "600000"),
    ("MOMAIL_SERVER__BODY_TIMEOUT_MS", "600000"),
    ("MOMAIL_SERVER__WRITE_TIMEOUT_MS", "600000"),
];
/// What a busy machine may add to a time limit.
const SLACK: Duration = Duration::from_secs(5);

fn patient(settings: &[(&str, &str)]) -> Service {
    Service::unlimited(&[&PATIENT, settings].concat())
}

/// A replica on this database and a key of an account on plan enterprise.
fn on(database: &Database) -> (Service, String) {
    let settings = [("DATABASE_URL", &*database.url), ("MOMAIL_SERVER__DRAIN_DELAY_MS", "0")];
    let service = patient(&settings);
    let arguments = ["accounts", "create", "--name", "test", "--plan", "enterprise", "--json"];
    let output = Service::command().args(arguments).env("DATABASE_URL", &database.url).output().unwrap();
    let account: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (service, account["key"]["apiKey"].as_str().unwrap().to_owned())
}

fn post(key: &str) -> String {
    let kind = "Content-Type: application/json\r\nContent-Length: 12\r\n";
    format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\n{kind}\r\n")
}

async fn wait_for_log(service: &Service, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !service.logs().contains(words) {
        assert!(Instant::now() < deadline, "never `{words}`: {}", service.logs());
        sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_until_nobody_listens(address: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "connections are still taken");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn readiness_falls_first_while_everything_is_still_answered() {
    let delay = Duration::from_secs(5);
    let mut service = patient(&[("MOMAIL_SERVER__DRAIN_DELAY_MS", "5000")]);
    let key = service.first_key();
    let mut kept = RawConnection::send(&service.public, LIVEZ).await;
    assert_eq!(kept.answer().await.unwrap().header("connection"), "");
    let mut idle = RawConnection::send(&service.public, LIVEZ).await;
    idle.answer().await.unwrap();
    assert_eq!(service.get("/readyz", "").await.status, 200);

    let signalled = Instant::now();
    service.signal("TERM");
    wait_for_log(&service, "stopping").await;
    // On both listeners; a balancer may ask either.
    assert_eq!(service.get("/readyz", "").await.code(), "SERVICE_UNAVAILABLE");
    assert_eq!(service.get_internal("/readyz").await.status, 503);
    assert_eq!(service.get_internal("/livez").await.status, 200);
    let list = service.get(KEYS, &key).await;
    assert_eq!((list.status.as_u16(), list.header("connection")), (200, "close"));
    let late = json_request(Method::POST, KEYS, &key, r#"{"name":"late"}"#);
    assert_eq!(service.send(late).await.status, 201);
    kept.write(LIVEZ).await;
    let answer = kept.answer().await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    kept.closed_after().await;
    assert!(signalled.elapsed() < delay, "too slow a machine to tell");

    // Then a connection at rest is closed without waiting for the grace.
    idle.closed_after().await;
    assert!(signalled.elapsed() >= delay, "{:?}", signalled.elapsed());
    assert!(service.wait().success(), "{}", service.logs());
    assert!(signalled.elapsed() < delay + SLACK, "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn every_signal_that_asks_for_the_end_ends_it_cleanly() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut service = patient(&[("MOMAIL_SERVER__DRAIN_DELAY_MS", "100")]);
        let mut idle = RawConnection::send(&service.public, LIVEZ).await;
        idle.answer().await.unwrap();
        service.signal(signal);
        assert!(service.wait().success(), "{signal} {}", service.logs());
        assert!(service.logs().contains("\"stopped\""), "{signal} {}", service.logs());
        idle.closed_after().await;
    }
}

async fn a_request_under_way_is_finished(database: Database) {
    let (mut service, key) = on(&database);
    let head = post(&key).replace("Host: a", "Host: a\r\nExpect: 100-continue");
    let mut under_way = RawConnection::send(&service.public, head).await;
    // The handler asks for the body.
    assert_eq!(under_way.answer().await.unwrap().status, 100);
    under_way.write(r#"{"name""#).await;
    service.signal("TERM");
    wait_until_nobody_listens(&service.public).await;
    under_way.write(r#":"a"}"#).await;
    let answer = under_way.answer().await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (201, "close"));
    assert!(service.wait().success(), "{}", service.logs());
    let made = database.number("select count(*) from api_keys where name = 'a'").await;
    assert_eq!(made, 1);
}

/// A balancer without health checks, as nginx is, sends requests until the socket closes, and cannot send a POST again.
#[tokio::test]
async fn what_was_sent_before_the_socket_closes_is_answered() {
    let mut service = patient(&[("MOMAIL_SERVER__DRAIN_DELAY_MS", "0")]);
    // While the process stands still, the kernel takes connections and requests for it.
    service.signal("STOP");
    let mut sent = Vec::new();
    for _ in 0..100 {
        sent.push(RawConnection::send(&service.public, LIVEZ).await);
    }
    service.signal("TERM");
    service.signal("CONT");
    for (n, connection) in sent.iter_mut().enumerate() {
        let answer = connection.answer().await.unwrap_or_else(|| panic!("connection {n} was cut"));
        assert_eq!(answer.status, 200);
    }
    assert!(service.wait().success(), "{}", service.logs());
}

#[tokio::test]
async fn a_connection_just_opened_may_still_send_its_request() {
    for _ in 0..20 {
        let mut service = patient(&[("MOMAIL_SERVER__DRAIN_DELAY_MS", "0")]);
        let opened = Instant::now();
        let mut fresh = RawConnection::open(&service.public).await;
        service.signal("TERM");
        wait_until_nobody_listens(&service.public).await;
        fresh.write(LIVEZ).await;
        let answer = fresh.answer().await;
        // It is given a second, which a busy machine may take for itself.
        if answer.is_some() || opened.elapsed() < Duration::from_secs(1) {
            let answer = answer.expect("the connection was not cut");
            assert_eq!((answer.status, answer.header("connection")), (200, "close"));
            assert!(service.wait().success(), "{}", service.logs());
            return;
        }
    }
    panic!("too slow a machine to tell");
}

#[tokio::test]
async fn clients_that_do_not_end_cannot_hold_the_process_beyond_the_grace() {
    let mut service = patient(&[("MOMAIL_SERVER__GRACE_MS", "1000")]);
    let key = service.first_key();
    let half_head = RawConnection::send(&service.public, "GET /livez HTTP/1.1\r\nHo").await;
    let silent = RawConnection::open(&service.public).await;
    let half_body = RawConnection::send(&service.public, post(&key) + "{").await;
    let half_chunk = post(&key).replace("Content-Length: 12", "Transfer-Encoding: chunked") + "c\r\n{";
    let half_chunk = RawConnection::send(&service.public, half_chunk).await;
    let deaf = deaf_client(&service, &key).await;
    while service.metric("http_connections", &[]).await < 6.0 {
        sleep(Duration::from_millis(5)).await;
    }
    let signalled = Instant::now();
    assert!(service.terminate().success(), "{}", service.logs());
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    assert!(took >= Duration::from_millis(900), "nothing held it: {took:?}");
    drop((half_head, silent, half_body, half_chunk, deaf));
}

/// Asks for more than the system buffers, and reads nothing of it.
async fn deaf_client(service: &Service, key: &str) -> TcpStream {
    let mut connection = Connection::open(&service.public).await.unwrap();
    for _ in 0..100 {
        let body = format!(r#"{{"name":"{}"}}"#, "n".repeat(100));
        assert_eq!(connection.send(json_request(Method::POST, KEYS, key, body)).await.unwrap().status, 201);
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let deaf = socket.connect(service.public.parse().unwrap()).await.unwrap();
    let list = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\n\r\n");
    let mut taken_at = Instant::now();
    // Once the server takes no more requests for a while, it is stuck with an answer.
    while taken_at.elapsed() < Duration::from_millis(500) {
        match deaf.try_write(list.as_bytes()) {
            Ok(_) => taken_at = Instant::now(),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
    deaf
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_says_so_by_the_exit_code() {
    for (settings, second) in [(("MOMAIL_SERVER__DRAIN_DELAY_MS", "600000"), "TERM"), (PATIENT[0], "INT")] {
        let mut service = patient(&[("MOMAIL_SERVER__GRACE_MS", "600000"), settings]);
        let held = RawConnection::send(&service.public, "GET /livez HTTP/1.1\r\nHo").await;
        while service.metric("http_connections", &[]).await < 2.0 {
            sleep(Duration::from_millis(5)).await;
        }
        service.signal("TERM");
        wait_for_log(&service, "stopping").await;
        service.signal(second);
        let signalled = Instant::now();
        assert_eq!(service.wait().code(), Some(1), "{}", service.logs());
        assert!(signalled.elapsed() < SLACK, "{:?}", signalled.elapsed());
        drop(held);
    }
}

async fn the_last_uses_in_memory_are_in_the_database_after_a_clean_stop(database: Database) {
    let (mut service, key) = on(&database);
    let millis = if database.is_postgres() {
        "(extract(epoch from last_used_at) * 1000)::bigint"
    } else {
        "cast(unixepoch(last_used_at, 'subsec') * 1000 as integer)"
    };
    let last_use = format!("select coalesce(max({millis}), 0) from key_secrets where prefix = '{}'", &key[3..11]);
    let mut connection = Connection::open(&service.public).await.unwrap();
    // The first use is written soon, the next ones only when the key has come to rest.
    let mut ask = async || assert_eq!(connection.send(request(Method::GET, KEYS, &key)).await.unwrap().status, 200);
    ask().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while database.number(&last_use).await == 0 {
        assert!(Instant::now() < deadline, "the first use is not written");
        sleep(Duration::from_millis(5)).await;
    }
    let written = database.number(&last_use).await;
    sleep(Duration::from_millis(5)).await;
    ask().await;
    assert!(service.terminate().success(), "{}", service.logs());
    let last = database.number(&last_use).await;
    assert!(last > written, "{last} is not after {written}");
}

#[tokio::test]
async fn a_signal_while_the_database_is_away_ends_the_start() {
    // One address refuses, and the other takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = mute.local_addr().unwrap().port();
    for port in [1, port] {
        let url = format!("postgres://nobody@127.0.0.1:{port}/nothing");
        for listens in [false, true] {
            let mut service = Service::spawn(&[("DATABASE_URL", &url), ("MOMAIL_SERVER__DRAIN_DELAY_MS", "600000")]);
            wait_for_log(&service, "starting").await;
            if listens {
                service.wait_until_it_listens();
            }
            let signalled = Instant::now();
            // It was never ready, so there is no balancer to be given time.
            assert!(service.terminate().success(), "{}", service.logs());
            assert!(signalled.elapsed() < 2 * SLACK, "{:?}", signalled.elapsed());
        }
    }
}

#[tokio::test]
async fn a_start_without_the_database_is_alive_but_not_ready_until_it_comes() {
    let mut postgres = PrivatePostgres::start().await;
    postgres.stop();
    let service = Service::start(&[("DATABASE_URL", &postgres.url())]);
    for _ in 0..3 {
        assert_eq!(service.get("/livez", "").await.status, 200);
        assert_eq!(service.get_internal("/livez").await.status, 200);
        assert_eq!(service.get("/readyz", "").await.status, 503);
        assert_eq!(service.get_internal("/readyz").await.status, 503);
        for key in ["", "mk_nonsense"] {
            let reply = service.get(KEYS, key).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"));
            assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
        }
    }
    postgres.run().await;
    service.wait_until_ready_is(200).await;
    assert_eq!(service.get(KEYS, "mk_nonsense").await.status, 401);
}
