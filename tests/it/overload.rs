//! More is asked than the database can answer: some are answered as ever, the others refused at once, and what closes doors and
//! says that we live goes on.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::support::{
    Answer, Connection, Database, RawConnection, Service, Strain, accounts, is_long, json_request, on_both_stores,
    open_loop, percentile, request, unknown_key, unlimited,
};

const KEYS: &str = "/v1/api-keys";
/// What a statement takes longer, each way.
const SLOW: Duration = Duration::from_millis(15);

on_both_stores!(
    three_times_what_the_database_can_do_leaves_most_of_it_and_every_revocation,
    what_clients_have_given_up_is_not_done,
);

/// A service whose database is slow.
struct Strained {
    service: Service,
    key: String,
    database: Database,
    _strain: Strain,
}

impl Strained {
    async fn on(database: Database) -> Self {
        let key = accounts(&database, 1).await.remove(0);
        let (url, strain) = database.strained(SLOW).await;
        let service = Service::start(&[&unlimited(&url)[..], &[("MOMAIL_STORE__MAX_CONNECTIONS", "5")]].concat());
        service.wait_until_ready_is(200).await;
        service.wait_until_leased().await;
        Self { service, key, database, _strain: strain }
    }

    fn create(&self) -> Request<Body> {
        json_request(Method::POST, KEYS, &self.key, json!({ "name": "one of many" }).to_string())
    }

    async fn id_of_a_new_key(&self, connection: &mut Connection) -> String {
        let reply = connection.send(self.create()).await.unwrap();
        reply.body["data"]["keyId"].as_str().unwrap_or_else(|| panic!("{reply:?}")).to_owned()
    }

    /// Creations a second, by a few clients who each wait for their answer.
    async fn peak(&self, lasting: Duration) -> f64 {
        let began = Instant::now();
        let clients = (0..8).map(async |_| {
            let mut connection = Connection::open(&self.service.public).await.unwrap();
            let mut created = 0_u32;
            while began.elapsed() < lasting {
                let reply = connection.send(self.create()).await.unwrap();
                assert_eq!(reply.status, 201, "{reply:?}\n{}", self.service.logs());
                created += 1;
            }
            created
        });
        f64::from(join_all(clients).await.iter().sum::<u32>()) / began.elapsed().as_secs_f64()
    }
}

async fn three_times_what_the_database_can_do_leaves_most_of_it_and_every_revocation(database: Database) {
    let lasting = Duration::from_secs(if is_long() { 60 } else { 5 });
    let strained = Strained::on(database).await;
    let mut connection = Connection::open(&strained.service.public).await.unwrap();
    let mut doomed = Vec::new();
    for _ in 0..10 {
        doomed.push(strained.id_of_a_new_key(&mut connection).await);
    }
    let peak = strained.peak(Duration::from_secs(2)).await;

    let every = Duration::from_secs_f64(1.0 / (3.0 * peak));
    let began = Instant::now();
    let load = async {
        let answers = open_loop(&strained.service.public, every, lasting, || strained.create()).await;
        (answers, began.elapsed())
    };
    let ((answers, took), (), ()) =
        tokio::join!(load, revoke(&strained, &doomed, lasting), ask_for_health(&strained.service, lasting));

    let (good, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status() == 201);
    let goodput = count(&good) / took.as_secs_f64();
    let shed_99 = percentile(refused.iter().map(|answer| answer.took), 99);
    let shed_50 = percentile(refused.iter().map(|answer| answer.took), 50);
    let good_99 = percentile(good.iter().map(|answer| answer.took), 99);
    eprintln!(
        "peak {peak:.0}/s; at three times it {goodput:.0}/s ({:.2}), p99 {good_99:?}; {} refused, p50 {shed_50:?}, p99 {shed_99:?}",
        goodput / peak,
        refused.len(),
    );
    for answer in &refused {
        assert_shed(answer);
    }
    // What a file can do is a matter of the processors, which the clients of a test use as well.
    if strained.database.is_postgres() {
        assert!(refused.len() > answers.len() / 10, "{} of {} were refused", refused.len(), answers.len());
        assert!(goodput > if is_long() { 0.8 } else { 0.4 } * peak, "{goodput} of {peak}");
        assert!(strained.service.metric("database_refused_total", &[]).await >= count(&refused));
        assert!(if is_long() { shed_99 } else { shed_50 } < Duration::from_millis(100), "{shed_50:?}, {shed_99:?}");
    }

    // And when it is over, it is over.
    let began = Instant::now();
    while !join_all((0..4).map(async |_| strained.service.send(strained.create()).await.status == 201))
        .await
        .iter()
        .all(|done| *done)
    {
        assert!(began.elapsed() < Duration::from_secs(5), "requests are still refused\n{}", strained.service.logs());
    }
    assert!(
        strained.service.logs().matches("asked for more than it can answer").count() < if is_long() { 200 } else { 20 }
    );
}

fn count(answers: &[&Answer]) -> f64 {
    f64::from(u32::try_from(answers.len()).unwrap())
}

fn assert_shed(answer: &Answer) {
    let reply = answer.reply.as_ref().expect("every request is answered");
    assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"), "{reply:?}");
    assert!((1..=3).contains(&reply.header("retry-after").parse::<u32>().unwrap()));
}

/// Revokes a key now and then; each is gone at once.
async fn revoke(strained: &Strained, doomed: &[String], lasting: Duration) {
    let pause = lasting / (u32::try_from(doomed.len()).unwrap() + 1);
    for id in doomed {
        let began = Instant::now();
        let reply = strained.service.send(request(Method::DELETE, &format!("{KEYS}/{id}"), &strained.key)).await;
        assert_eq!(reply.status, 200, "{reply:?}\n{}", strained.service.logs());
        sleep(pause.saturating_sub(began.elapsed())).await;
    }
}

async fn ask_for_health(service: &Service, lasting: Duration) {
    let began = Instant::now();
    while began.elapsed() < lasting {
        for path in ["/livez", "/readyz"] {
            let reply = service.get_internal(path).await;
            assert_eq!(reply.status, 200, "{path}: {reply:?}\n{}", service.logs());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn what_clients_have_given_up_is_not_done(database: Database) {
    const CLIENTS: i64 = 200;
    let strained = Strained::on(database).await;
    let before = keys_of(&strained).await;
    let open = join_all((0..CLIENTS).map(|_| Connection::open(&strained.service.public))).await;
    let impatient = open.into_iter().map(async |connection| {
        timeout(Duration::from_millis(100), connection.unwrap().send(strained.create())).await.is_ok()
    });
    let answered = join_all(impatient).await.iter().filter(|answered| **answered).count();
    assert!(answered < 200, "nobody has given up");
    // Whoever still waited would be served now.
    let began = Instant::now();
    while strained.service.metric("database_waiting", &[]).await > 0.0 {
        assert!(began.elapsed() < Duration::from_secs(2), "the line does not empty");
        sleep(Duration::from_millis(20)).await;
    }
    let mut made = keys_of(&strained).await - before;
    loop {
        sleep(Duration::from_millis(200)).await;
        let now = keys_of(&strained).await - before;
        if now == made {
            break;
        }
        made = now;
    }
    eprintln!("{answered} of {CLIENTS} were answered, and {made} keys made");
    assert!(made < CLIENTS / 2, "{made} keys were made, {answered} for somebody");
}

async fn keys_of(strained: &Strained) -> i64 {
    strained.database.number("select count(*) from api_keys").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_keys_that_ask_for_revocations_keep_nobody_from_revoking() {
    let strained = Strained::on(Database::postgres().await).await;
    let mut connection = Connection::open(&strained.service.public).await.unwrap();
    let mut doomed = Vec::new();
    for _ in 0..5 {
        doomed.push(strained.id_of_a_new_key(&mut connection).await);
    }
    let lasting = Duration::from_secs(if is_long() { 30 } else { 3 });
    let path = format!("{KEYS}/{}", doomed[0]);
    let forge = || request(Method::DELETE, &path, &unknown_key());
    let (forged, (), ()) = tokio::join!(
        open_loop(&strained.service.public, Duration::from_millis(2), lasting, forge),
        revoke(&strained, &doomed, lasting),
        ask_for_health(&strained.service, lasting),
    );
    let refused = forged.iter().filter(|answer| answer.status() == 503).count();
    eprintln!("{refused} of {} forged ones were refused without a look", forged.len());
    assert!(refused > forged.len() / 10, "{refused} of {}: they were not too many", forged.len());
    assert!(forged.iter().all(|answer| matches!(answer.status(), 401 | 503)), "a forged key is answered otherwise");
}

/// What a connection may cost at the most, its body of 64 KiB included.
const MEMORY_OF_A_CONNECTION: u64 = 256 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_at_fifty_times_its_limit_takes_nothing_from_another() {
    let database = Database::sqlite();
    let keys = accounts(&database, 2).await;
    let service = Service::start(&[
        ("DATABASE_URL", database.url.as_str()),
        ("MOMAIL_PLANS__ENTERPRISE__PER_MINUTE", "600"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_HOUR", "0"),
        ("MOMAIL_PLANS__ENTERPRISE__PER_DAY", "0"),
        ("MOMAIL_LOG__FILTER", "warn"),
    ]);
    service.wait_until_ready_is(200).await;
    let list = |key: usize| request(Method::GET, KEYS, &keys[key]);
    // Half of its limit, which is ten a second.
    let quiet = |lasting| open_loop(&service.public, Duration::from_millis(200), lasting, || list(1));
    let lasting = Duration::from_secs(if is_long() { 30 } else { 3 });
    let alone = quiet(lasting).await;
    let (beside, noise) =
        tokio::join!(quiet(lasting), open_loop(&service.public, Duration::from_millis(2), lasting, || list(0)));

    let refused = noise.iter().filter(|answer| answer.status() == 429).count();
    assert!(refused > noise.len() / 2 || noise.len() < 1_000, "{refused} of {} were refused", noise.len());
    assert!(alone.iter().chain(&beside).all(|answer| answer.status() == 200), "the quiet one is refused");
    let [alone, beside] = [alone, beside].map(|answers| percentile(answers.iter().map(|answer| answer.took), 99));
    eprintln!("p99 {alone:?} alone, {beside:?} beside {} requests", noise.len());
    let most = if is_long() { (2 * alone).max(Duration::from_millis(10)) } else { Duration::from_secs(5) };
    assert!(beside < most, "{alone:?}, {beside:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_on_every_connection_stay_within_what_a_connection_may_cost() {
    let connections: u32 = if is_long() { 10_000 } else { 500 };
    let service = Service::unlimited(&[
        ("MOMAIL_LOG__FILTER", "warn"),
        ("MOMAIL_SERVER__BODY_TIMEOUT_MS", "60000"),
        ("MOMAIL_SERVER__MAX_CONNECTIONS", "10000"),
        // The clients leave the service little of the processors.
        ("MOMAIL_AUTH__LEASE_MS", "10000"),
    ]);
    let key = service.first_key();
    service.wait_until_leased().await;
    let before = service.resident_memory();
    let body = format!("{{\"name\": \"{}\"}}", "a".repeat(64 * 1024 - 12));
    let open = async |_| {
        let head = format!(
            "POST {KEYS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut client = RawConnection::send(&service.public, head).await;
        // All of it but the end.
        client.write(&body[..body.len() - 1]).await;
        client
    };
    let mut clients = Vec::new();
    // No more at once than the kernel keeps in its queue.
    for _ in 0..connections / 500 {
        clients.extend(join_all((0..500).map(open)).await);
    }
    let began = Instant::now();
    let mut most = 0;
    // Until all of it is there.
    while most < service.resident_memory() {
        most = most.max(service.resident_memory());
        sleep(Duration::from_millis(500)).await;
    }
    // On a busy machine some are refused for want of an answer in time.
    let open = service.metric("http_connections", &[]).await;
    eprintln!("{open} of {connections} connections cost {} KiB", (most - before) / 1024);
    assert!(open > f64::from(connections) / 2.0, "{open} of {connections} are open\n{}", service.logs());
    assert!((most - before) < u64::from(connections) * MEMORY_OF_A_CONNECTION, "{most} bytes");
    drop(clients);
    while service.get(KEYS, &key).await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody is served\n{}", service.logs());
    }
}
