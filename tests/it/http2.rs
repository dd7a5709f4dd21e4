//! HTTP/2 without TLS is not spoken here: neither outright nor after an upgrade, however often and however much of it is sent.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::support::{Connection, RawConnection, Service, is_long, request};

const MB: u64 = 1 << 20;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// The beginning of a head, which promises more of it.
const HEADERS: &[u8] = &[0, 0, 3, 1, 0, 0, 0, 0, 1, 0x82, 0x84, 0x86];
const CONTINUATION: &[u8] = &[0, 0, 1, 9, 0, 0, 0, 0, 1, 0x82];
const RESET: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
/// Nothing of ours takes so long.
const SOON: Duration = Duration::from_secs(5);

/// A preface and `count` frames behind it.
fn flood(frames: &[&[u8]], count: usize) -> Vec<u8> {
    let mut bytes = [PREFACE, SETTINGS].concat();
    for frame in frames.iter().cycle().take(count) {
        bytes.extend_from_slice(frame);
    }
    bytes
}

/// Sends all of it, for as long as it is taken, and expects one empty 400 at the most, and the end.
async fn is_refused(address: &str, bytes: &[u8]) {
    let began = Instant::now();
    let mut connection = RawConnection::open(address).await;
    let _ = timeout(SOON, connection.stream.write_all(bytes)).await.expect("it is still read");
    let answers = connection.answers().await;
    assert!(answers.len() <= 1, "{answers:?}");
    for answer in answers {
        assert_eq!((answer.status, answer.body.len()), (400, 0), "{answer:?}");
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_http_2_outright_is_refused_at_once_and_leaves_nothing_behind() {
    const AT_ONCE: usize = 50;
    let rounds = if is_long() { 200 } else { 10 };
    let service = Service::unlimited(&[("MOMAIL_LOG__FILTER", "off")]);
    let floods = [
        flood(&[], 0),
        flood(&[PING], 10_000),
        flood(&[SETTINGS], 10_000),
        flood(&[HEADERS, RESET], 10_000),
        [flood(&[], 0), HEADERS.to_vec(), CONTINUATION.repeat(10_000)].concat(),
    ];
    let storm = async |rounds: usize| {
        for round in 0..rounds {
            let bytes = &floods[round % floods.len()];
            join_all((0..AT_ONCE).map(|_| is_refused(&service.public, bytes))).await;
        }
    };
    // What the first connections of a process take once is not meant.
    storm(floods.len()).await;
    let before = service.resident_memory();
    let began = Instant::now();
    storm(rounds).await;
    let grown = service.resident_memory().saturating_sub(before);
    eprintln!("{} connections in {:?}: memory grew by {} KB", rounds * AT_ONCE, began.elapsed(), grown / 1024);
    assert!(grown < 10 * MB, "{grown} bytes");
    assert_eq!(service.get("/v1/api-keys", &service.first_key()).await.status, 200);
    let in_the_end = Instant::now() + SOON;
    // The one that asks is open as well.
    while service.metric("http_connections", &[]).await > 1.0 {
        assert!(Instant::now() < in_the_end, "connections are left");
    }
}

#[tokio::test]
async fn an_upgrade_is_not_taken_up_and_the_request_is_answered_as_any_other() {
    let service = Service::unlimited(&[]);
    for protocol in ["h2c", "HTTP/2.0", "websocket", "TLS/1.2"] {
        let mut asking = request(Method::GET, "/v1/api-keys", &service.first_key());
        asking.headers_mut().insert("upgrade", protocol.parse().unwrap());
        asking.headers_mut().insert("connection", "Upgrade, HTTP2-Settings".parse().unwrap());
        asking.headers_mut().insert("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA".parse().unwrap());
        let mut connection = Connection::open(&service.public).await.unwrap();
        let reply = connection.send(asking).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.header("upgrade")), (200, ""), "{protocol}");
        // What comes next is still HTTP/1.1.
        let reply = connection.send(request(Method::GET, "/livez", "")).await.unwrap();
        assert_eq!(reply.status, 200, "{protocol}");
    }
    let switched = "GET /livez HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n";
    let bytes = [switched.as_bytes(), PREFACE, SETTINGS].concat();
    let answers = RawConnection::send(&service.public, bytes).await.answers().await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200], "and then an end");
}
