//! Where one request ends and the next begins, when whoever sends them would like us to be wrong about it (RFC 9112).

use crate::support::{RawConnection, Service};

const KEYS: &str = "/v1/api-keys";

/// A request that makes a key, up to the headers that say how long its body is.
struct Post {
    start: String,
}

impl Post {
    fn new(service: &Service) -> Self {
        let key = service.first_key();
        let head = format!("Host: keys.test\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n");
        Self { start: format!("POST {KEYS} HTTP/1.1\r\n{head}") }
    }

    /// A request framed as it should be.
    fn whole(&self, name: &str) -> String {
        let body = format!(r#"{{"name":"{name}"}}"#);
        format!("{}Content-Length: {}\r\n\r\n{body}", self.start, body.len())
    }
}

/// How many keys have a name, and how many requests to make one were answered.
async fn effects(service: &Service, name: &str) -> (usize, f64) {
    let list = service.get(KEYS, &service.first_key()).await;
    let made = list.body["data"].as_array().unwrap().iter().filter(|key| key["name"] == name).count();
    (made, service.metric("http_requests_total", &["method=\"POST\""]).await)
}

#[tokio::test]
async fn two_requests_framed_as_they_should_be_are_both_answered() {
    let service = Service::unlimited(&[]);
    let post = Post::new(&service);
    let mut connection = RawConnection::send(&service.public, post.whole("first") + &post.whole("second")).await;
    for _ in 0..2 {
        assert_eq!(connection.answer().await.unwrap().status, 201);
    }
    assert_eq!(effects(&service, "second").await, (1, 2.0));
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_never_taken_for_a_request() {
    let service = Service::unlimited(&[]);
    let post = Post::new(&service);
    let smuggled = post.whole("smuggled");
    // Refused for its key, its type or its path: each time before the body is read.
    let heads = [
        format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\n"),
        post.start.replace("application/json", "text/plain"),
        "POST /nowhere HTTP/1.1\r\nHost: a\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: a\r\n".to_owned(),
        "PUT /livez HTTP/1.1\r\nHost: a b\r\n".to_owned(),
    ];
    for head in heads {
        for framing in [
            format!("Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
            format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
        ] {
            let ending = "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let answers =
                RawConnection::send(&service.public, format!("{head}{framing}{ending}")).await.answers().await;
            assert!((1..=2).contains(&answers.len()), "{head} {framing}: {answers:?}");
            assert_eq!(effects(&service, "smuggled").await.0, 0, "{head} {framing}");
        }
    }
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let service = Service::unlimited(&[]);
    for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a b\r\n", "Host: user@a\r\n", "Host: a/b\r\n"] {
        let mut connection = RawConnection::send(&service.public, format!("GET /livez HTTP/1.1\r\n{hosts}\r\n")).await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((answer.status, &*answer.code()), (400, "VALIDATION_ERROR"), "{hosts}");
        assert!(answer.json()["error"]["details"]["fields"]["Host"].is_string(), "{hosts}");
        connection.closed_after().await;
    }
    for (version, hosts) in
        [("1.0", ""), ("1.0", "Host: a\r\n"), ("1.1", "Host: a:80\r\n"), ("1.1", "Host: [::1]:8080\r\n")]
    {
        let request = format!("GET /livez HTTP/{version}\r\n{hosts}\r\n");
        let answer = RawConnection::send(&service.public, request).await.answer().await.unwrap();
        assert_eq!(answer.status, 200, "{version} {hosts}");
    }
    let mut old = RawConnection::send(&service.public, "GET /livez HTTP/1.0\r\n\r\n").await;
    old.answer().await.unwrap();
    old.closed_after().await;
}

/// hyper answers these by itself, with an empty body: nothing of ours has seen a request yet.
#[tokio::test]
async fn a_head_that_is_too_large_is_431_and_the_end() {
    let service = Service::unlimited(&[]);
    let of_size = |bytes: usize| {
        let start = "GET /livez HTTP/1.1\r\nHost: a\r\nX-Long: ";
        format!("{start}{}\r\n\r\n", "a".repeat(bytes - start.len() - 4))
    };
    let of_lines = |lines: usize| format!("GET /livez HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-A: a\r\n".repeat(lines - 1));
    for head in [of_size(15_000), of_lines(100)] {
        let answer = RawConnection::send(&service.public, head).await.answer().await.unwrap();
        assert_eq!(answer.status, 200);
    }
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(33_000));
    for head in [of_size(32 * 1024 + 1), of_size(60_000), of_size(1_000_000), of_lines(101), long_path] {
        let answers = RawConnection::send(&service.public, head).await.answers().await;
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [431]);
    }
    // One that never ends is refused as soon as it is too large.
    let endless = of_size(40_000);
    let mut connection = RawConnection::send(&service.public, endless.trim_end()).await;
    assert_eq!(connection.answer().await.unwrap().status, 431);
    connection.closed_after().await;
}
