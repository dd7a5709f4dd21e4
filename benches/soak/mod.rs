//! Whether the service stays as it is: a moderate load of all kinds for a long time, on both kinds of database at once.

mod churn;
mod parts;
mod report;
mod trend;

use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use self::churn::Churning;
use self::parts::{Flowing, PARTS, Part};
use self::trend::{Probe, Trend};
use super::accounts::Accounts;
use super::open_loop::{Log, Span};
use super::postgres::Postgres;
use super::redis::Redis;
use super::rows::{Memory, Setup};
use super::service::Fleet;
use super::world::World;
use super::{Plan, progress};

const QUICKLY: Duration = Duration::from_secs(24);
/// Between two looks at a process; a short run has as many of them as it needs for a trend.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LEAST_LOOKS: u32 = 12;
const SAY_EVERY: Duration = Duration::from_secs(60);
/// Until every connection is made.
const AHEAD: Duration = Duration::from_secs(1);

/// SQLite first: when a service is started, the replicas that were on PostgreSQL before are forgotten.
/// Keys in memory: so few that it is full before the time that counts, for to fill up is not to leak.
const KEPT: Memory = Memory::AtMost(2_000);

const DEPLOYMENTS: [(&str, Setup); 2] = [
    ("SQLite", Setup { on_sqlite: true, behind_proxy: true, memory: KEPT, ..Setup::USUAL }),
    ("PostgreSQL", Setup { replicas: 2, shares_limits: true, behind_proxy: true, memory: KEPT, ..Setup::USUAL }),
];

/// For how long the service is watched.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// How long the load lasts. Ctrl-C ends it sooner, with what was measured until then
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
}

/// The service on one kind of database, under load.
struct Deployment {
    name: &'static str,
    probes: Vec<Probe>,
    flowing: Vec<Flowing>,
    churning: Churning,
    _fleet: Fleet,
}

/// What has become of one.
struct Soaked {
    name: &'static str,
    trends: Vec<Trend>,
    parts: Vec<(&'static Part, Log)>,
    churn: Log,
}

pub(crate) async fn run(
    postgres: &Postgres,
    plan: Plan,
    soak: &Soak,
    told_to_stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let lasts = if plan.quick { QUICKLY } else { Duration::from_secs(60 * soak.minutes) };
    let redis = Redis::start().await.context("starting Redis")?;
    if redis.is_none() {
        progress("there is no redis-server; each replica counts limits for itself");
    }
    let mut world = World::prepare(postgres, redis.as_ref(), plan).await?;
    let mut fleets = Vec::new();
    for (name, setup) in DEPLOYMENTS {
        fleets.push((name, setup, world.start(setup).await?));
    }
    let stop = CancellationToken::new();
    let span = Span { from: Instant::now() + AHEAD, lasts };
    let mut deployments = Vec::new();
    for (name, setup, fleet) in fleets {
        let accounts = if setup.on_sqlite { &world.on_sqlite } else { &world.on_postgres };
        deployments.push(Deployment::start(name, fleet, accounts, span, &stop).await?);
    }
    progress(&format!("asking each deployment for all kinds of things, for {lasts:?}"));
    let cut_short = watch(&mut deployments, span, told_to_stop).await;
    stop.cancel();
    let lasted = span.from.elapsed().min(lasts);
    let mut soaked = Vec::new();
    for deployment in deployments {
        soaked.push(deployment.end().await?);
    }
    report::publish(&soaked, &postgres.description, lasted, cut_short.as_deref())
}

/// Looks at every process until the time is over, or until something ends it early, which is returned.
async fn watch(deployments: &mut [Deployment], span: Span, told_to_stop: impl Future<Output = ()>) -> Option<String> {
    let mut looks = interval_at(span.from, LOOK_EVERY.min(span.lasts / LEAST_LOOKS));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut says = interval_at(span.from + SAY_EVERY, SAY_EVERY);
    let mut told_to_stop = pin!(told_to_stop);
    loop {
        tokio::select! {
            () = &mut told_to_stop => return Some("told to stop".to_owned()),
            () = sleep_until(span.from + span.lasts) => return None,
            _ = says.tick() => deployments.iter().for_each(|deployment| deployment.say(span)),
            _ = looks.tick() => for deployment in &mut *deployments {
                if let Err(error) = deployment.look(span).await {
                    return Some(format!("{}: {error:#}", deployment.name));
                }
            },
        }
    }
}

impl Deployment {
    async fn start(
        name: &'static str,
        fleet: Fleet,
        accounts: &Accounts,
        span: Span,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let probe = |(index, process)| {
            let name = if fleet.0.len() > 1 { format!("{name}, replica {}", index + 1) } else { name.to_owned() };
            Probe::new(name, process)
        };
        let probes = fleet.0.iter().enumerate().map(probe).collect();
        let mut flowing = Vec::new();
        for part in &PARTS {
            flowing.push(part.start(&fleet, accounts, span, stop).await?);
        }
        let churning = churn::start(&fleet, &accounts.writers, span, stop);
        Ok(Self { name, probes, flowing, churning, _fleet: fleet })
    }

    async fn look(&mut self, span: Span) -> anyhow::Result<()> {
        for probe in &mut self.probes {
            probe.look(span.from.elapsed()).await?;
        }
        Ok(())
    }

    /// How it goes until now.
    fn say(&self, span: Span) {
        let logs = self.flowing.iter().map(|flowing| flowing.running.log());
        let answered: usize = logs.map(|log| log.records.len()).sum();
        let unexpected: usize =
            self.flowing.iter().map(|flowing| flowing.part.unexpected(&flowing.running.log())).sum();
        let churn = self.churning.log();
        let (answered, unexpected) = (answered + churn.records.len(), unexpected + churn::unexpected(&churn));
        let memory: Vec<_> = self.probes.iter().map(|probe| format!("{:.1}", probe.memory())).collect();
        let (name, minutes, memory) = (self.name, span.from.elapsed().as_secs() / 60, memory.join(" and "));
        progress(&format!("{minutes} min, {name}: {memory} MiB, {answered} requests, {unexpected} not as expected"));
    }

    async fn end(self) -> anyhow::Result<Soaked> {
        let mut parts = Vec::new();
        for flowing in self.flowing {
            parts.push((flowing.part, flowing.running.end().await?));
        }
        let trends = self.probes.into_iter().map(Probe::end).collect();
        Ok(Soaked { name: self.name, trends, parts, churn: self.churning.end().await? })
    }
}
