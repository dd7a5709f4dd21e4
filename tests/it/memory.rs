//! What a flood of forged keys may cost in memory.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;

use futures_util::future::join_all;
use momail_api_keys::clock::Clock;
use momail_api_keys::limit::FailedKeys;
use momail_api_keys::secret::Secret;
use rand::rngs::SysRng;

use crate::support::{RawConnection, Service};

const MB: u64 = 1 << 20;
/// Requests sent before their answers are read.
const BATCH: usize = 100;
/// Each guess takes its time, so that there must be many who guess.
const CONNECTIONS: usize = 50;

/// The `n`-th of the networks that an attacker has at hand: an IPv6 /64 each.
fn address(n: usize) -> Ipv6Addr {
    let n = u32::try_from(n).unwrap();
    Ipv6Addr::from_bits((0x2001_0db8 << 96) | (u128::from(n) << 64) | 1)
}

/// Shows `count` forged keys, each from another network, and returns when all are refused.
async fn forge(service: &Service, first: usize, count: usize) {
    let attacks = (0..CONNECTIONS).map(async |attacker| {
        let mut connection = RawConnection::open(&service.public).await;
        let share = count / CONNECTIONS;
        for start in (0..share).step_by(BATCH) {
            let requests = (0..BATCH).map(|n| {
                let key = Secret::generate(&mut SysRng).unwrap();
                let from = address(first + attacker * share + start + n);
                let (host, key) = ("Host: a\r\nX-Forwarded-For: ", key.expose());
                format!("GET /v1/api-keys HTTP/1.1\r\n{host}{from}\r\nX-API-Key: {key}\r\n\r\n")
            });
            connection.write(requests.collect::<String>()).await;
            for _ in 0..BATCH {
                assert_eq!(connection.answer().await.unwrap().status, 401);
            }
        }
    });
    join_all(attacks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_forged_keys_leave_no_trace_in_memory() {
    let service = Service::start(&[("MOMAIL_PROXIES__TRUSTED", "127.0.0.0/8"), ("MOMAIL_LOG__FILTER", "off")]);
    // What the first requests of a process take once is not meant.
    forge(&service, 0, 10_000).await;
    let tracked = service.metric("limiter_clients", &[]).await;
    assert!(tracked >= 1_000.0, "each came from a network of its own, but {tracked} are remembered");
    let before = service.resident_memory();
    forge(&service, 10_000, 100_000).await;
    let grown = service.resident_memory().saturating_sub(before);
    assert!(grown < 5 * MB, "{grown} bytes");
    let tracked = service.metric("limiter_clients", &[]).await;
    assert!(tracked < 40_000.0, "{tracked} clients are remembered");
    assert_eq!(service.get("/v1/api-keys", &service.first_key()).await.status, 200);
}

fn resident_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_million_clients_with_forged_keys_are_remembered_only_up_to_a_bound() {
    const ALONE: &str = "MOMAIL_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own, whose memory no other test uses.
        let name = "memory::a_million_clients_with_forged_keys_are_remembered_only_up_to_a_bound";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        assert!(alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").status().unwrap().success());
        return;
    }
    let failed_keys = FailedKeys::new(60, &Clock::system());
    failed_keys.record(IpAddr::V6(address(0))).unwrap();
    let before = resident_memory();
    for (from, to, bound) in [(0, 100_000, 5 * MB), (100_000, 1_000_000, 16 * MB)] {
        for n in from..to {
            failed_keys.record(address(n).into()).unwrap();
        }
        let grown = resident_memory().saturating_sub(before);
        assert!(grown < bound, "{to} clients took {grown} bytes, and {} are remembered", failed_keys.tracked());
    }
    assert!((10_000..40_000).contains(&failed_keys.tracked()), "{} are remembered", failed_keys.tracked());
}
