//! Measures what a request costs: the service as it is released, beside programs that do the same work with nothing around it.
//!
//! `cargo bench` runs it, and `cargo bench -- --help` says what may be chosen.

mod accounts;
mod baseline;
mod load;
mod measure;
mod pool;
mod postgres;
mod process;
mod report;
mod rows;
mod start;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::postgres::Postgres;
use self::report::Report;
use self::world::World;

/// Measures the CPU time of a request, the service's beside that of bare programs which do the same work.
///
/// PostgreSQL is the one at DATABASE_URL, in a database of the benchmark's own there; without that variable, a server is
/// started from the installed binaries and removed at the end. The figures are printed as a table and written to
/// target/bench/results.json. Nothing is left behind but that file.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo bench --", max_term_width = 100)]
struct Arguments {
    /// A few seconds that show whether everything works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// How often each row is measured, in turn with all others
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a row is measured in each round, in milliseconds
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    millis: u64,
    /// Only rows whose name contains this text, and what they are compared with
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    mode: Option<Mode>,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// The bare programs, which the benchmark runs as a process of its own
    #[command(hide = true)]
    Baseline(Bodies),
}

/// Where the constant answers are, and the database.
#[derive(Debug, clap::Args)]
struct Bodies {
    database: String,
    list: PathBuf,
    not_found: PathBuf,
}

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: u32,
    starts: u32,
    accounts: usize,
    warm_up: Duration,
    measured: Duration,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.mode {
        Some(Mode::Baseline(bodies)) => baseline::serve(bodies),
        None => run(&arguments),
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
    let text = arguments.only.as_deref().unwrap_or_default();
    let rows = rows::chosen(text);
    if rows.is_empty() {
        bail!("no row's name contains `{text}`");
    }
    let plan = if arguments.quick {
        let (warm_up, measured) = (Duration::from_millis(50), Duration::from_millis(150));
        Plan { rounds: 1, starts: 2, accounts: 100, warm_up, measured }
    } else {
        let measured = Duration::from_millis(arguments.millis);
        Plan { rounds: arguments.rounds, starts: 10, accounts: 1_000, warm_up: measured / 4, measured }
    };
    // One thread makes all the load, so that its own cost is the same beside every row.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let postgres = Postgres::prepare().await?;
        let outcome = tokio::select! {
            outcome = measure_all(&postgres, &rows, plan) => outcome,
            _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminated.recv() => Err(anyhow::anyhow!("told to stop")),
        };
        postgres.remove().await;
        outcome?.publish()
    })
}

async fn measure_all(postgres: &Postgres, rows: &[&'static rows::Row], plan: Plan) -> anyhow::Result<Report> {
    let mut world = World::prepare(postgres, plan.accounts).await?;
    let starts = start::measure(&world, plan.starts).await.context("starting the service")?;
    let measured = measure::rows(&mut world, rows, plan).await?;
    let memory_after_load = world.product_memory()?;
    Ok(Report { postgres: postgres.description.clone(), plan, starts, measured, memory_after_load })
}

/// Says on standard error what goes on; the results alone go to standard output.
fn progress(text: &str) {
    eprintln!("bench: {text}");
}
