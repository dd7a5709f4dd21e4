//! The shipped configurations under real gateways: who reaches the application behind them, as whom, and who does not.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, Method, Request};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::{Connection, Gateway, Kind, Passage, Reply, Service, Upstream, request};

/// Makes of each function a test under each gateway.
macro_rules! under_every_gateway {
    ($($test:ident),+ $(,)?) => {
        under_every_gateway!(@ nginx Kind::Nginx, $($test)+);
        under_every_gateway!(@ caddy Kind::Caddy, $($test)+);
        under_every_gateway!(@ haproxy Kind::Haproxy, $($test)+);
    };
    (@ $name:ident $kind:expr, $($test:ident)+) => {
        mod $name {
            use super::Kind;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($kind).await;
            })+
        }
    };
}

under_every_gateway!(
    a_good_key_reaches_the_application_and_is_named_there,
    whoever_has_no_good_key_gets_no_further,
    a_reached_limit_is_429_and_says_how_long_to_wait,
    options_passes_and_nothing_that_pretends_to_be_it,
    what_the_application_answers_is_left_as_it_is,
    failures_are_counted_by_the_client_and_not_by_what_it_says_it_is,
    connections_to_the_service_are_kept,
    a_service_in_trouble_lets_nobody_through,
);

const IDENTITY: [&str; 5] = ["x-key-id", "x-account-id", "x-plan", "x-key-prefix", "x-permissions"];

/// The service, a gateway and an application, and the service's first key.
struct Site {
    service: Service,
    gateway: Gateway,
    application: Upstream,
    key: String,
}

impl Site {
    async fn open(kind: Kind, settings: &[(&str, &str)]) -> Self {
        let service = Service::start(settings);
        let application = Upstream::start(200, "from the application").await;
        let gateway = Gateway::start(kind, &service.internal, &application.address).await;
        let key = service.first_key();
        Self { service, gateway, application, key }
    }

    async fn get(&self, path: &str, key: &str) -> Reply {
        self.gateway.send(request(Method::GET, path, key)).await
    }
}

fn with(mut request: Request<Body>, headers: &[(&str, &str)]) -> Request<Body> {
    for (name, value) in headers {
        request.headers_mut().append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    request
}

async fn a_good_key_reaches_the_application_and_is_named_there(kind: Kind) {
    let site = Site::open(kind, &[]).await;
    let own = site.service.get("/v1/api-keys", &site.key).await.body["data"][0].clone();
    let forged: Vec<_> = IDENTITY.iter().map(|name| (*name, "forged")).collect();
    let aliases = [("x_key_id", "forged"), ("x-key_id", "forged"), ("x_plan", "forged")];
    let bearer = format!("Bearer {}", site.key);
    let with_keys: [&[(&str, &str)]; 3] = [
        &[("x-api-key", &site.key)],
        &[("authorization", &bearer)],
        &[("x-api-key", &site.key), ("authorization", "Basic dXNlcjpwYXNz")],
    ];
    for (method, keys) in ["GET", "POST", "DELETE", "PATCH"].iter().flat_map(|method| with_keys.map(|k| (*method, k))) {
        let bare = request(method.parse().unwrap(), "/a/b%20c?page=2&x", "");
        let mut sent = with(with(with(bare, &forged), &aliases), keys);
        let body = if method == "GET" { String::new() } else { "x".repeat(20_000) };
        *sent.body_mut() = Body::from(body.clone());
        let reply = site.gateway.send(sent).await;
        assert_eq!((reply.status.as_u16(), &*reply.bytes), (200, &b"from the application"[..]), "{method}");

        let seen = site.application.seen();
        let [seen] = &seen[..] else { panic!("{} requests have reached the application", seen.len()) };
        assert_eq!((seen.head.method.as_str(), seen.head.uri.to_string().as_str()), (method, "/a/b%20c?page=2&x"));
        assert_eq!(seen.body, body, "the body reaches the application");
        assert_eq!(json!([seen.header("x-key-id"), seen.header("x-plan")]), json!([own["keyId"], own["plan"]]));
        assert_eq!(json!(seen.header("x-key-prefix")), own["keyPrefix"]);
        assert!(seen.header("x-account-id").starts_with("acc_"));
        let permissions = own["permissions"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        assert_eq!(seen.header("x-permissions"), permissions.collect::<Vec<_>>().join(" "));
        let text = format!("{:?}", seen.headers());
        assert!(!text.contains("forged"), "{text}");
        assert!(!text.contains(&site.key), "the key is not passed on: {text}");
        let others = keys.iter().any(|(_, value)| value.starts_with("Basic"));
        assert_eq!(seen.headers().contains_key("authorization"), others, "what is no key of ours is left");
    }
}

async fn whoever_has_no_good_key_gets_no_further(kind: Kind) {
    let site = Site::open(kind, &[]).await;
    let in_query = format!("/?api_key={}", site.key);
    let refused = [
        request(Method::GET, "/", ""),
        request(Method::POST, "/", ""),
        request(Method::GET, "/", "mk_nonsense"),
        request(Method::GET, &in_query, ""),
        request(Method::GET, &in_query, &site.key),
        with(request(Method::GET, "/", &site.key), &[("x-api-key", "another")]),
        with(request(Method::GET, "/", &site.key), &[("authorization", "Bearer another")]),
    ];
    for (at, request) in refused.into_iter().enumerate() {
        let reply = site.gateway.send(request).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (401, "UNAUTHORIZED"), "row {at} {reply:?}");
        let challenges: Vec<_> = reply.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(challenges, ["ApiKey realm=\"momail\""]);
    }
    assert_eq!(site.application.seen().len(), 0);
}

async fn a_reached_limit_is_429_and_says_how_long_to_wait(kind: Kind) {
    let off = [("MOMAIL_PLANS__PRO__PER_MINUTE", "0"), ("MOMAIL_PLANS__PRO__PER_HOUR", "0")];
    let site = Site::open(kind, &[&off[..], &[("MOMAIL_PLANS__PRO__PER_DAY", "5")]].concat()).await;
    for _ in 0..5 {
        assert_eq!(site.get("/", &site.key).await.status, 200);
    }
    for _ in 0..3 {
        let reply = site.get("/", &site.key).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (429, "RATE_LIMIT_EXCEEDED"), "{reply:?}");
        assert!((1..=86_400).contains(&reply.header("retry-after").parse::<u32>().unwrap()));
        assert!(reply.header("ratelimit").starts_with("\"day\";r=0;t="), "{reply:?}");
    }
    assert_eq!(site.application.seen().len(), 5, "each request is counted once");
    assert_eq!(site.service.get("/v1/api-keys", &site.key).await.status, 429, "by the limits of the API itself");
}

async fn options_passes_and_nothing_that_pretends_to_be_it(kind: Kind) {
    let site = Site::open(kind, &[]).await;
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "PUT")];
    for headers in [&preflight[..], &[("x-key-id", "forged"), ("x-plan", "forged")]] {
        let reply = site.gateway.send(with(request(Method::OPTIONS, "/a", ""), headers)).await;
        assert_eq!((reply.status.as_u16(), &*reply.bytes), (200, &b"from the application"[..]));
        let seen = site.application.seen();
        assert_eq!((seen.len(), &seen[0].head.method), (1, &Method::OPTIONS));
        assert!(IDENTITY.iter().all(|name| seen[0].header(name).is_empty()), "{:?}", seen[0].headers());
    }
    for header in ["x-forwarded-method", "x-original-method", "x-http-method-override"] {
        let pretended = with(request(Method::GET, "/a", ""), &[(header, "OPTIONS")]);
        assert_eq!(site.gateway.send(pretended).await.status, 401, "{header}");
    }
    assert_eq!(site.application.seen().len(), 0);
}

async fn what_the_application_answers_is_left_as_it_is(kind: Kind) {
    let service = Service::start(&[]);
    for status in [201, 401, 403, 404, 429, 500, 503] {
        let application = Upstream::start(status, "from the application").await;
        let gateway = Gateway::start(kind, &service.internal, &application.address).await;
        let reply = gateway.send(request(Method::GET, "/", &service.first_key())).await;
        assert_eq!((reply.status.as_u16(), &*reply.bytes), (status, &b"from the application"[..]));
    }
}

async fn failures_are_counted_by_the_client_and_not_by_what_it_says_it_is(kind: Kind) {
    let settings = [("MOMAIL_AUTH__FAILED_PER_MINUTE", "1"), ("MOMAIL_PROXIES__TRUSTED", "127.0.0.1")];
    let site = Site::open(kind, &settings).await;
    let status = async |client: [u8; 4], claimed: &str, key: &str| {
        let mut connection = Connection::open_from(IpAddr::from(client), &site.gateway.address).await.unwrap();
        let request = with(request(Method::GET, "/", key), &[("x-forwarded-for", claimed), ("forwarded", claimed)]);
        connection.send(request).await.unwrap().status.as_u16()
    };
    // The next failure of a client is forgiven within a minute, so a slow machine must not need that long for these.
    assert_eq!(status([127, 0, 0, 5], "8.8.8.1", "mk_no").await, 401);
    assert_eq!(status([127, 0, 0, 5], "8.8.8.2", "mk_no").await, 429);
    assert_eq!(status([127, 0, 0, 6], "127.0.0.5", "mk_no").await, 401);
    assert_eq!(status([127, 0, 0, 5], "8.8.8.3", &site.key).await, 200);
}

async fn connections_to_the_service_are_kept(kind: Kind) {
    const REQUESTS: usize = 40;
    let service = Service::start(&[]);
    let passage = Passage::to(&service.internal).await;
    let application = Upstream::start(200, "").await;
    let gateway = Gateway::start(kind, &passage.address, &application.address).await;
    let mut connection = Connection::open(&gateway.address).await.unwrap();
    let key = service.first_key();
    for _ in 0..REQUESTS {
        for (key, status) in [(&*key, 200), ("mk_nonsense", 401)] {
            assert_eq!(connection.send(request(Method::GET, "/", key)).await.unwrap().status, status);
        }
    }
    let accepted = passage.accepted();
    assert!((1..=REQUESTS / 10).contains(&accepted), "{accepted} connections for {} requests", 2 * REQUESTS);
}

async fn a_service_in_trouble_lets_nobody_through(kind: Kind) {
    let application = Upstream::start(200, "").await;
    let key = "mk_whatever";
    let answer = async |keys: &str| {
        let gateway = Gateway::start(kind, keys, &application.address).await;
        gateway.send(request(Method::GET, "/", key)).await
    };
    for (status, expected) in [(403, 403..404), (404, 400..600), (302, 300..600), (500, 500..600), (503, 500..600)] {
        let reply = answer(&Upstream::start(status, "{}").await.address).await;
        assert!(expected.contains(&reply.status.as_u16()), "{status} {reply:?}");
    }
    // Nobody listens; somebody listens and says nothing; somebody hangs up.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [free, silent.local_addr().unwrap().to_string(), rude.local_addr().unwrap().to_string()];
    tokio::spawn(async move { while rude.accept().await.is_ok() {} });
    for address in addresses {
        let reply = tokio::time::timeout(Duration::from_secs(30), answer(&address)).await.unwrap();
        assert!(reply.status.is_server_error(), "{reply:?}");
    }
    assert_eq!(application.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_of_haproxy_that_fails_lets_nobody_through() {
    let service = Service::start(&[]);
    let application = Upstream::start(200, "").await;
    let fails = |text: String| text.replace("local theirs =", "error('out of order')\n    local theirs =");
    let gateway = Gateway::start_altered(Kind::Haproxy, &service.internal, &application.address, fails).await;
    for key in ["", &service.first_key()] {
        assert_eq!(gateway.send(request(Method::GET, "/", key)).await.status, 503);
    }
    assert!(gateway.log().contains("out of order"), "{}", gateway.log());
    assert_eq!(application.seen().len(), 0);
}
