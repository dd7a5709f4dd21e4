//! A disk that is full or fails, and a database file that is taken away: nothing is acknowledged that will not last, and all is well
//! again by itself.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{Database, Disk, Reply, Service, json_request, request};

const KEYS: &str = "/v1/api-keys";
const LONGEST_RECOVERY: Duration = Duration::from_secs(5);
/// By now a lease that nobody renews has ended.
const AFTER_THE_LEASE: Duration = Duration::from_millis(1_200);

async fn create(service: &Service, key: &str) -> Reply {
    service.send(json_request(Method::POST, KEYS, key, json!({ "name": "on a disk" }).to_string())).await
}

async fn made(service: &Service, key: &str) -> Value {
    let mut reply = create(service, key).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.body["data"].take()
}

async fn revoke(service: &Service, key: &str, made: &Value) -> Reply {
    service.send(request(Method::DELETE, &format!("{KEYS}/{}", made["keyId"].as_str().unwrap()), key)).await
}

fn text(made: &Value) -> &str {
    made["apiKey"].as_str().unwrap()
}

async fn status(service: &Service, path: &str, key: &str) -> u16 {
    service.get(path, key).await.status.as_u16()
}

fn assert_refused(reply: &Reply) {
    assert_eq!((reply.status.as_u16(), reply.code()), (503, "SERVICE_UNAVAILABLE"), "{reply:?}");
    assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
}

/// Keys are made again, at the latest after what was promised.
async fn assert_recovers(service: &Service, key: &str) {
    let began = Instant::now();
    loop {
        let reply = create(service, key).await;
        if reply.status == 201 {
            break;
        }
        assert_refused(&reply);
        assert!(began.elapsed() < LONGEST_RECOVERY, "it does not recover\n{}", service.logs());
        sleep(Duration::from_millis(20)).await;
    }
    eprintln!("recovered after {:?}", began.elapsed());
    service.wait_until_ready_is(200).await;
}

/// The log has named the cause, once.
fn assert_told_once(service: &Service, what: &str, cause: &str) {
    let logs = service.logs();
    let told: Vec<_> = logs.lines().filter(|line| line.contains(what)).collect();
    assert!(told.len() == 1 && told[0].contains("\"WARN\"") && told[0].contains(cause), "{told:#?}");
}

async fn without_room_changes_are_refused_and_keys_open_as_ever(disk: Disk) {
    let service = disk.start();
    service.wait_until_ready_is(200).await;
    let key = service.first_key();
    let (stays, gone, goes) = (made(&service, &key).await, made(&service, &key).await, made(&service, &key).await);
    assert_eq!(revoke(&service, &key, &gone).await.status, 200);
    disk.fill(&service);

    // Some may still fit into what the journal has of the disk.
    let mut acknowledged = vec![stays.clone()];
    let refused = loop {
        let mut reply = create(&service, &key).await;
        if reply.status != 201 {
            break reply;
        }
        acknowledged.push(reply.body["data"].take());
    };
    assert_refused(&refused);
    let until = Instant::now() + 2 * AFTER_THE_LEASE;
    let mut refused = 0;
    while Instant::now() < until {
        assert_refused(&create(&service, &key).await);
        assert_refused(&revoke(&service, &key, &goes).await);
        refused += 2;
        for path in [KEYS, "/v1/api-keys/current", "/livez", "/readyz"] {
            assert_eq!(status(&service, path, text(&stays)).await, 200, "{path}");
        }
        assert_eq!(status(&service, KEYS, text(&goes)).await, 200, "it was not revoked");
        assert_eq!(status(&service, KEYS, text(&gone)).await, 401);
    }
    eprintln!("{} fitted in, {refused} were refused", acknowledged.len() - 1);
    assert_told_once(&service, "the database takes no changes", disk.complaint());

    disk.free(&service);
    assert_recovers(&service, &key).await;
    assert_eq!(revoke(&service, &key, &goes).await.status, 200);
    for made in &acknowledged {
        assert_eq!(status(&service, KEYS, text(made)).await, 200, "it was acknowledged");
    }
    for made in [&gone, &goes] {
        assert_eq!(status(&service, KEYS, text(made)).await, 401);
    }
    assert_eq!(disk.check(&service), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_is_full_changes_are_refused_and_keys_open_as_ever() {
    without_room_changes_are_refused_and_keys_open_as_ever(Disk::small()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_fails_to_write_changes_are_refused_and_keys_open_as_ever() {
    without_room_changes_are_refused_and_keys_open_as_ever(Disk::limited()).await;
}

/// A service on a file, and its first key.
fn on_file(database: &Database) -> (Service, String) {
    let service = Service::unlimited(&[("DATABASE_URL", &database.url)]);
    let key = service.first_key();
    (service, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_file_that_is_taken_away_is_missed_until_it_is_back() {
    let database = Database::sqlite();
    let (service, key) = on_file(&database);
    let before = made(&service, &key).await;
    let elsewhere = database.path().with_extension("elsewhere");
    fs::rename(database.path(), &elsewhere).unwrap();
    assert_refused(&create(&service, &key).await);
    assert_refused(&revoke(&service, &key, &before).await);
    sleep(AFTER_THE_LEASE).await;
    assert_refused(&service.get(KEYS, text(&before)).await);
    assert_eq!((status(&service, "/readyz", "").await, status(&service, "/livez", "").await), (503, 200));
    assert!(!database.path().exists(), "another was made in its place");
    assert_told_once(&service, "the database cannot be read", "its file was removed while it was in use");

    fs::rename(&elsewhere, database.path()).unwrap();
    assert_recovers(&service, &key).await;
    assert_eq!(status(&service, KEYS, text(&before)).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_file_that_is_replaced_is_not_believed_until_the_next_start() {
    let database = Database::sqlite();
    let (mut service, key) = on_file(&database);
    let (stays, goes) = (made(&service, &key).await, made(&service, &key).await);
    let backup = database.path().with_extension("backup");
    database.sql(&format!("vacuum into '{}'", backup.display())).await;
    assert_eq!(revoke(&service, &key, &goes).await.status, 200);
    fs::rename(&backup, database.path()).unwrap();

    assert_refused(&create(&service, &key).await);
    let until = Instant::now() + 2 * AFTER_THE_LEASE;
    while Instant::now() < until {
        let status = status(&service, KEYS, text(&goes)).await;
        assert!(matches!(status, 401 | 503), "{status} for a key that was revoked");
    }
    assert_refused(&service.get(KEYS, text(&stays)).await);
    assert_told_once(&service, "the database cannot be read", "its file was replaced while it was in use");

    // As the README says: with the service stopped, and without the old file's journal.
    service.terminate();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", database.path().display()));
    }
    let service = Service::unlimited(&[("DATABASE_URL", &database.url)]);
    for made in [&stays, &goes] {
        assert_eq!(status(&service, KEYS, text(made)).await, 200, "as it was when the backup was made");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_holds_nobody_up() {
    let deaf = ["sh", "-c", "exec \"$0\" 2>/dev/full"];
    let mut service = Service::start_within(&deaf, &[("MOMAIL_LOG__FILTER", "trace")]);
    service.wait_until_ready_is(200).await;
    let key = service.first_key();
    let made = made(&service, &key).await;
    assert_eq!(status(&service, KEYS, text(&made)).await, 200);
    assert_eq!(status(&service, KEYS, "mk_none").await, 401);
    assert!(service.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("log");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Opened both ways, so that nobody waits for the other end. It holds 64 KiB.
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let script = format!("exec \"$0\" 2>'{}'", pipe.display());
    let mut service = Service::start_within(&["sh", "-c", &script], &[("MOMAIL_LOG__FILTER", "trace")]);
    service.wait_until_ready_is(200).await;
    for _ in 0..1_000 {
        assert_eq!(status(&service, "/livez", "").await, 200);
    }
    let began = Instant::now();
    assert!(service.terminate().success());
    assert!(began.elapsed() < LONGEST_RECOVERY, "{:?}", began.elapsed());
}
