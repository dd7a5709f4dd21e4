//! HTTP over a real socket: methods, paths, bodies, and what every answer carries.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Method;
use axum::routing::get;
use momail_api_keys::http;
use momail_api_keys::server::{Listener, Stop, Timeouts};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::{Connection, Database, RawAnswer, RawConnection, Service, TestApp, request};

const KEYS: &str = "/v1/api-keys";
const ITEM: &str = "/v1/api-keys/key_01hm5cqv1kf3w9zq2n8x7t4b6d";
const CURRENT: &str = "/v1/api-keys/current";
const HOST: &str = "Host: keys.test\r\n";

/// One request on a connection of its own, and its answer, which has whatever every answer must have.
async fn ask(service: &Service, request: &str) -> RawAnswer {
    let answer = RawConnection::send(&service.public, request).await.answer().await.expect(request);
    assert_has_what_every_answer_has(&answer, request);
    answer
}

fn assert_has_what_every_answer_has(answer: &RawAnswer, what: &str) {
    let id = answer.header("x-request-id");
    let is_harmless = id.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    assert!((1..=64).contains(&id.len()) && is_harmless, "{what}: {answer:?}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}: {answer:?}");
    let is_document = what.contains(" /openapi.json ") && answer.status == 200;
    assert!(is_document || answer.header("cache-control") == "no-store", "{what}: {answer:?}");
    for tells_too_much in ["server", "x-powered-by", "via"] {
        assert_eq!(answer.header(tells_too_much), "", "{what}: {answer:?}");
    }
    assert!(!(300..400).contains(&answer.status), "{what}: {answer:?}");
    if !answer.body.is_empty() {
        assert_eq!(answer.header("content-type"), "application/json", "{what}: {answer:?}");
    }
    if answer.status >= 400 {
        assert_ne!(answer.code(), "", "{what} is refused in other words: {answer:?}");
    }
}

#[tokio::test]
async fn a_method_that_a_path_does_not_take_is_405_with_allow_with_a_key_or_without() {
    let service = Service::unlimited(&[]);
    let key = format!("X-API-Key: {}\r\n", service.first_key());
    let paths = [
        (KEYS, "GET,HEAD,POST"),
        (ITEM, "GET,HEAD,PATCH,DELETE"),
        ("/livez", "GET,HEAD"),
        ("/openapi.json", "GET,HEAD"),
    ];
    for method in ["PUT", "PROPFIND", "TRACE", "CONNECT", "OPTIONS", "get", "Post", "BREW"] {
        for (path, allowed) in paths {
            for key in ["", &key] {
                let answer = ask(&service, &format!("{method} {path} HTTP/1.1\r\n{HOST}{key}\r\n")).await;
                assert_eq!((answer.status, &*answer.code()), (405, "METHOD_NOT_ALLOWED"), "{method} {path}");
                assert_eq!(answer.header("allow"), allowed, "{method} {path}");
            }
        }
    }
    for (method, path, allowed) in [
        ("POST", ITEM, "GET,HEAD,PATCH,DELETE"),
        ("PATCH", KEYS, "GET,HEAD,POST"),
        ("PATCH", CURRENT, "GET,HEAD,DELETE"),
    ] {
        let answer = ask(&service, &format!("{method} {path} HTTP/1.1\r\n{HOST}\r\n")).await;
        assert_eq!((answer.status, answer.header("allow")), (405, allowed), "{method} {path}");
    }
}

#[tokio::test]
async fn an_unknown_path_is_404_and_an_odd_slash_is_never_redirected() {
    let service = Service::unlimited(&[]);
    let key = format!("X-API-Key: {}\r\n", service.first_key());
    let paths = [
        "/",
        "/v1",
        "/v1/",
        "/v2/api-keys",
        "/v1/api-keys/",
        "/v1/api-keys//",
        "//v1/api-keys",
        "/v1//api-keys",
        "/v1/./api-keys",
        "/v1/x/../api-keys",
        "/v1%2Fapi-keys",
        "/V1/api-keys",
        "/livez/",
        "/readyz/x",
        "/metrics",
        "/v1/api-keys%00",
        "/%2e%2e/etc/passwd",
        "*",
    ];
    for path in paths {
        for method in ["GET", "POST", "OPTIONS"] {
            for key in ["", &key] {
                let answer = ask(&service, &format!("{method} {path} HTTP/1.1\r\n{HOST}{key}\r\n")).await;
                assert_eq!((answer.status, &*answer.code()), (404, "NOT_FOUND"), "{method} {path}");
            }
        }
    }
    let answer = ask(&service, &format!("CONNECT keys.test:443 HTTP/1.1\r\n{HOST}\r\n")).await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let service = Service::unlimited(&[]);
    let key = format!("X-API-Key: {}\r\n", service.first_key());
    for (path, key, status) in [(KEYS, &*key, 200), (KEYS, "", 401), ("/livez", "", 200), ("/openapi.json", "", 200)] {
        let of = |method: &str| format!("{method} {path} HTTP/1.1\r\n{HOST}{key}\r\n");
        // A key's first use makes its list longer.
        assert_eq!(ask(&service, &of("GET")).await.status, status, "{path}");
        // Were there a body after the answer to HEAD, it would be read as the start of the next answer.
        let mut connection = RawConnection::send(&service.public, of("HEAD") + &of("GET")).await;
        let head = connection.answer_without_body().await.unwrap();
        let get = connection.answer().await.unwrap();
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        let lasting = |answer: &RawAnswer| {
            let lasts = |line: &&str| !line.starts_with("date:") && !line.starts_with("x-request-id:");
            answer.head.lines().filter(lasts).map(str::to_owned).collect::<BTreeSet<_>>()
        };
        assert_eq!(lasting(&head), lasting(&get), "{path}");
    }
}

#[tokio::test]
async fn a_body_of_the_wrong_kind_or_size_is_refused_in_the_envelope() {
    let service = Service::unlimited(&[]);
    let post = format!("POST {KEYS} HTTP/1.1\r\n{HOST}X-API-Key: {}\r\n", service.first_key());
    let json = "Content-Type: application/json\r\n";
    let body = r#"{"name":"a"}"#;
    for kind in ["", "Content-Type: text/plain\r\n", "Content-Type: application/jsonx\r\n"] {
        let answer = ask(&service, &format!("{post}{kind}Content-Length: 12\r\n\r\n{body}")).await;
        assert_eq!((answer.status, &*answer.code()), (415, "UNSUPPORTED_MEDIA_TYPE"), "{kind}");
    }
    let answer = ask(&service, &format!("{post}{json}Content-Length: 1\r\n\r\n{{")).await;
    assert_eq!((answer.status, &*answer.code()), (400, "VALIDATION_ERROR"));

    // Announced: the answer does not wait for the body.
    let mut connection =
        RawConnection::send(&service.public, format!("{post}{json}Content-Length: 65537\r\n\r\n")).await;
    let answer = connection.answer().await.unwrap();
    assert_eq!((answer.status, &*answer.code()), (413, "PAYLOAD_TOO_LARGE"));
    connection.closed_after().await;

    // In chunks, of which the last one is too much, and the end never comes.
    let chunk = format!("4000\r\n{}\r\n", "a".repeat(0x4000));
    let chunks = format!("{post}{json}Transfer-Encoding: chunked\r\n\r\n{}1\r\na\r\n", chunk.repeat(4));
    let mut connection = RawConnection::send(&service.public, chunks).await;
    let answer = connection.answer().await.unwrap();
    assert_eq!((answer.status, &*answer.code()), (413, "PAYLOAD_TOO_LARGE"));
    connection.closed_after().await;

    // The largest body there may be.
    let largest = body.to_owned() + &" ".repeat(65_536 - body.len());
    let answer = ask(&service, &format!("{post}{json}Content-Length: 65536\r\n\r\n{largest}")).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn a_request_without_a_key_is_refused_before_its_body_comes() {
    let service = Service::unlimited(&[("MOMAIL_SERVER__BODY_TIMEOUT_MS", "600000")]);
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        for key in ["", "X-API-Key: mk_nonsense\r\n"] {
            let started = Instant::now();
            let head = format!("POST {KEYS} HTTP/1.1\r\n{HOST}{key}{framing}\r\n\r\n");
            let mut connection = RawConnection::send(&service.public, head).await;
            let answer = connection.answer().await.unwrap();
            assert_eq!((answer.status, &*answer.code()), (401, "UNAUTHORIZED"));
            assert!(started.elapsed() < Duration::from_secs(5), "the body was waited for");
            connection.closed_after().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_asks_whether_to_go_on_is_told_so_only_with_a_key() {
    let service = Service::unlimited(&[]);
    let key = format!("X-API-Key: {}\r\n", service.first_key());
    let head = |key: &str| {
        let kind = "Content-Type: application/json\r\nContent-Length: 12\r\nExpect: 100-continue\r\n";
        format!("POST {KEYS} HTTP/1.1\r\n{HOST}{key}{kind}\r\n")
    };
    let mut connection = RawConnection::send(&service.public, head(&key)).await;
    assert_eq!(connection.answer().await.unwrap().status, 100);
    connection.write(r#"{"name":"a"}"#).await;
    assert_eq!(connection.answer().await.unwrap().status, 201);
    assert_eq!(ask(&service, &head("")).await.status, 401);
}

#[tokio::test]
async fn a_clients_own_request_id_is_kept_only_if_it_is_harmless_and_the_log_has_the_same() {
    let service = Service::unlimited(&[]);
    let longest = "a".repeat(64);
    let too_long = "a".repeat(65);
    let table = [
        ("ok-1.2_3", true),
        (&*longest, true),
        ("", false),
        (&*too_long, false),
        ("a b", false),
        ("a/b", false),
        ("a\tb", false),
        ("\"quoted\"", false),
        ("{\"level\":\"fatal\"}", false),
        ("caf\u{e9}", false),
    ];
    for (id, is_kept) in table {
        let answer = ask(&service, &format!("GET /livez HTTP/1.1\r\n{HOST}X-Request-Id: {id}\r\n\r\n")).await;
        assert_eq!(answer.header("x-request-id") == id, is_kept, "{id}");
        let logged = || {
            let logs = service.logs();
            let mut lines = logs.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
            lines.any(|line| line["message"] == "request" && line["request_id"] == answer.header("x-request-id"))
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !logged() {
            assert!(Instant::now() < deadline, "{id}: {}", service.logs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(!service.logs().contains("fatal"));
    let first = ask(&service, &format!("GET /livez HTTP/1.1\r\n{HOST}\r\n")).await;
    let second = ask(&service, &format!("GET /livez HTTP/1.1\r\n{HOST}\r\n")).await;
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

async fn panics() {
    panic!("the words of a panic");
}

#[tokio::test]
async fn a_panic_is_a_500_and_neither_the_connection_nor_the_process_minds() {
    let database = Database::sqlite();
    let replica = TestApp::on(&database).await;
    let app = replica.app.clone();
    let seconds = Duration::from_secs(60);
    let listener = Listener {
        socket: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        routes: http::in_layers(&app, Router::new().route("/panic", get(panics)).route("/calm", get(async || "calm"))),
        max_connections: 10,
        timeouts: Timeouts { header: seconds, keep_alive: seconds, write: seconds },
        app,
    };
    let address = listener.address().unwrap().to_string();
    let stop = Stop::default();
    tokio::spawn(listener.run(stop.clone()));

    let mut connection = Connection::open(&address).await.unwrap();
    for _ in 0..1_000 {
        let reply = connection.send(request(Method::GET, "/panic", "")).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.code()), (500, "INTERNAL_ERROR"));
        let text = String::from_utf8(reply.bytes).unwrap();
        assert!(!text.contains("panic") && !text.contains(".rs"), "{text}");
    }
    assert_eq!(connection.send(request(Method::GET, "/calm", "")).await.unwrap().bytes, b"calm");
    assert_eq!(stop.connections.len(), 1, "it was one connection all along");
}
