//! Measures what a request costs: the service as it is released, beside programs that do the same work with nothing around it.
//!
//! `cargo bench` runs it, and `cargo bench -- --help` says what may be chosen.

mod accounts;
mod baseline;
mod client;
mod drive;
mod goals;
mod instructions;
mod load;
mod measure;
mod memory;
mod open_loop;
mod overload;
mod postgres;
mod process;
mod redis;
mod report;
mod requests;
mod revocations;
mod rows;
mod service;
mod soak;
mod start;
mod table;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::postgres::Postgres;
use self::redis::Redis;
use self::report::Report;
use self::world::World;

/// Measures the CPU time of a request, the service's beside that of bare programs which do the same work; and how long it takes
/// to start and to revoke, how much memory it holds, and how many instructions a request takes.
///
/// PostgreSQL is the one at DATABASE_URL, in a database of the benchmark's own there; without that variable, a server is
/// started from the installed binaries and removed at the end. Redis is always started so, and instructions are counted by
/// valgrind; what needs one that is not installed is left out. The figures are printed as a table and written to
/// target/bench/results.json. Nothing is left behind but that file and the last profile beside it.
///
/// A release has no names in it. For a profile that has, run with CARGO_PROFILE_BENCH_STRIP=none and
/// CARGO_PROFILE_BENCH_DEBUG=line-tables-only in the environment: `callgrind_annotate target/bench/callgrind.out` then says
/// where the instructions of forward auth go, and `perf record --pid` of a measured process where its time does.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo bench --", max_term_width = 100)]
struct Arguments {
    /// A few seconds that show whether everything works; the figures mean little
    #[arg(long, global = true)]
    quick: bool,
    /// A million keys in PostgreSQL instead of a hundred thousand, and all of them in turn
    #[arg(long, conflicts_with = "quick")]
    large: bool,
    /// How often each row is measured, in turn with all others
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a row is measured in each round, in milliseconds
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    millis: u64,
    /// Only rows whose name contains this text, and what they are compared with. What is measured besides rows has names as
    /// well: `starts`, `revocations`, `memory of a key` and `instructions`. Of `overload`, only the kinds of request with it in
    /// their names; `soak` is always whole
    #[arg(long, value_name = "TEXT", global = true)]
    only: Option<String>,
    /// Given by cargo
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    mode: Option<Mode>,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// What the service does with three times the load that it can bear
    Overload(overload::Overload),
    /// Whether memory and descriptors stay the same under a moderate load of all kinds
    Soak(soak::Soak),
    /// The bare programs, which the benchmark runs as a process of its own
    #[command(hide = true)]
    Baseline(Bodies),
    /// Forward auth without a socket, which the benchmark runs under callgrind
    #[command(hide = true)]
    Drive(drive::Drive),
}

/// Where the constant answers are, and the servers.
#[derive(Debug, clap::Args)]
struct Bodies {
    database: String,
    list: PathBuf,
    not_found: PathBuf,
    #[arg(long)]
    redis: Option<String>,
}

/// How much, how long, and how often.
#[derive(Clone, Copy, Debug)]
struct Plan {
    quick: bool,
    rounds: u32,
    starts: u32,
    /// Keys in PostgreSQL.
    keys: usize,
    /// Accounts that get and lose keys.
    writers: usize,
    warm_up: Duration,
    measured: Duration,
}

impl Plan {
    fn of(arguments: &Arguments) -> Self {
        if arguments.quick {
            let (warm_up, measured) = (Duration::from_millis(50), Duration::from_millis(150));
            return Self { quick: true, rounds: 1, starts: 2, keys: 1_000, writers: 100, warm_up, measured };
        }
        let measured = Duration::from_millis(arguments.millis);
        let keys = if arguments.large { 1_000_000 } else { 100_000 };
        let warm_up = measured / 4;
        Self { quick: false, rounds: arguments.rounds, starts: 10, keys, writers: 1_000, warm_up, measured }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.mode {
        Some(Mode::Baseline(bodies)) => baseline::serve(bodies),
        Some(Mode::Drive(drive)) => drive::run(drive),
        Some(Mode::Overload(_) | Mode::Soak(_)) | None => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if cfg!(debug_assertions) && !arguments.quick {
        bail!("figures of a debug build mean nothing: use `cargo bench`, or --quick to see whether it works");
    }
    let plan = Plan::of(arguments);
    let text = arguments.only.as_deref().unwrap_or_default();
    // One thread makes all the load, so that its own cost is the same beside every row.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let told_to_stop = async {
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
        };
        let postgres = Postgres::prepare().await?;
        let outcome = if let Some(Mode::Soak(soak)) = &arguments.mode {
            // It has something to say even if it is cut short.
            soak::run(&postgres, plan, soak, told_to_stop).await
        } else {
            tokio::select! {
                outcome = measure(&postgres, arguments, plan, text) => outcome,
                () = told_to_stop => Err(anyhow::anyhow!("told to stop")),
            }
        };
        postgres.remove().await;
        outcome
    })
}

async fn measure(postgres: &Postgres, arguments: &Arguments, plan: Plan, text: &str) -> anyhow::Result<()> {
    match &arguments.mode {
        Some(Mode::Overload(overload)) => overload::run(postgres, plan, overload, text).await,
        _ => measure_all(postgres, plan, text).await?.publish(),
    }
}

async fn measure_all(postgres: &Postgres, plan: Plan, text: &str) -> anyhow::Result<Report> {
    if rows::chosen(text, plan.keys).is_empty() && !rows::BESIDES.iter().any(|name| name.contains(text)) {
        bail!("nothing that is measured has `{text}` in its name");
    }
    let redis = Redis::start().await.context("starting Redis")?;
    let mut rows = rows::chosen(text, plan.keys);
    if redis.is_none() {
        progress("there is no redis-server; rows that need one are left out");
        rows.retain(|row| !row.asks_redis());
    }
    let mut world = World::prepare(postgres, redis.as_ref(), plan).await?;
    let mut report = Report::new(postgres.description.clone(), plan)?;
    if rows::STARTS.contains(text) {
        report.starts = start::measure(&world, plan.starts).await.context("starting the service")?;
    }
    if rows::INSTRUCTIONS.contains(text) {
        report.instructions = instructions::count(&report.folder, plan).await.context("counting instructions")?;
    }
    if rows::MEMORY.contains(text) {
        report.growth = Some(memory::measure(&mut world).await.context("looking up many keys")?);
    }
    if rows::REVOCATIONS.contains(text) {
        report.revocations = revocations::measure(&mut world, plan).await.context("revoking")?;
    }
    report.measured = measure::rows(&mut world, &rows, plan).await?;
    Ok(report)
}

/// Says on standard error what goes on; the results alone go to standard output.
fn progress(text: &str) {
    eprintln!("bench: {text}");
}
