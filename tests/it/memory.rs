//! What a flood of forged keys may cost in memory.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::{TimeZone, Utc};
use futures_util::future::join_all;
use momail_api_keys::account::{Allowance, Plan, Plans};
use momail_api_keys::clock::Clock;
use momail_api_keys::id::KeyId;
use momail_api_keys::limit::{Decision, FailedKeys, Limiter};
use momail_api_keys::secret::Secret;
use rand::rngs::SysRng;

use crate::support::{RawConnection, Service, is_long};

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
    let steps: &[_] = if is_long() { &[(100_000, 5 * MB), (900_000, 16 * MB)] } else { &[(100_000, 5 * MB)] };
    let mut sent = 10_000;
    for (count, bound) in steps {
        forge(&service, sent, *count).await;
        sent += count;
        let grown = service.resident_memory().saturating_sub(before);
        eprintln!("{sent} forged keys took {} KB", grown / 1024);
        assert!(grown < *bound, "{sent} forged keys took {grown} bytes");
        let tracked = service.metric("limiter_clients", &[]).await;
        assert!(tracked < 40_000.0, "{tracked} clients are remembered");
    }
    assert_eq!(service.get("/v1/api-keys", &service.first_key()).await.status, 200);
}

fn resident_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    // Pages of the program's own file are not meant.
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
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

/// The longest that a judgement took while `prune` ran beside it.
fn longest_wait(prune: impl FnOnce() + Send, goes: impl Fn() -> bool) -> Duration {
    std::thread::scope(|scope| {
        let pruning = scope.spawn(prune);
        let mut longest = Duration::ZERO;
        while !pruning.is_finished() {
            let began = Instant::now();
            goes();
            longest = longest.max(began.elapsed());
        }
        longest
    })
}

#[test]
fn clients_and_keys_at_rest_are_forgotten_without_holding_up_a_request() {
    // A machine that is busy with other tests may give the turn to neither for long.
    const LONGEST: Duration = Duration::from_secs(5);
    let clock = Clock::held(Utc.with_ymd_and_hms(2024, 1, 15, 12, 30, 0).unwrap());
    let failed_keys = FailedKeys::new(60, &clock);
    for n in 0..40_000 {
        failed_keys.record(address(n).into()).unwrap();
    }
    clock.advance(Duration::from_secs(120));
    let beside = IpAddr::V6(address(50_000));
    let longest = longest_wait(|| failed_keys.prune(), || failed_keys.record(beside).is_ok());
    assert!(failed_keys.tracked() < 1_000, "{} are remembered", failed_keys.tracked());
    eprintln!("one of 32,768 clients waited {longest:?} for the pruning at the most");
    assert!(longest < LONGEST, "{longest:?}");

    let keys = 50_000;
    let plan = Allowance { per_minute: 20, per_hour: 100, per_day: 1_000, max_keys: 1 };
    let limiter = Limiter::new(&Plans { free: plan, pro: plan, enterprise: plan }, keys, None, clock.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let check = |key| runtime.block_on(limiter.check(key, Plan::Free));
    for _ in 0..keys {
        check(KeyId::new());
    }
    let remembered = limiter.tracked();
    assert!(remembered > keys / 2, "{remembered} keys are remembered");
    clock.advance(Duration::from_secs(2 * 86_400));
    let beside = KeyId::new();
    let longest = longest_wait(|| limiter.prune(), || matches!(check(beside), Decision::Go(_)));
    assert!(limiter.tracked() < 1_000, "{} are remembered", limiter.tracked());
    eprintln!("one of {remembered} keys waited {longest:?} for the pruning at the most");
    assert!(longest < LONGEST, "{longest:?}");
}
