//! A part of the process panics: it ends, says why, and does not limp on.

use std::fs;
use std::time::{Duration, Instant};

use momail_api_keys::tasks::Part;
use tokio::task::block_in_place;

use crate::flaws::Flawed;
use crate::support::{Database, PrivateRedis, Service, on_both_stores, unlimited};

on_both_stores!(whichever_part_of_the_process_fails_it_ends_and_says_which);

/// Five seconds, and what a busy machine may add.
const LONGEST_END: Duration = Duration::from_secs(10);

async fn whichever_part_of_the_process_fails_it_ends_and_says_which(database: Database) {
    let flawed = Flawed::build("flaw-fill").await;
    let redis = PrivateRedis::start().await;
    let redis_url = redis.url();
    // What an orchestrator usually waits for must not hold up the end of a process that is no longer whole.
    let patient = [
        ("REDIS_URL", redis_url.as_str()),
        ("MOMAIL_SERVER__DRAIN_DELAY_MS", "60000"),
        ("MOMAIL_SERVER__GRACE_MS", "60000"),
    ];
    let settings = [&unlimited(&database.url)[..], &patient].concat();
    for part in Part::ALL {
        let mut service = Service::start_of(&flawed.program(), &settings);
        service.wait_until_ready_is(200).await;
        let told = Instant::now();
        fs::write(service.directory().join(part.to_string()), "").unwrap();
        let status = block_in_place(|| service.wait());
        let took = told.elapsed();
        let logs = service.logs();
        assert_eq!(status.code(), Some(1), "{part}: {logs}");
        assert!(took < LONGEST_END, "{part}: {took:?}");
        let says_why = logs.lines().any(|line| line.contains("\"ERROR\"") && line.contains(&part.to_string()));
        assert!(says_why && logs.contains("told to panic"), "{part}: {logs}");
        eprintln!("{part}: ended after {took:?}");
    }
}
