//! The program where containers and careful hosts run it: as the first process of its namespace, with few descriptors, without a
//! home, and in a folder where nothing may be written.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::block_in_place;

use crate::support::{Database, RawConnection, Service, accounts, on_both_stores, signal, unlimited};

on_both_stores!(the_first_process_of_a_container_stops_when_told, it_serves_with_little_around_it);

const KEYS: &str = "/v1/api-keys";
const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
/// Beside a limit, for a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(5);
/// A new namespace of processes, whose first one goes when `unshare` does.
const FIRST_PROCESS: [&str; 7] =
    ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child", "--"];

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

async fn the_first_process_of_a_container_stops_when_told(database: Database) {
    let mut unshare = Command::new(FIRST_PROCESS[0]);
    if !unshare.args(&FIRST_PROCESS[1..]).arg("true").status().unwrap().success() {
        eprintln!("nothing was tested: this machine does not let us have a namespace of our own");
        return;
    }
    let key = accounts(&database, 1).await.remove(0);
    for name in ["TERM", "INT"] {
        let stop = [("MOMAIL_SERVER__DRAIN_DELAY_MS", "0"), ("MOMAIL_SERVER__GRACE_MS", "1000")];
        let mut service = Service::start_within(&FIRST_PROCESS, &[&unlimited(&database.url)[..], &stop].concat());
        service.wait_until_ready_is(200).await;
        assert_eq!(service.get(KEYS, &key).await.status, 200);
        let first = children(service.pid());
        assert_eq!(first.len(), 1);
        let status = fs::read_to_string(format!("/proc/{}/status", first[0])).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
        assert_eq!(line.split_whitespace().last(), Some("1"), "it is the first process");
        assert_eq!(children(first[0]), [0; 0], "it has no children, and so leaves none behind");
        // A client that does not end takes the whole grace.
        let held = RawConnection::send(&service.public, "GET /livez HTTP/1.1\r\nHo").await;
        let told = Instant::now();
        signal(name, &first);
        let status = block_in_place(|| service.wait());
        let took = told.elapsed();
        eprintln!("{name}: ended after {took:?}");
        assert!(status.success(), "{name} {status} {}", service.logs());
        assert!(took < Duration::from_secs(1) + SLACK, "{name}: {took:?}");
        drop(held);
    }
}

async fn it_serves_with_little_around_it(database: Database) {
    let key = accounts(&database, 1).await.remove(0);
    // The folder that it is started in may not be written to, not even by root.
    let bare = "ulimit -n 256 && cd /proc && exec \"$0\"";
    let nothing_there = [("TMPDIR", "/nowhere/at/all"), ("MOMAIL_SERVER__DRAIN_DELAY_MS", "0")];
    let settings = [&unlimited(&database.url)[..], &nothing_there].concat();
    let mut service = Service::start_within(&["sh", "-c", bare], &settings);
    service.wait_until_ready_is(200).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", service.pid())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().next(), Some("256"));
    assert!(!fs::read(format!("/proc/{}/environ", service.pid())).unwrap().windows(5).any(|part| part == b"HOME="));
    assert_eq!(service.get(KEYS, &key).await.status, 200);

    // More connections than there are descriptors for wait; when some end, all is as before.
    assert!(service.logs().contains("fewer connections than server.max_connections"), "{}", service.logs());
    let mut crowd = join_all((0..300).map(|_| RawConnection::send(&service.public, LIVEZ))).await;
    let first = join_all(crowd[..100].iter_mut().map(RawConnection::answer)).await;
    assert!(first.iter().all(|answer| answer.as_ref().is_some_and(|answer| answer.status == 200)));
    assert_eq!(service.get_internal("/readyz").await.status, 200, "health is asked for elsewhere");
    crowd.drain(..150);
    let rest = join_all(crowd.iter_mut().map(RawConnection::answer)).await;
    assert!(rest.iter().all(|answer| answer.as_ref().is_some_and(|answer| answer.status == 200)));
    drop(crowd);
    assert_eq!(service.get(KEYS, &key).await.status, 200);
    assert!(service.terminate().success(), "{}", service.logs());
}

#[test]
fn without_a_place_for_its_database_it_says_why() {
    let mut command = Command::new("sh");
    let bare = "ulimit -n 256 && cd /proc && exec \"$0\"";
    let output = command.args(["-c", bare]).arg(Service::program()).env_clear().output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("error: the database file sqlite://momail.db cannot be made"), "{complaint}");
}
