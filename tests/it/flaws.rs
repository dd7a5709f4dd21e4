//! The tests of revocation are worth something: builds that are wrong on purpose are found out by them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::support::{Register, Service, Through};

/// The flaws are seen within a few rounds; only luck of one in millions needs so many.
const ROUNDS: usize = 150;

/// The program built with a flaw, in a folder of its own.
pub(crate) struct Flawed {
    directory: TempDir,
}

impl Flawed {
    pub(crate) async fn build(flaw: &str) -> Self {
        // Both are built to the same path, and copied from there.
        static BUILDING: Mutex<()> = Mutex::const_new(());
        let _building = BUILDING.lock().await;
        let directory = tempfile::tempdir().unwrap();
        let target = Service::program().ancestors().nth(2).unwrap();
        let mut build = Command::new(env!("CARGO"));
        // What cargo told this test of its package would have it build other packages anew.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
                build.env_remove(name);
            }
        }
        let status = build
            .args(["build", "--quiet", "--locked", "--example", "flawed", "--features", flaw, "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success());
        fs::copy(target.join("debug/examples/flawed"), directory.path().join("flawed")).unwrap();
        Self { directory }
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.directory.path().join("flawed")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_never_ends_is_found_out() {
    let flawed = Flawed::build("flaw-lease").await;
    let register = Register::of(&flawed.program()).await;
    let key = register.issue().await;
    let revoke = async || {
        register.cluster.relays[1].swallow();
        register.revoke(&key, Through::any_of(&[0, 2])).await;
    };
    let round = register.round_of(&key, true, revoke, async || ()).await;
    assert!(round.violations > 0, "a replica that is cut off believes its memory, and nobody noticed: {round:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_that_ignores_the_counter_is_found_out() {
    let flawed = Flawed::build("flaw-fill").await;
    let register = Register::of(&flawed.program()).await;
    // What was read before the change is now and then so late that the change has been applied meanwhile.
    register.cluster.relays[1].delay(Duration::from_millis(100), 3);
    for n in 0..ROUNDS {
        let key = register.issue().await;
        let moment = Through { after: Duration::from_millis(rand::random_range(0..100)), ..Through::any_of(&[0, 2]) };
        let round = register.round_of(&key, false, async || register.revoke(&key, moment).await, async || ()).await;
        if round.violations > 0 {
            eprintln!("found in round {n}: {round:?}");
            return;
        }
    }
    panic!("a key was put back into memory after its revocation, and nobody noticed");
}
