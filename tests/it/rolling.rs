//! A rolling restart behind HAProxy, which asks each replica whether it is ready: no client notices.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::support::{Balancer, Database, KeptClient, Service, is_long, own_socket, request, unlimited};

const KEYS: &str = "/v1/api-keys";
const CLIENTS: usize = 12;
/// Together some three hundred requests in a second.
const PAUSE: Duration = Duration::from_millis(35);
const LONGEST_RUN: Duration = Duration::from_secs(1_800);
/// Several health checks fit into it, even where machines are busy.
const DRAIN_DELAY_MS: &str = "2000";

fn start_replica(address: &str, url: &str) -> Service {
    let own = [
        ("MOMAIL_SERVER__PUBLIC_ADDR", address),
        ("MOMAIL_SERVER__DRAIN_DELAY_MS", DRAIN_DELAY_MS),
        ("MOMAIL_AUTH__CACHE", "lease"),
    ];
    Service::start(&[&unlimited(url)[..], &own].concat())
}

/// What clients are told, and what they tell.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Lists keys until told to stop.
    async fn list_all_the_time(self: Arc<Self>, address: String, key: String) {
        let mut client = KeptClient::new(address);
        while !self.is_over.load(Ordering::SeqCst) {
            let failure = match client.send(request(Method::GET, KEYS, &key)).await {
                Ok(reply) if reply.status == 200 => None,
                Ok(reply) => Some(format!("{reply:?}")),
                Err(error) => Some(format!("{error:?}")),
            };
            self.failures.lock().unwrap().extend(failure);
            self.answered.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
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
    let balancer = Balancer::start(&addresses, Duration::from_secs(60)).await;
    let load = Arc::new(Load::default());
    let began = Instant::now();
    let clients =
        (0..CLIENTS).map(|_| tokio::spawn(Arc::clone(&load).list_all_the_time(balancer.address.clone(), key.clone())));
    let clients: Vec<_> = clients.collect();

    let (times, requests) = if is_long() { (10, 100_000) } else { (2, 100) };
    let mut restarts = 0;
    while restarts < times || load.answered() < requests {
        for (replica, address) in replicas.iter_mut().zip(&addresses) {
            replica.wait_until_it_is_asked().await;
            replica.signal("TERM");
            let status = tokio::task::block_in_place(|| replica.wait());
            assert!(status.success(), "{status}");
            *replica = start_replica(address, &database.url);
            replica.wait_until_ready_is(200).await;
        }
        restarts += 1;
        assert!(began.elapsed() < LONGEST_RUN, "{} requests are no load", load.answered());
    }
    for replica in &replicas {
        replica.wait_until_it_is_asked().await;
    }
    load.is_over.store(true, Ordering::SeqCst);
    for client in join_all(clients).await {
        client.unwrap();
    }

    eprintln!("{} requests in {:?}, {restarts} restarts of each replica", load.answered(), began.elapsed());
    let failures = load.failures.lock().unwrap();
    let logs: String = replicas.iter().map(Service::logs).collect();
    assert!(failures.is_empty(), "{} failed\n{failures:?}\n{}\n{logs}", failures.len(), balancer.log());
}
