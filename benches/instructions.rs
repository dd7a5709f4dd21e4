//! How many instructions forward auth takes in process, counted by callgrind: a figure that a busy machine does not change.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::sleep;

use super::{Plan, progress};

/// With the access line, of a release build.
pub(crate) const AT_MOST: f64 = 36_000.0;
const PAUSE: Duration = Duration::from_millis(20);

/// `None` if valgrind is not installed. The profile of the longer run stays in `folder`.
pub(crate) async fn count(folder: &Path, plan: Plan) -> anyhow::Result<Option<f64>> {
    let (few, many) = if plan.quick { (20, 60) } else { (1_000, 6_000) };
    progress("counting the instructions of forward auth");
    let Some(first) = run(folder, few).await? else {
        progress("there is no valgrind; instructions are not counted");
        return Ok(None);
    };
    let second = run(folder, many).await?.context("valgrind is gone")?;
    // What comes before and after the requests is the same in both.
    Ok(Some((second - first) / f64::from(many - few)))
}

async fn run(folder: &Path, requests: u32) -> anyhow::Result<Option<f64>> {
    let directory = tempfile::Builder::new().prefix("momail-bench.").tempdir()?;
    let (profile, log) = (folder.join("callgrind.out"), directory.path().join("log"));
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(std::env::current_exe()?).arg("drive").arg(directory.path().join("momail.db"));
    command.arg(requests.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
    let mut child = match command.spawn() {
        Ok(child) => Counted(child),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        sleep(PAUSE).await;
    };
    if !status.success() {
        bail!("callgrind failed:\n{}", fs::read_to_string(&log)?);
    }
    let text = fs::read_to_string(&profile).context("callgrind left no profile")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:"));
    Ok(Some(total.context("callgrind's profile has no total")?.trim().parse()?))
}

/// A run that ends with the benchmark.
struct Counted(Child);

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
