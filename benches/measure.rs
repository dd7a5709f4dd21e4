//! Measures the rows, all of them in each round, so that whatever else the machine does meanwhile is spread over all.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::load::{Answered, CONNECTIONS, Load};
use super::requests;
use super::rows::{Row, Server, Work};
use super::world::World;
use super::{Plan, progress};

/// As many keys are asked for before they are measured as the service has in memory by default.
const KEYS_IN_MEMORY: usize = 100_000;

/// One row in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Of the server's processes, a request.
    pub(crate) cpu_micros: f64,
    /// Of PostgreSQL, a request; `None` if it is elsewhere or not asked.
    pub(crate) database_micros: Option<f64>,
    pub(crate) requests_per_second: f64,
    /// What half of the requests waited at the most, and all but one in a hundred.
    pub(crate) p50_millis: f64,
    pub(crate) p99_millis: f64,
    /// Resident memory of the server's processes at the end.
    pub(crate) memory: u64,
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
        world.tidy().await?;
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
    let started = match row.server {
        Server::Bare => None,
        Server::Service(setup) => Some(world.start(setup).await?),
    };
    let time = plan.warm_up + plan.measured;
    let accounts = match row.server {
        Server::Service(setup) if setup.on_sqlite => &world.on_sqlite,
        _ => &world.on_postgres,
    };
    let requests = requests::of_row(row, accounts, &mut world.session, time).await?;
    let fleet = started.as_ref().unwrap_or(&world.bare);
    let load = Arc::new(Load {
        addresses: fleet.addresses(row.is_internal()),
        requests,
        once: matches!(row.work, Work::First | Work::Revoke),
        status: row.status,
        connections: CONNECTIONS,
    });
    if matches!(row.work, Work::Get { .. } | Work::Delete { .. }) {
        load.send_once(KEYS_IN_MEMORY).await?;
    }
    let postgres = world.postgres;
    let mark = || anyhow::Ok((fleet.cpu()?, postgres.cpu()?));
    let (answered, before, after) = load.run(plan.warm_up, plan.measured, mark).await?;
    let database = row.asks_postgres().then_some((after.1).zip(before.1)).flatten();
    Ok(Sample {
        cpu_micros: each(after.0.saturating_sub(before.0), &answered),
        database_micros: database.map(|(after, before)| each(after.saturating_sub(before), &answered)),
        requests_per_second: count(&answered) / answered.took.as_secs_f64(),
        p50_millis: millis(answered.wait_of(0.5)),
        p99_millis: millis(answered.wait_of(0.99)),
        memory: fleet.memory()?,
    })
}

fn each(total: Duration, answered: &Answered) -> f64 {
    total.as_secs_f64() * 1e6 / count(answered)
}

#[expect(clippy::cast_precision_loss, reason = "no run answers 2⁵² requests")]
pub(crate) fn count(answered: &Answered) -> f64 {
    answered.requests as f64
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
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
