//! What clients were promised, on disk: a line is there for good before its client does anything else.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::load::{Made, Promises};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Ledger {
    directory: TempDir,
    file: File,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = OpenOptions::new().create_new(true).append(true).open(directory.path().join("ledger")).unwrap();
        Self { directory, file }
    }

    pub(super) fn write(&self, what: &str, made: &Made) {
        block_in_place(|| {
            // One write each, which the system appends as a whole.
            (&self.file).write_all(format!("{what} {} {}\n", made.id, made.key).as_bytes()).unwrap();
            self.file.sync_data().unwrap();
        });
    }

    /// What is written there by now.
    pub(crate) fn promises(&self) -> Promises {
        let mut promises = Promises::default();
        for line in fs::read_to_string(self.path()).unwrap().lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let [what, id, key] = fields[..] else { panic!("{line}") };
            promises.note(what, Made { id: id.to_owned(), key: key.to_owned() });
        }
        promises
    }

    /// Waits until so many lines are written, however slow the machine is.
    pub(crate) async fn wait_for(&self, lines: usize) {
        let deadline = Instant::now() + PATIENCE;
        while fs::read_to_string(self.path()).unwrap().lines().count() < lines {
            assert!(Instant::now() < deadline, "nobody is promised anything");
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ledger")
    }
}
