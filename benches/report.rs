//! The results: printed for people, and the same figures as JSON for programs.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::goals::Goal;
use super::load::CONNECTIONS;
use super::measure::{Measured, Sample, Spread};
use super::memory::Growth;
use super::revocations::Revocations;
use super::start::Starts;
use super::{Plan, goals, progress, table};

/// What was measured; what was not is empty.
pub(crate) struct Report {
    /// Where it is written.
    pub(crate) folder: PathBuf,
    pub(crate) postgres: String,
    pub(crate) plan: Plan,
    pub(crate) measured: Vec<Measured>,
    pub(crate) revocations: Vec<Revocations>,
    pub(crate) starts: Vec<Starts>,
    pub(crate) growth: Option<Growth>,
    pub(crate) instructions: Option<f64>,
}

impl Report {
    pub(crate) fn new(postgres: String, plan: Plan) -> anyhow::Result<Self> {
        let folder = folder()?;
        let (measured, revocations, starts) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { folder, postgres, plan, measured, revocations, starts, growth: None, instructions: None })
    }

    /// Prints the tables and writes `results.json`.
    pub(crate) fn publish(&self) -> anyhow::Result<()> {
        publish(&self.folder, self.json(), &table::of(self)?)
    }

    fn json(&self) -> Value {
        let Plan { rounds, keys, measured, .. } = self.plan;
        let goals = goals::of(self);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machine(),
            "postgres": self.postgres,
            "rounds": rounds,
            "seconds": measured.as_secs_f64(),
            "connections": CONNECTIONS,
            "keys": keys,
            "rows": self.measured.iter().map(|measured| self.row(measured)).collect::<Vec<_>>(),
            "revocations": self.revocations.iter().map(revocations).collect::<Vec<_>>(),
            "starts": self.starts.iter().map(starts).collect::<Vec<_>>(),
            "bytes_per_key_in_memory": self.growth.as_ref().map(Growth::bytes_per_key),
            "instructions_of_forward_auth": self.instructions,
            "goals": goals.iter().map(Goal::json).collect::<Vec<_>>(),
        })
    }

    fn row(&self, measured: &Measured) -> Value {
        let column = |of: fn(&Sample) -> Option<f64>| spread(measured.samples.iter().filter_map(of));
        let ratios = goals::comparisons(&self.measured, measured).into_iter().map(|comparison| {
            let ratios = json!({
                "cpu": number(comparison.cpu),
                "postgres_cpu": comparison.database.map(number),
                "requests_per_second": number(comparison.rate),
            });
            (comparison.against.row.to_owned(), ratios)
        });
        json!({
            "name": measured.row.name,
            "cpu_us": column(|sample| Some(sample.cpu_micros)),
            "postgres_cpu_us": column(|sample| sample.database_micros),
            "requests_per_second": column(|sample| Some(sample.requests_per_second)),
            "p50_ms": column(|sample| Some(sample.p50_millis)),
            "p99_ms": column(|sample| Some(sample.p99_millis)),
            "memory_bytes": measured.samples.iter().map(|sample| sample.memory).max(),
            "ratio_to": ratios.collect::<Map<_, _>>(),
        })
    }
}

/// `bench/` in cargo's target folder.
fn folder() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("cargo's target folder is the root")?;
    let folder = target.join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Prints what a measurement of its own has found, and writes it into the results under its name.
pub(crate) fn publish_beside(name: &str, mut value: Value, text: &str) -> anyhow::Result<()> {
    value["version"] = json!(env!("CARGO_PKG_VERSION"));
    publish(&folder()?, json!({ name: value }), text)
}

/// Each member takes the place of its namesake in the results of before, and the others stay.
fn publish(folder: &Path, value: Value, text: &str) -> anyhow::Result<()> {
    let file = folder.join("results.json");
    let before = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Map<String, Value>>(&text).ok());
    let mut results = before.unwrap_or_default();
    if let Value::Object(members) = value {
        results.extend(members);
    }
    fs::write(&file, format!("{:#}\n", Value::Object(results)))?;
    writeln!(io::stdout(), "{text}")?;
    progress(&format!("the same figures are in {}", file.display()));
    Ok(())
}

fn revocations(case: &Revocations) -> Value {
    json!({
        "replicas": case.replicas,
        "stopped": case.stopped,
        "one_at_a_time": case.one_at_a_time.json(),
        "many_at_once": case.many_at_once.json(),
        "revocations_per_second": case.per_second,
    })
}

fn starts(starts: &Starts) -> Value {
    json!({
        "name": starts.name,
        "live_ms": spread(starts.live_millis.iter().copied()),
        "ready_ms": spread(starts.ready_millis.iter().copied()),
        "idle_memory_bytes": starts.idle_memory,
    })
}

fn spread(values: impl IntoIterator<Item = f64>) -> Value {
    Spread::of(values).map_or(Value::Null, number)
}

fn number(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max })
}

pub(crate) fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let system = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} processors ({}), Linux {}", model.map_or("unknown", |(_, model)| model), system.trim())
}
