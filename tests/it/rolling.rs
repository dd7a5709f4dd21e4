//! A rolling restart behind HAProxy, which asks each replica whether it is ready: no client notices.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::support::{Database, KeptClient, Service, is_long, own_socket, request, unlimited};

const KEYS: &str = "/v1/api-keys";
const CLIENTS: usize = 12;
/// Together some three hundred requests in a second.
const PAUSE: Duration = Duration::from_millis(35);
const REQUESTS_OF_A_LONG_RUN: usize = 30_000;
/// Several health checks fit into it, even where machines are busy.
const DRAIN_DELAY_MS: &str = "2000";

/// HAProxy, killed when it is dropped.
struct Balancer {
    child: Child,
    directory: TempDir,
    address: String,
}

impl Balancer {
    async fn start(replicas: &[String; 3]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = own_socket();
        let servers: Vec<_> =
            (1..).zip(replicas).map(|(n, address)| format!("server keys-{n} {address} check")).collect();
        let configuration = format!(
            "defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
    timeout check 5s
    http-reuse always
frontend web
    bind {address}
    default_backend keys
backend keys
    option httpchk GET /readyz
    default-server inter 100ms rise 1 fall 2
    {}
",
            servers.join("\n    ")
        );
        fs::write(directory.path().join("haproxy.cfg"), configuration).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f", "haproxy.cfg"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut balancer = Self { child, directory, address };
        let deadline = Instant::now() + Duration::from_secs(30);
        while tokio::net::TcpStream::connect(&balancer.address).await.is_err() {
            assert!(balancer.child.try_wait().unwrap().is_none(), "it has ended\n{}", balancer.log());
            assert!(Instant::now() < deadline, "it does not listen\n{}", balancer.log());
            sleep(Duration::from_millis(10)).await;
        }
        balancer
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_replica(address: &str, url: &str) -> Service {
    let own = [
        ("MOMAIL_SERVER__PUBLIC_ADDR", address),
        ("MOMAIL_SERVER__DRAIN_DELAY_MS", DRAIN_DELAY_MS),
        ("MOMAIL_AUTH__CACHE", "lease"),
    ];
    Service::start(&[&unlimited(url)[..], &own].concat())
}

/// Lists keys until told to stop; says how many requests were answered, and what went wrong.
async fn list_all_the_time(address: String, key: String, is_over: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let mut client = KeptClient::new(address);
    let mut failures = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        match client.send(request(Method::GET, KEYS, &key)).await {
            Ok(reply) if reply.status == 200 => (),
            Ok(reply) => failures.push(format!("{reply:?}")),
            Err(error) => failures.push(format!("{error:?}")),
        }
        sleep(PAUSE).await;
    }
    (client.requests, failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_are_restarted_one_by_one_and_no_request_fails() {
    let database = Database::postgres().await;
    let key = Service::create_account(&database.url, "enterprise");
    let addresses = [own_socket(), own_socket(), own_socket()];
    let mut replicas = [0, 1, 2].map(|n: usize| start_replica(&addresses[n], &database.url));
    for replica in &replicas {
        replica.wait_until_ready_is(200).await;
    }
    let balancer = Balancer::start(&addresses).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let load = (0..CLIENTS)
        .map(|_| tokio::spawn(list_all_the_time(balancer.address.clone(), key.clone(), Arc::clone(&is_over))));
    let load: Vec<_> = load.collect();

    for _ in 0..if is_long() { 10 } else { 2 } {
        for (replica, address) in replicas.iter_mut().zip(&addresses) {
            replica.wait_until_it_is_asked().await;
            replica.signal("TERM");
            let status = tokio::task::block_in_place(|| replica.wait());
            assert!(status.success(), "{status}");
            *replica = start_replica(address, &database.url);
            replica.wait_until_ready_is(200).await;
        }
    }
    for replica in &replicas {
        replica.wait_until_it_is_asked().await;
    }
    let rest = Duration::from_secs(if is_long() { (REQUESTS_OF_A_LONG_RUN / 300) as u64 } else { 0 });
    sleep(rest.saturating_sub(began.elapsed())).await;
    is_over.store(true, Ordering::SeqCst);

    let mut requests = 0;
    let mut failures = Vec::new();
    for client in join_all(load).await {
        let (answered, failed) = client.unwrap();
        requests += answered;
        failures.extend(failed);
    }
    eprintln!("{requests} requests in {:?}", began.elapsed());
    assert!(requests > 100, "{requests} requests are no load");
    let logs: String = replicas.iter().map(Service::logs).collect();
    assert!(failures.is_empty(), "{} of {requests} failed\n{failures:?}\n{}\n{logs}", failures.len(), balancer.log());
}
