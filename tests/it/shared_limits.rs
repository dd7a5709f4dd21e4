//! Limits that replicas share through Redis: exact while it answers, and never in the way while it does not.

use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::support::{Connection, Database, PrivateRedis, Pulse, Relay, Service, request};

const KEYS: &str = "/v1/api-keys";
const ALONE: &str = "each replica counts limits for itself until Redis answers";
const TOGETHER: &str = "limits are counted for all replicas together";
/// What a replica may take to find Redis again.
const LONGEST_RECOVERY: Duration = Duration::from_secs(5);
/// Beside a limit, for a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(5);

/// Three replicas on one database and one Redis, and the key of an account of this plan.
async fn replicas(redis_url: &str, plan: &str) -> (Vec<Service>, String, Database) {
    let database = Database::postgres().await;
    let key = Service::create_account(&database.url, plan);
    // Where the machine is what is slow, this process shall not take it for Redis.
    let settings = [
        ("DATABASE_URL", database.url.as_str()),
        ("REDIS_URL", redis_url),
        ("MOMAIL_LIMITS__REDIS_TIMEOUT_MS", "20000"),
    ];
    let replicas: Vec<_> = (0..3).map(|_| Service::start(&settings)).collect();
    for replica in &replicas {
        replica.wait_until_ready_is(200).await;
        assert_eq!(gauges(replica).await, (1.0, 0.0), "{}", replica.logs());
    }
    (replicas, key, database)
}

/// One replica on SQLite, with Redis at this URL, and its first key.
async fn replica(redis_url: &str) -> (Service, String) {
    // Long enough that a busy machine is seldom taken for a slow Redis, and too short for one that is.
    let patience = ("MOMAIL_LIMITS__REDIS_TIMEOUT_MS", "300");
    let service = Service::start(&[("REDIS_URL", redis_url), ("MOMAIL_PLANS__PRO__PER_MINUTE", "1000000"), patience]);
    service.wait_until_ready_is(200).await;
    let key = service.first_key();
    (service, key)
}

/// Whether limits are shared, and whether they should be and are not.
async fn gauges(service: &Service) -> (f64, f64) {
    (service.metric("limits_shared", &[]).await, service.metric("limits_degraded", &[]).await)
}

async fn until_shared(service: &Service) -> Duration {
    let began = Instant::now();
    while gauges(service).await != (1.0, 0.0) {
        assert!(began.elapsed() < LONGEST_RECOVERY + SLACK, "{}", service.logs());
        sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Asks so many times in a row, each of which is let go, and says how long each took, the shortest first.
async fn times(connection: &mut Connection, key: &str, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let reply = connection.send(request(Method::GET, KEYS, key)).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times
}

fn count(service: &Service, text: &str) -> usize {
    service.logs().matches(text).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_requests_at_once_on_three_replicas_go_exactly_as_often_as_the_plan_allows() {
    let redis = PrivateRedis::start().await;
    let (replicas, key, _database) = replicas(&redis.url(), "pro").await;
    let mut connections = join_all(
        replicas.iter().cycle().take(60).map(async |replica| Connection::open(&replica.public).await.unwrap()),
    )
    .await;
    let began = Instant::now();
    let asks = connections.iter_mut().enumerate().map(async |(n, connection)| {
        let share = 2_000 / 60 + usize::from(n < 2_000 % 60);
        let mut statuses = Vec::new();
        for _ in 0..share {
            statuses.push(connection.send(request(Method::GET, KEYS, &key)).await.unwrap().status);
        }
        statuses
    });
    let statuses = join_all(asks).await.concat();
    let elapsed = began.elapsed();
    let went = statuses.iter().filter(|status| **status == StatusCode::OK).count();
    let refused = statuses.iter().filter(|status| **status == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!((statuses.len(), went + refused), (2_000, 2_000));
    // A token comes back each 600 ms; the first request was judged some time after `began`, and the last before `elapsed`.
    let refilled = usize::try_from(elapsed.as_millis() / 600).unwrap();
    assert!((100..=100 + refilled).contains(&went), "{went} went in {elapsed:?}");
    eprintln!("{went} of 2000 went in {elapsed:?}");
    assert_eq!(redis.command(&["dbsize"]), "2", "the key and the probe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_by_one_replica_is_refused_by_all_and_waits_as_told() {
    let redis = PrivateRedis::start().await;
    let (replicas, key, database) = replicas(&redis.url(), "free").await;
    for n in 0..20 {
        assert_eq!(replicas[n % 3].get(KEYS, &key).await.status, 200, "request {n}");
    }
    let mut wait = 0;
    for replica in &replicas {
        let refused = replica.get(KEYS, &key).await;
        if refused.status == 429 {
            assert_eq!(refused.header("x-ratelimit-limit"), "20");
            wait = refused.header("retry-after").parse().unwrap();
        }
    }
    assert!((1..=3).contains(&wait), "{wait}");
    sleep(Duration::from_secs(wait)).await;
    assert_eq!(replicas[0].get(KEYS, &key).await.status, 200);

    // A new plan holds for the next request everywhere, whoever had refused the key.
    let accounts = Service::command()
        .args(["accounts", "set-plan", "Acme", "pro"])
        .env("DATABASE_URL", &database.url)
        .output()
        .unwrap();
    assert!(accounts.status.success());
    for (n, replica) in replicas.iter().enumerate() {
        let reply = replica.get(KEYS, &key).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-ratelimit-limit")), (200, "100"), "replica {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_service_starts_counts_alone_and_shares_when_it_comes() {
    let mut redis = PrivateRedis::absent();
    let (service, key) = replica(&redis.url()).await;
    assert_eq!(gauges(&service).await, (0.0, 1.0));
    let mut connection = Connection::open(&service.public).await.unwrap();
    times(&mut connection, &key, 50).await;
    redis.run().await;
    eprintln!("shared after {:?}", until_shared(&service).await);
    times(&mut connection, &key, 10).await;
    assert!(redis.command(&["keys", "*"]).contains("momail:limits:key_"));
    assert_eq!((count(&service, ALONE), count(&service, TOGETHER)), (1, 1), "{}", service.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_in_whatever_trouble_holds_nobody_up() {
    let mut redis = PrivateRedis::start().await;
    let relay = Relay::to(redis.port).await;
    let (service, key) = replica(&format!("redis://127.0.0.1:{}", relay.port)).await;
    let pulse = Pulse::of(&service);
    let mut connection = Connection::open(&service.public).await.unwrap();
    let usual = times(&mut connection, &key, 100).await[50];
    let troubles = ["stopped", "frozen", "silent", "slow", "full", "forbidden", "locked", "loading"];
    for trouble in troubles {
        // A busy machine may have been taken for a slow Redis before.
        let (alone, together) = (count(&service, ALONE), count(&service, TOGETHER));
        bring_into(trouble, &mut redis, &relay);
        // Only those that find out wait, and not for long.
        let at_first = times(&mut connection, &key, 10).await;
        let later = times(&mut connection, &key, 100).await;
        let degraded = gauges(&service).await;
        get_out_of(trouble, &mut redis, &relay).await;
        let recovered = until_shared(&service).await;
        let (median, last) = (later[50], later[98]);
        eprintln!(
            "{trouble}: usual {usual:?}, first {:?}, then {median:?} to {last:?}, back {recovered:?}",
            at_first[9]
        );
        assert!(last < Duration::from_millis(100) + SLACK / 5, "{trouble}: {later:?}");
        assert!(at_first[9] < Duration::from_millis(100) + SLACK, "{trouble}: {at_first:?}");
        assert!(later[50] < usual * 4 + Duration::from_millis(20), "{trouble}: {:?} beside {usual:?}", later[50]);
        assert_eq!(degraded, (0.0, 1.0), "{trouble}");
        assert_eq!(count(&service, ALONE), alone + 1, "{trouble} is said once\n{}", service.logs());
        assert_eq!(count(&service, TOGETHER), together + 1, "{trouble}");
    }
    pulse.assert_steady().await;
}

/// A password that nobody told the service.
const PASSWORD: &str = "changed";

fn bring_into(trouble: &str, redis: &mut PrivateRedis, relay: &Relay) {
    match trouble {
        "stopped" => redis.stop(),
        "frozen" => redis.freeze(),
        "silent" => relay.swallow(),
        "slow" => relay.delay(Duration::from_millis(200), 1),
        "full" => drop(redis.command(&["config", "set", "maxmemory", "1"])),
        "forbidden" => drop(redis.command(&["acl", "setuser", "default", "-@scripting"])),
        "locked" => {
            redis.command(&["config", "set", "requirepass", PASSWORD]);
            redis.command(&["-a", PASSWORD, "client", "kill", "type", "normal"]);
        }
        _ => redis.restart_slowly(),
    }
}

async fn get_out_of(trouble: &str, redis: &mut PrivateRedis, relay: &Relay) {
    match trouble {
        "stopped" => redis.run().await,
        "frozen" => redis.thaw(),
        "full" => drop(redis.command(&["config", "set", "maxmemory", "0"])),
        "forbidden" => drop(redis.command(&["acl", "setuser", "default", "+@all"])),
        "locked" => drop(redis.command(&["-a", PASSWORD, "config", "set", "requirepass", ""])),
        "loading" => {
            assert!(redis.command(&["ping"]).starts_with("LOADING"), "the trouble is over before its end");
            redis.stop();
            redis.run().await;
        }
        _ => relay.pass(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_forgets_all_or_may_not_write_is_no_error() {
    let mut redis = PrivateRedis::start().await;
    let (service, key) = replica(&redis.url()).await;
    let pulse = Pulse::of(&service);
    let mut connection = Connection::open(&service.public).await.unwrap();
    times(&mut connection, &key, 20).await;

    // Restarted empty, it counts from nothing.
    redis.stop();
    redis.run().await;
    times(&mut connection, &key, 20).await;
    until_shared(&service).await;
    let reply = connection.send(request(Method::GET, KEYS, &key)).await.unwrap();
    let (limit, left) = (reply.header("x-ratelimit-limit"), reply.header("x-ratelimit-remaining"));
    assert!(left.parse::<u32>().unwrap() < limit.parse().unwrap(), "{left} of {limit}");

    // As a replica of another server it refuses to count.
    redis.command(&["replicaof", "127.0.0.1", "1"]);
    times(&mut connection, &key, 20).await;
    assert_eq!(gauges(&service).await, (0.0, 1.0), "{}", service.logs());
    redis.command(&["replicaof", "no", "one"]);
    until_shared(&service).await;

    // Scripts that it has forgotten are brought again.
    redis.command(&["script", "flush"]);
    times(&mut connection, &key, 20).await;
    assert_eq!(gauges(&service).await, (1.0, 0.0), "{}", service.logs());
    let failed = service.metric("http_requests_total", &["status=\"503\""]).await;
    assert!(failed == 0.0, "{failed} requests were answered 503");
    pulse.assert_steady().await;
}
