//! The database moves to another server: by promotion of a standby, or because its name leads elsewhere. Nobody restarts a replica.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    Database, PrivatePostgres, PrivateRedis, Pulse, Relay, Service, accounts, json_request, own_address, request,
    unlimited,
};

const KEYS: &str = "/v1/api-keys";
/// A refusal that waits for nothing, on however busy a machine.
const AT_ONCE: Duration = Duration::from_secs(2);
const LONGEST_RECOVERY: Duration = Duration::from_secs(10);
/// What new connections may take to follow a name.
const LONGEST_MOVE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(30);

fn create(key: &str) -> Request<Body> {
    json_request(Method::POST, KEYS, key, json!({ "name": "written" }).to_string())
}

fn through(relay: &Relay) -> String {
    format!("postgres://postgres@127.0.0.1:{}/postgres", relay.port)
}

/// Waits until the second database has what the first one has.
async fn wait_until_replayed(primary: &Database, standby: &Database) {
    let keys = "select count(*) from api_keys";
    let deadline = Instant::now() + PATIENCE;
    while standby.number(keys).await != primary.number(keys).await {
        assert!(Instant::now() < deadline, "the standby does not follow");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn assert_writes_again(service: &Service, key: &str, longest: Duration) {
    let (began, mut refused) = (Instant::now(), 0);
    loop {
        let reply = service.send(create(key)).await;
        if reply.status == 201 {
            break;
        }
        assert_eq!(reply.code(), "SERVICE_UNAVAILABLE", "{reply:?}");
        refused += 1;
        assert!(began.elapsed() < longest, "it does not write again\n{}", service.logs());
        sleep(Duration::from_millis(20)).await;
    }
    eprintln!("written after {:?} and {refused} refusals", began.elapsed());
    assert!(began.elapsed() < longest, "{:?}", began.elapsed());
    service.wait_until_leased().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_in_the_place_of_the_primary_judges_no_key_and_all_comes_back_with_a_primary() {
    let mut primary = PrivatePostgres::start().await;
    let key = accounts(&primary.database(), 1).await.remove(0);
    let standby = primary.standby().await;
    let relay = Relay::to(primary.port()).await;
    let service = Service::start(&unlimited(&through(&relay)));
    service.wait_until_ready_is(200).await;
    let pulse = Pulse::of(&service);
    assert_writes_again(&service, &key, LONGEST_RECOVERY).await;
    wait_until_replayed(&primary.database(), &standby.database()).await;

    relay.lead_to(standby.port());
    relay.cut();
    // A lease from before lasts for a second, and no other follows.
    sleep(Duration::from_millis(1_100)).await;
    for _ in 0..20 {
        assert!(service.metric("cache_lease_left_millis", &[]).await <= 0.0, "a standby is believed");
        let began = Instant::now();
        let reply = service.send(create(&key)).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"), "{reply:?}");
        assert!(began.elapsed() < AT_ONCE, "it is refused at once: {:?}", began.elapsed());
        let reply = service.get(KEYS, &key).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"), "a standby judges a key");
        sleep(Duration::from_millis(50)).await;
    }

    // Back to where it was. The connections to the standby are open still, and nobody cuts them.
    relay.lead_to(primary.port());
    assert_writes_again(&service, &key, LONGEST_RECOVERY).await;
    wait_until_replayed(&primary.database(), &standby.database()).await;

    // Forward: the primary is lost, and the standby takes its place.
    primary.stop();
    relay.lead_to(standby.port());
    standby.database().sql("select pg_promote()").await;
    assert_writes_again(&service, &key, LONGEST_RECOVERY).await;
    pulse.assert_steady().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_primary_is_left_before_a_key_that_was_revoked_on_its_successor_opens_anything() {
    let former = PrivatePostgres::start().await;
    let keys = accounts(&former.database(), 2).await;
    let successor = former.standby().await;
    let relay = Relay::to(former.port()).await;
    let stranded = Service::start(&unlimited(&through(&relay)));
    stranded.wait_until_ready_is(200).await;
    let doomed = stranded.send(create(&keys[0])).await.body["data"].clone();
    let (id, text) = (doomed["keyId"].as_str().unwrap(), doomed["apiKey"].as_str().unwrap());
    stranded.wait_until_leased().await;
    assert_eq!(stranded.get(KEYS, text).await.status, 200);
    wait_until_replayed(&former.database(), &successor.database()).await;

    // The former primary lives on, connections to it stay open, and it may not be written any more. New ones are led elsewhere.
    former.database().sql("alter system set default_transaction_read_only = on").await;
    former.database().sql("select pg_reload_conf()").await;
    relay.lead_to(successor.port());
    successor.database().sql("select pg_promote()").await;
    let elsewhere = Service::start(&unlimited(&successor.url()));
    elsewhere.wait_until_ready_is(200).await;
    let revoked = elsewhere.send(request(Method::DELETE, &format!("{KEYS}/{id}"), &keys[0])).await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    let began = Instant::now();
    for _ in 0..50 {
        let reply = stranded.get(KEYS, text).await;
        let after = began.elapsed();
        assert!(matches!(reply.status.as_u16(), 401 | 503), "{after:?} after the revocation: {}", reply.status);
        sleep(Duration::from_millis(10)).await;
    }
    assert_writes_again(&stranded, &keys[0], LONGEST_RECOVERY).await;
}

/// Runs what follows where this file is `/etc/hosts`.
const OTHER_NAMES: [&str; 5] = ["unshare", "--mount", "--map-root-user", "sh", "-c"];
const BIND: &str = "mount --bind hosts /etc/hosts && exec \"$0\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_lead_elsewhere_are_followed_by_new_connections() {
    if !Command::new("unshare").args(["--mount", "--map-root-user", "true"]).status().unwrap().success() {
        eprintln!("nothing was tested: this machine does not let us have an /etc/hosts of our own");
        return;
    }
    let (mut postgres, mut redis) = (PrivatePostgres::start().await, PrivateRedis::start().await);
    let key = accounts(&postgres.database(), 1).await.remove(0);
    let (successor, other_redis) = (postgres.standby().await, PrivateRedis::start().await);
    // The same ports at two addresses.
    let (here, there) = (own_address(), own_address());
    let database = Relay::at(&format!("{here}:0"), postgres.port()).await;
    let limits = Relay::at(&format!("{here}:0"), redis.port).await;
    let _elsewhere = [
        Relay::at(&format!("{there}:{}", database.port), successor.port()).await,
        Relay::at(&format!("{there}:{}", limits.port), other_redis.port).await,
    ];

    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let lead_to = |address: &str| fs::write(&hosts, format!("{address} keys.test\n")).unwrap();
    lead_to(&here);
    let bind = BIND.replace("hosts /", &format!("{} /", hosts.display()));
    let url = format!("postgres://postgres@keys.test:{}/postgres", database.port);
    let redis_url = format!("redis://keys.test:{}", limits.port);
    let mut settings = unlimited(&url);
    settings.extend([("REDIS_URL", redis_url.as_str()), ("MOMAIL_PLANS__ENTERPRISE__PER_MINUTE", "1000000")]);
    let service = Service::start_within(&[&OTHER_NAMES[..], &[&bind]].concat(), &settings);
    service.wait_until_ready_is(200).await;
    let pulse = Pulse::of(&service);
    assert_writes_again(&service, &key, LONGEST_MOVE).await;
    assert!(service.metric("limits_shared", &[]).await > 0.0, "{}", service.logs());
    wait_until_replayed(&postgres.database(), &successor.database()).await;

    postgres.stop();
    redis.stop();
    successor.database().sql("select pg_promote()").await;
    lead_to(&there);
    let moved = Instant::now();
    assert_writes_again(&service, &key, LONGEST_MOVE).await;
    while service.metric("limits_shared", &[]).await < 1.0 {
        assert!(moved.elapsed() < LONGEST_MOVE, "{}", service.logs());
        sleep(Duration::from_millis(20)).await;
    }
    eprintln!("both names were followed after {:?}", moved.elapsed());
    assert_eq!(service.get(KEYS, &key).await.status, 200);
    assert!(other_redis.command(&["keys", "*"]).contains("momail:limits:key_"));
    pulse.assert_steady().await;
}
