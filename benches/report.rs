//! The results: a table for people, and the same figures as JSON for programs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::{fs, io};

use anyhow::Context;
use serde_json::{Value, json};

use super::load::CONNECTIONS;
use super::measure::{Measured, Sample, Spread};
use super::start::Starts;
use super::{Plan, progress, rows};

pub(crate) struct Report {
    pub(crate) postgres: String,
    pub(crate) plan: Plan,
    pub(crate) starts: Vec<Starts>,
    pub(crate) measured: Vec<Measured>,
    pub(crate) memory_after_load: u64,
}

impl Report {
    /// Prints the table and writes `bench/results.json` into cargo's target folder.
    pub(crate) fn publish(&self) -> anyhow::Result<()> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("cargo's target folder is the root")?;
        let folder = target.join("bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join("results.json");
        fs::write(&file, format!("{:#}\n", self.json()))?;
        writeln!(io::stdout(), "{}", self.text()?)?;
        progress(&format!("the same figures are in {}", file.display()));
        Ok(())
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "{}; {}.", machine(), self.postgres)?;
        let Plan { rounds, accounts, measured, .. } = self.plan;
        let seconds = measured.as_secs_f64();
        writeln!(text, "{rounds} rounds of {seconds} s, {CONNECTIONS} connections, {accounts} accounts in turn.\n")?;
        writeln!(text, "| row | CPU us a request | compared | PostgreSQL CPU us | requests/s |")?;
        writeln!(text, "|---|---|---|---|---|")?;
        for measured in &self.measured {
            let column = |of: fn(&Sample) -> Option<f64>| {
                Spread::of(measured.samples.iter().filter_map(of))
                    .map_or_else(|| "-".to_owned(), |spread| shown(&spread))
            };
            let cpu = column(|sample| Some(sample.cpu_micros));
            let ratios = self.ratios(measured).into_iter();
            let ratios: Vec<_> = ratios.map(|(name, ratio)| format!("{:.2} x `{name}`", ratio.median)).collect();
            let database = column(|sample| sample.database_micros);
            let rate = column(|sample| Some(sample.requests_per_second));
            let (name, ratios) = (measured.row.name, ratios.join("; "));
            writeln!(text, "| {name} | {cpu} | {ratios} | {database} | {rate} |")?;
        }
        writeln!(text)?;
        for line in rows::LEGEND {
            writeln!(text, "- {line}")?;
        }
        writeln!(text, "\n| start on | ms to /livez | ms to /readyz | idle memory MiB |\n|---|---|---|---|")?;
        for starts in &self.starts {
            let column = |values: &[f64]| Spread::of(values.iter().copied()).map(|spread| shown(&spread));
            let (live, ready) = (column(&starts.live_millis), column(&starts.ready_millis));
            let (live, ready) = live.zip(ready).context("nothing was started")?;
            writeln!(text, "| {} | {live} | {ready} | {:.1} |", starts.name, mebibytes(starts.idle_memory))?;
        }
        write!(
            text,
            "\nMemory of the service on PostgreSQL after all rows: {:.1} MiB.",
            mebibytes(self.memory_after_load)
        )?;
        Ok(text)
    }

    fn json(&self) -> Value {
        let rows = self.measured.iter().map(|measured| {
            let column = |of: fn(&Sample) -> Option<f64>| spread(measured.samples.iter().filter_map(of));
            let ratios = self.ratios(measured).into_iter().map(|(name, ratio)| (name.to_owned(), number(ratio)));
            json!({
                "name": measured.row.name,
                "cpu_us": column(|sample| Some(sample.cpu_micros)),
                "postgres_cpu_us": column(|sample| sample.database_micros),
                "requests_per_second": column(|sample| Some(sample.requests_per_second)),
                "cpu_ratio_to": ratios.collect::<serde_json::Map<_, _>>(),
            })
        });
        let starts = self.starts.iter().map(|starts| {
            json!({
                "name": starts.name,
                "live_ms": spread(starts.live_millis.iter().copied()),
                "ready_ms": spread(starts.ready_millis.iter().copied()),
                "idle_memory_bytes": starts.idle_memory,
            })
        });
        let Plan { rounds, accounts, measured, .. } = self.plan;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machine(),
            "postgres": self.postgres,
            "rounds": rounds,
            "seconds": measured.as_secs_f64(),
            "connections": CONNECTIONS,
            "accounts": accounts,
            "rows": rows.collect::<Vec<_>>(),
            "starts": starts.collect::<Vec<_>>(),
            "memory_after_load_bytes": self.memory_after_load,
        })
    }

    /// The CPU time of each round against that of other rows in the same round.
    fn ratios(&self, measured: &Measured) -> Vec<(&'static str, Spread)> {
        let others = measured.row.against.iter().filter(|name| **name != measured.row.name);
        let ratios = others.filter_map(|name| {
            let other = self.measured.iter().find(|other| other.row.name == *name)?;
            let rounds = measured.samples.iter().zip(&other.samples);
            let ratio = Spread::of(rounds.map(|(own, other)| own.cpu_micros / other.cpu_micros))?;
            Some((*name, ratio))
        });
        ratios.collect()
    }
}

fn spread(values: impl IntoIterator<Item = f64>) -> Value {
    Spread::of(values).map_or(Value::Null, number)
}

fn number(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max })
}

/// Median (least-greatest).
fn shown(spread: &Spread) -> String {
    let digits = usize::from(spread.median < 100.0);
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
}

#[expect(clippy::cast_precision_loss, reason = "no memory holds 2⁵² bytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let system = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} processors ({}), Linux {}", model.map_or("unknown", |(_, model)| model), system.trim())
}
