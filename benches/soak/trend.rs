//! What a process holds as time goes by.

use std::time::Duration;

use anyhow::Context;

use crate::client::Client;
use crate::process::{Process, descriptors_of, memory_of, threads_of};
use crate::requests::request;
use crate::table::mebibytes;

/// The metrics are longer than an answer of the API.
const METRICS_BYTES: usize = 256 * 1024;
/// What comes before is warm-up: a third of the time.
const WARM_UP_PART: usize = 3;
/// Looks whose median is the first value and the last.
const LOOKS: usize = 6;
const SLOPE_SECONDS: f64 = 600.0;

/// Looks at one process.
pub(super) struct Probe {
    pid: u32,
    metrics: Client,
    trend: Trend,
}

/// What was seen of it.
pub(super) struct Trend {
    pub(super) name: String,
    pub(super) looks: Vec<Look>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) seconds: f64,
    /// Resident bytes.
    pub(super) memory: u64,
    pub(super) descriptors: f64,
    pub(super) threads: f64,
    pub(super) http_connections: f64,
    pub(super) database_connections: f64,
}

impl Probe {
    pub(super) fn new(name: String, process: &Process) -> Self {
        let metrics = Client::with_room(process.internal.clone(), METRICS_BYTES);
        Self { pid: process.pid(), metrics, trend: Trend { name, looks: Vec::new() } }
    }

    pub(super) async fn look(&mut self, since: Duration) -> anyhow::Result<()> {
        let answer = self.metrics.exchange(&request("GET", "/metrics", "none", ""), true).await?;
        let text = String::from_utf8_lossy(answer.body);
        let gauge = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value = line.with_context(|| format!("there is no metric {name}"))?;
            value.trim().parse::<f64>().with_context(|| format!("{name} is no number"))
        };
        let (http_connections, database_connections) = (gauge("http_connections")?, gauge("database_connections")?);
        self.trend.looks.push(Look {
            seconds: since.as_secs_f64(),
            memory: memory_of(self.pid)?,
            descriptors: count(descriptors_of(self.pid)?),
            threads: count(threads_of(self.pid)?),
            http_connections,
            database_connections,
        });
        Ok(())
    }

    pub(super) fn memory(&self) -> f64 {
        self.trend.looks.last().map_or(0.0, |look| mebibytes(look.memory))
    }

    pub(super) fn end(self) -> Trend {
        self.trend
    }
}

impl Trend {
    fn after_warm_up(&self) -> &[Look] {
        &self.looks[self.looks.len() / WARM_UP_PART..]
    }

    pub(super) fn has_slope(&self) -> bool {
        self.after_warm_up().len() > 1
    }

    /// By least squares, MiB in ten minutes.
    pub(super) fn slope(&self) -> f64 {
        let looks = self.after_warm_up();
        let mean = |of: fn(&Look) -> f64| looks.iter().map(of).sum::<f64>() / count(looks.len());
        let (seconds, memory) = (mean(|look| look.seconds), mean(|look| mebibytes(look.memory)));
        let products = looks.iter().map(|look| (look.seconds - seconds) * (mebibytes(look.memory) - memory));
        let squares: f64 = looks.iter().map(|look| (look.seconds - seconds).powi(2)).sum();
        products.sum::<f64>() / squares * SLOPE_SECONDS
    }

    /// Medians of the first looks after warm-up and of the last.
    pub(super) fn ends(&self, of: fn(&Look) -> f64) -> (f64, f64) {
        let looks = self.after_warm_up();
        let count = LOOKS.min(looks.len());
        let median = |looks: &[Look]| {
            let mut values: Vec<f64> = looks.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        (median(&looks[..count]), median(&looks[looks.len() - count..]))
    }
}

impl Look {
    /// What is open beside connections.
    pub(super) fn unexplained(&self) -> f64 {
        self.descriptors - self.http_connections - self.database_connections
    }
}

#[expect(clippy::cast_precision_loss, reason = "no process has 2⁵² of anything")]
fn count(number: usize) -> f64 {
    number as f64
}
