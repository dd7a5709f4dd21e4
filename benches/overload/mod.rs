//! What the service does with three times the load that it can bear: an open load, so that nobody waits with the next request
//! until the last is answered.

mod phases;
mod report;
mod watch;

use std::time::Duration;

use anyhow::{Context, bail};

use self::phases::{Beside, Excess, GivenUp};
use self::watch::Watch;
use super::open_loop::{Outcome, Pace, Span, Stream};
use super::postgres::Postgres;
use super::revocations::Waits;
use super::rows::{COLLECTION, Memory, Row, Server, Setup, THOUSAND, Work, forward_auth, service};
use super::world::World;
use super::{Plan, process, progress, requests};

/// Of what the service answers at most.
const TIMES: f64 = 3.0;
const BASELINE_SHARE: f64 = 0.25;
/// Clients at once while there is no overload, and while there is.
const CALM_CONNECTIONS: usize = 32;
const MOST_CONNECTIONS: usize = 2_000;
/// Descriptors that are left for all but connections.
const SPARED_DESCRIPTORS: usize = 256;

/// Far fewer keys in memory than there are, so that each is looked up whenever it comes.
const FORGETFUL: Setup = Setup { memory: Memory::AtMost(1_000), ..Setup::USUAL };
const ON_SQLITE: Setup = Setup { on_sqlite: true, ..Setup::USUAL };

const CASES: [Row; 6] = [
    service(("list", Server::Service(Setup::USUAL)), THOUSAND, (COLLECTION, 200), &[]),
    service(("create", Server::Service(Setup::USUAL)), Work::Create, (COLLECTION, 201), &[]),
    service(("list on SQLite", Server::Service(ON_SQLITE)), THOUSAND, (COLLECTION, 200), &[]),
    service(("create on SQLite", Server::Service(ON_SQLITE)), Work::Create, (COLLECTION, 201), &[]),
    forward_auth("forward auth, first look", Server::Service(FORGETFUL), Work::First, &[]),
    forward_auth("forward auth", Server::Service(Setup::USUAL), THOUSAND, &[]),
];

/// For how long the service is overloaded.
#[derive(Debug, clap::Args)]
pub(crate) struct Overload {
    /// How long each kind of request comes three times as often as it can be answered
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

/// How long each part of a case takes.
#[derive(Clone, Copy)]
struct Times {
    calm: Duration,
    excess: Duration,
    giving_up: Duration,
    recovery: Duration,
}

impl Times {
    fn of(overload: &Overload, plan: Plan) -> Self {
        let seconds = Duration::from_secs;
        if plan.quick {
            return Self { calm: seconds(1), excess: seconds(2), giving_up: seconds(1), recovery: seconds(3) };
        }
        let excess = seconds(overload.seconds);
        Self { calm: seconds(5), excess, giving_up: excess.min(seconds(10)), recovery: seconds(10) }
    }
}

/// One kind of request.
pub(crate) struct Overloaded {
    name: &'static str,
    /// Good answers a second when nobody asks before the last answer.
    peak: f64,
    /// At a quarter of that.
    baseline: Waits,
    excess: Excess,
    given_up: GivenUp,
}

pub(crate) async fn run(postgres: &Postgres, plan: Plan, overload: &Overload, text: &str) -> anyhow::Result<()> {
    let cases: Vec<&Row> = CASES.iter().filter(|case| case.name.contains(text)).collect();
    anyhow::ensure!(!cases.is_empty(), "nothing that is overloaded has `{text}` in its name");
    let times = Times::of(overload, plan);
    let mut world = World::prepare(postgres, None, plan).await?;
    let mut measured = Vec::new();
    for case in cases {
        progress(&format!("{TIMES} times as much as is answered of `{}`, for {:?}", case.name, times.excess));
        world.tidy().await?;
        measured.push(measure(&mut world, case, times).await.with_context(|| format!("`{}`", case.name))?);
    }
    report::publish(&measured, &postgres.description, times.excess)
}

async fn measure(world: &mut World<'_>, case: &Row, times: Times) -> anyhow::Result<Overloaded> {
    let Server::Service(setup) = case.server else { bail!("bare programs are not overloaded") };
    let revocations = world.revocations(setup.on_sqlite, phases::revocations_within(times.excess)).await?;
    let fleet = world.start(setup).await?;
    let accounts = if setup.on_sqlite { &world.on_sqlite } else { &world.on_postgres };
    let requests = requests::of_row(case, accounts, &mut world.session, Duration::ZERO).await?;
    let stream = Stream::new(fleet.addresses(case.is_internal()), requests, case.status);
    let calm = Stream { connections: CALM_CONNECTIONS, ..stream.clone() };

    calm.clone().run(Span::now(times.calm / 2)).await?;
    let closed = calm.clone().run(Span::now(times.calm)).await?;
    let peak = closed.goodput(times.calm);
    let calm = Stream { pace: Pace::PerSecond(peak * BASELINE_SHARE), ..calm };
    let baseline = calm.clone().run(Span::now(times.calm)).await?;
    let baseline = baseline.waits(Outcome::Good).with_context(|| format!("no good answer: {:?}", closed.complaint))?;
    progress(&format!("{}: {peak:.0}/s at the most, p99 {:.2} ms at a quarter of it", case.name, baseline.p99));

    let connections = MOST_CONNECTIONS.min(process::descriptor_limit()?.saturating_sub(SPARED_DESCRIPTORS));
    let excess = Stream { pace: Pace::PerSecond(peak * TIMES), connections, ..stream };
    let watch = Watch::new(&fleet, (!setup.on_sqlite).then_some(world.postgres));
    let beside = Beside::new(&fleet, revocations, calm);
    let measured = phases::overload(excess.clone(), beside, baseline, &watch, times).await?;

    let before = world.count_keys(setup.on_sqlite).await?;
    let watch = Watch::new(&fleet, (!setup.on_sqlite).then_some(world.postgres));
    let mut given_up = phases::give_up(excess, &watch, times).await?;
    let made = world.count_keys(setup.on_sqlite).await? - before;
    let answered = i64::try_from(given_up.log.count(|outcome| outcome == Outcome::Good))?;
    given_up.keys_for_nobody = (case.work == Work::Create).then_some(made - answered);
    Ok(Overloaded { name: case.name, peak, baseline, excess: measured, given_up })
}
