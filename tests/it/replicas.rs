//! The topology of docker-compose.yml as plain processes: nginx, two replicas behind it, one PostgreSQL database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::support::{
    Connection, Database, KeptClient, Nginx, Reply, Service, json_request, own_address, own_socket, raw_exchange,
    request,
};

const KEYS: &str = "/v1/api-keys";

struct Cluster {
    nginx: Nginx,
    replicas: [Service; 2],
    key: String,
    addresses: [String; 2],
    settings: Vec<(&'static str, String)>,
    _database: Database,
}

impl Cluster {
    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let database = Database::postgres().await;
        let key = Service::create_account(&database.url, "enterprise");
        let mut settings: Vec<_> = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        settings.push(("DATABASE_URL", database.url.clone()));
        // nginx connects from here, whatever it listens on.
        settings.push(("MOMAIL_PROXIES__TRUSTED", "127.0.0.1/32".to_owned()));
        let addresses = [own_socket(), own_socket()];
        let replicas = [0, 1].map(|n| start_replica(&addresses[n], &settings));
        for replica in &replicas {
            replica.wait_until_ready_is(200).await;
        }
        let nginx = Nginx::start([&addresses[0], &addresses[1]]);
        Self { nginx, replicas, key, addresses, settings, _database: database }
    }

    /// A request through nginx, on a connection of its own.
    async fn send(&self, request: Request<Body>) -> Reply {
        Connection::open(&self.nginx.public).await.unwrap().send(request).await.unwrap()
    }

    async fn create(&self, connection: &mut Connection, name: &str) -> Value {
        let mut reply = connection.send(create(&self.key, name)).await.unwrap();
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.body["data"].take()
    }
}

fn start_replica(address: &str, settings: &[(&'static str, String)]) -> Service {
    let mut settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push(("MOMAIL_SERVER__PUBLIC_ADDR", address));
    Service::start(&settings)
}

fn create(key: &str, name: &str) -> Request<Body> {
    json_request(Method::POST, KEYS, key, json!({ "name": name }).to_string())
}

fn delete(key: &str, made: &Value) -> Request<Body> {
    request(Method::DELETE, &format!("{KEYS}/{}", made["keyId"].as_str().unwrap()), key)
}

fn text(made: &Value) -> &str {
    made["apiKey"].as_str().unwrap()
}

fn with_header(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

#[tokio::test]
async fn a_key_made_on_one_replica_opens_the_other_at_once() {
    let cluster = Cluster::start(&[]).await;
    let mut connection = Connection::open(&cluster.nginx.public).await.unwrap();
    let mut crossed = 0;
    for round in 0..50 {
        let [made_as, used_as] = ["made", "used"].map(|what| format!("{what}-{round}"));
        let reply = connection.send(with_header(create(&cluster.key, "new"), "x-request-id", &made_as)).await.unwrap();
        assert_eq!(reply.status, 201, "{reply:?}");
        let key = text(&reply.body["data"]);
        for _ in 0..2 {
            let list = with_header(request(Method::GET, KEYS, key), "x-request-id", &used_as);
            assert_eq!(connection.send(list).await.unwrap().status, 200, "round {round}");
        }
        let [made, used] = [cluster.nginx.line_of(&made_as).await, cluster.nginx.line_of(&used_as).await];
        let by =
            |line: &str| cluster.addresses.iter().position(|address| line.contains(&format!("upstream={address} ")));
        crossed += usize::from(by(&made).unwrap() != by(&used).unwrap());
    }
    assert!(crossed > 25, "nginx takes turns, so most keys were first used on the other replica, not {crossed} of 50");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_opens_neither_replica_once_the_delete_is_answered() {
    let unlimited = [
        ("MOMAIL_PLANS__ENTERPRISE__PER_MINUTE", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_HOUR", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_DAY", "0"),
        ("MOMAIL_AUTH__FAILED_PER_MINUTE", "0"),
    ];
    let cluster = Cluster::start(&unlimited).await;
    let mut own = [open(&cluster.addresses[0]).await, open(&cluster.addresses[1]).await];
    let addresses = cluster.addresses.iter().cycle().take(4);
    let mut others = join_all(addresses.map(|address| open(address))).await;

    for round in 0..200 {
        let made = cluster.create(&mut own[0], "short lived").await;
        let (all_opened, is_revoked) = (Barrier::new(others.len() + 1), AtomicBool::new(false));
        let uses =
            others.iter_mut().map(|connection| use_to_the_end(connection, text(&made), &all_opened, &is_revoked));
        let revoke = async {
            all_opened.wait().await;
            let reply = own[round % 2].send(delete(&cluster.key, &made)).await.unwrap();
            is_revoked.store(true, Ordering::SeqCst);
            assert_eq!(reply.status, 200);
        };
        join(join_all(uses), revoke).await;
    }
}

async fn open(address: &str) -> Connection {
    Connection::open(address).await.unwrap()
}

/// Uses a key without a pause: it opens at first, and no request that begins after the revocation's answer is let in.
async fn use_to_the_end(connection: &mut Connection, key: &str, all_opened: &Barrier, is_revoked: &AtomicBool) {
    let mut status = async || connection.send(request(Method::GET, KEYS, key)).await.unwrap().status;
    assert_eq!(status().await, 200);
    all_opened.wait().await;
    let mut refused = 0;
    while refused < 3 {
        let begins_after = is_revoked.load(Ordering::SeqCst);
        let status = status().await;
        if begins_after {
            assert_eq!(status, 401, "the key was revoked before this request began");
            refused += 1;
        }
    }
}

#[tokio::test]
async fn request_ids_go_through_nginx_and_bad_ones_are_replaced_there() {
    let cluster = Cluster::start(&[]).await;
    for (sent, arrives) in [("from.the_client-1", true), ("bad id", false)] {
        let reply = cluster.send(with_header(request(Method::GET, KEYS, &cluster.key), "x-request-id", sent)).await;
        let id = reply.header("x-request-id");
        assert_eq!((id == sent, reply.status.as_u16()), (arrives, 200));
        let line = cluster.nginx.line_of(id).await;
        assert!(line.contains(" 127.0.0.1 \"GET /v1/api-keys\" 200 "), "{line}");
        let logged = format!("\"request_id\":\"{id}\"");
        // Lines are written some ten times a second.
        let deadline = Instant::now() + Duration::from_secs(10);
        let writers = || cluster.replicas.iter().filter(|replica| replica.logs().contains(&logged)).count();
        while writers() == 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(writers(), 1);
    }
}

#[tokio::test]
async fn failed_keys_count_against_the_client_and_not_against_nginx() {
    let cluster = Cluster::start(&[("MOMAIL_AUTH__FAILED_PER_MINUTE", "5")]).await;
    let (guesser, bystander) = (own_address(), own_address());
    let mut guessing = Connection::open_from(guesser.parse().unwrap(), &cluster.nginx.public).await.unwrap();
    let mut statuses = Vec::new();
    for n in 0..60 {
        // Whatever a client says about where it comes from is not believed.
        let guess = with_header(request(Method::GET, KEYS, "mk_wrong"), "x-forwarded-for", &format!("203.0.113.{n}"));
        statuses.push(guessing.send(guess).await.unwrap().status);
    }
    let count = |status| statuses.iter().filter(|seen| **seen == status).count();
    let (refused, limited) = (count(StatusCode::UNAUTHORIZED), count(StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(refused + limited, 60, "{statuses:?}");
    assert!(refused >= 10, "each of two replicas counts to 5, and {refused} were answered 401");
    assert!(limited >= 30, "{limited} of 60 were limited");
    let good = guessing.send(request(Method::GET, KEYS, &cluster.key)).await.unwrap();
    assert_eq!(good.status, 200, "a good key from the same address still passes");

    let mut standing_by = Connection::open_from(bystander.parse().unwrap(), &cluster.nginx.public).await.unwrap();
    for _ in 0..4 {
        let failure = standing_by.send(request(Method::GET, KEYS, "mk_wrong")).await.unwrap();
        assert_eq!(failure.status, 401, "another client is not to blame");
    }
}

#[tokio::test]
async fn what_nginx_refuses_itself_looks_like_the_services_refusals() {
    let mut cluster = Cluster::start(&[]).await;
    let long = "a".repeat(40_000);
    let head = "HTTP/1.1\r\nHost: keys.test\r\nConnection: close\r\n";
    let refusals = [
        ("garbage\r\n\r\n".to_owned(), 400, "VALIDATION_ERROR"),
        (format!("GET /{long} {head}\r\n"), 400, "VALIDATION_ERROR"),
        (format!("GET / {head}X-Long: {long}\r\n\r\n"), 400, "VALIDATION_ERROR"),
        (format!("POST {KEYS} {head}Transfer-Encoding: gzip\r\n\r\n"), 400, "VALIDATION_ERROR"),
        (format!("GET / {}\r\n", head.replace("HTTP/1.1", "HTTP/3.0")), 400, "VALIDATION_ERROR"),
        (format!("GET /-/malformed {head}\r\n"), 404, "NOT_FOUND"),
        (format!("TRACE / {head}\r\n"), 405, "METHOD_NOT_ALLOWED"),
        (format!("POST {KEYS} {head}Content-Length: 65537\r\n\r\n"), 413, "PAYLOAD_TOO_LARGE"),
    ];
    for (bytes, status, code) in refusals {
        let answer = raw_exchange(&cluster.nginx.public, bytes.as_bytes()).await;
        assert_is_refusal(&answer, status, code);
    }

    cluster.replicas.iter_mut().for_each(Service::kill);
    let answer = raw_exchange(&cluster.nginx.public, format!("GET {KEYS} {head}\r\n").as_bytes()).await;
    assert_is_refusal(&answer, 503, "SERVICE_UNAVAILABLE");
    assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
}

fn assert_is_refusal(answer: &str, status: u16, code: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!((&body["success"], &body["error"]["code"]), (&json!(false), &json!(code)));
    let expected = [
        "Content-Type: application/json",
        "X-Request-Id: ",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Access-Control-Allow-Origin: *",
        "Access-Control-Expose-Headers: X-Request-Id",
    ];
    for header in expected {
        assert!(head.contains(&format!("\r\n{header}")), "no {header} in {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_stops_and_comes_back_without_one_failed_request() {
    let unlimited = [
        ("MOMAIL_PLANS__ENTERPRISE__PER_MINUTE", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_HOUR", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_DAY", "0"),
    ];
    let mut cluster = Cluster::start(&unlimited).await;
    let (nginx, key) = (cluster.nginx.public.clone(), cluster.key.clone());
    let is_over = std::sync::Arc::new(AtomicBool::new(false));
    let load = (0..12).map(|_| tokio::spawn(live_on(nginx.clone(), key.clone(), is_over.clone())));
    let load: Vec<_> = load.collect();

    cluster.replicas[0].wait_until_it_is_asked().await;
    cluster.replicas[0].signal("TERM");
    let status = tokio::task::block_in_place(|| cluster.replicas[0].wait());
    assert!(status.success(), "{status}");
    cluster.replicas[0] = start_replica(&cluster.addresses[0], &cluster.settings);
    cluster.replicas[0].wait_until_it_is_asked().await;
    is_over.store(true, Ordering::SeqCst);

    let mut requests = 0;
    for client in join_all(load).await {
        requests += client.unwrap();
    }
    assert!(requests > 100, "{requests} requests are no load");
    let list = cluster.send(request(Method::GET, KEYS, &cluster.key)).await;
    assert_eq!(list.body["meta"]["total"], 1, "every key that was made was made once, and deleted");
}

/// Makes, uses and deletes keys over one kept connection until told to stop; panics at the first failure. Says how many
/// requests it made.
async fn live_on(address: String, key: String, is_over: std::sync::Arc<AtomicBool>) -> usize {
    let mut client = KeptClient::new(address);
    while !is_over.load(Ordering::SeqCst) {
        // A pace that leaves the machine to others.
        tokio::time::sleep(Duration::from_millis(15)).await;
        let reply = client.send(create(&key, "under load")).await.unwrap();
        assert_eq!(reply.status, 201, "{reply:?}");
        let made = &reply.body["data"];
        let reply = client.send(request(Method::GET, KEYS, text(made))).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        let reply = client.send(delete(&key, made)).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    client.requests
}
