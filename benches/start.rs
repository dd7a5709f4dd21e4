//! How long the service takes from its start to its first answers, and how much memory it holds when nobody asks anything.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::sleep;

use super::load::ask;
use super::process::memory_of;
use super::progress;
use super::rows::Setup;
use super::service::{Needs, command};
use super::world::{World, sqlite_url};

/// Nothing waits this long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to be answered: the grain of the figures.
const RETRY: Duration = Duration::from_micros(200);
/// After its start, the service is left alone for this long before its memory is read.
const REST: Duration = Duration::from_secs(1);

/// On one kind of database, each list with an entry for each start.
#[derive(Debug)]
pub(crate) struct Starts {
    pub(crate) name: String,
    /// Milliseconds from the call that starts the process until /livez is answered.
    pub(crate) live_millis: Vec<f64>,
    /// The same until /readyz says yes.
    pub(crate) ready_millis: Vec<f64>,
    /// Resident bytes a second later, of the last start.
    pub(crate) idle_memory: u64,
}

/// Starts the service several times on an empty SQLite file and on one with keys, in turn.
pub(crate) async fn measure(world: &World<'_>, count: u32) -> anyhow::Result<Vec<Starts>> {
    progress(&format!("starting the service {count} times on each of two SQLite files"));
    let starts = |name| Starts { name, live_millis: Vec::new(), ready_millis: Vec::new(), idle_memory: 0 };
    let existing = world.on_sqlite.keys().count();
    let mut kinds = [starts("empty SQLite file".to_owned()), starts(format!("SQLite file with {existing} keys"))];
    for round in 1..=count {
        for (number, starts) in kinds.iter_mut().enumerate() {
            let directory = tempfile::tempdir()?;
            let file = directory.path().join("momail.db");
            if number > 0 {
                fs::copy(world.existing_file(), &file)?;
            }
            start(&sqlite_url(&file), round == count, starts).await?;
        }
    }
    Ok(kinds.into())
}

async fn start(database: &str, is_last: bool, starts: &mut Starts) -> anyhow::Result<()> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut command = command(Setup::USUAL, &Needs { database, redis: None }, &address);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut service = Killed(command.spawn()?);
    for (path, millis) in [("/livez", &mut starts.live_millis), ("/readyz", &mut starts.ready_millis)] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        while !matches!(ask(&address, request.as_bytes()).await, Ok((200, _))) {
            if started.elapsed() > PATIENCE || service.0.try_wait()?.is_some() {
                bail!("{path} is never answered on {database}");
            }
            sleep(RETRY).await;
        }
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    if is_last {
        sleep(REST).await;
        starts.idle_memory = memory_of(service.0.id())?;
    }
    Ok(())
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
