//! The service and its own description, held against each other by schemathesis: requests made from the description, valid and
//! invalid, one by one and in chains along its links, and every answer checked against it.
//!
//! All of its checks are on; `conformance/hooks.py` says what the description cannot.

use std::path::Path;
use std::process::Command;

use crate::support::{Database, Service, is_long, on_both_stores, setting};

on_both_stores!(whatever_the_description_allows_or_forbids_is_answered_as_it_says);

/// Cases for each operation, and chains of them; the coverage of each parameter's and member's edges comes on top.
const EXAMPLES: &str = "20";
const EXAMPLES_LONG: &str = "1000";
const SEED: &str = "1";

async fn whatever_the_description_allows_or_forbids_is_answered_as_it_says(database: Database) {
    let key = Service::create_account(&database.url, "pro");
    let service = Service::unlimited(&[("DATABASE_URL", &database.url), ("MOMAIL_PLANS__PRO__MAX_KEYS", "1000000")]);
    let folder = tempfile::tempdir().unwrap();
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/conformance/hooks.py");
    let seed = if is_long() { rand::random::<u32>().to_string() } else { SEED.to_owned() };
    let output = Command::new(Path::new(&setting("TEST_PYTHON")).with_file_name("schemathesis"))
        .args(["run", &format!("http://{}/openapi.json", service.public)])
        .args(["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"])
        .args(["--max-examples", if is_long() { EXAMPLES_LONG } else { EXAMPLES }, "--seed", &seed])
        .args(["--generation-database", "none", "--no-color"])
        .env("SCHEMATHESIS_HOOKS", hooks)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("MOMAIL_API_KEY", &key)
        .env("MOMAIL_PERMISSIONS", "api-keys:read api-keys:write domains:read emails:write")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{}", report.split_once("Coverage (in").map_or("", |(_, end)| end));

    // A run that never got far would find nothing to complain about.
    assert!(!report.contains("WARNINGS"), "{report}");
    let links = report.lines().find_map(|line| line.trim().strip_prefix("API Links:")).unwrap_or_default();
    let figures: Vec<u32> = links.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(figures.len() >= 2 && figures[0] == figures[1] && figures[0] >= 5, "links were not followed: {links}");
    assert!(service.metric("http_requests_total", &["status=\"201\""]).await > 10.0);
    assert!(service.metric("http_requests_total", &["status=\"5"]).await < 1.0, "{}", service.logs());
    assert!(!service.logs().contains("panicked"), "{}", service.logs());
}
