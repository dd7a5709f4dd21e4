//! Measures the rows, all of them in each round, so that whatever else the machine does meanwhile is spread over all.

use std::time::Duration;

use anyhow::Context;

use super::load::Answered;
use super::process::cpu_of;
use super::rows::Row;
use super::world::World;
use super::{Plan, progress};

/// More keys than any server here can revoke in a second; a window without any left ends early.
const REVOKED_PER_SECOND: f64 = 15_000.0;

/// One row in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Of the server's process, a request.
    pub(crate) cpu_micros: f64,
    /// Of PostgreSQL, a request; `None` if it is elsewhere or not asked.
    pub(crate) database_micros: Option<f64>,
    pub(crate) requests_per_second: f64,
}

#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) row: &'static Row,
    pub(crate) samples: Vec<Sample>,
}

/// A sample for each row and round.
pub(crate) async fn rows(world: &mut World<'_>, rows: &[&'static Row], plan: Plan) -> anyhow::Result<Vec<Measured>> {
    let mut measured: Vec<_> = rows.iter().map(|row| Measured { row, samples: Vec::new() }).collect();
    for round in 1..=plan.rounds {
        for Measured { row, samples } in &mut measured {
            let sample = sample(world, row, plan).await.with_context(|| format!("`{}`", row.name))?;
            let (cpu, rate) = (sample.cpu_micros, sample.requests_per_second);
            progress(&format!("round {round}/{}: {}: {cpu:.1} us of CPU, {rate:.0}/s", plan.rounds, row.name));
            samples.push(sample);
        }
    }
    Ok(measured)
}

async fn sample(world: &mut World<'_>, row: &Row, plan: Plan) -> anyhow::Result<Sample> {
    let seconds = (plan.warm_up + plan.measured).as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a small positive number")]
    let load = world.load(row, (seconds * REVOKED_PER_SECOND) as usize).await?;
    let pid = world.process(row.server).pid();
    let postgres = world.postgres;
    let mark = || anyhow::Ok((cpu_of(pid)?, postgres.cpu()?));
    let (answered, before, after) = load.run(plan.warm_up, plan.measured, mark).await?;
    let database = row.asks_postgres().then_some((after.1).zip(before.1)).flatten();
    Ok(Sample {
        cpu_micros: each(after.0.saturating_sub(before.0), answered),
        database_micros: database.map(|(after, before)| each(after.saturating_sub(before), answered)),
        requests_per_second: requests(answered) / answered.took.as_secs_f64(),
    })
}

fn each(total: Duration, answered: Answered) -> f64 {
    total.as_secs_f64() * 1e6 / requests(answered)
}

#[expect(clippy::cast_precision_loss, reason = "no run answers 2⁵² requests")]
fn requests(answered: Answered) -> f64 {
    answered.requests as f64
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of no values at all.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}
