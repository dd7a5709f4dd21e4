//! How long a revocation takes: it is answered when no replica can believe the old state, so it costs time rather than CPU.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::load::{Answered, CONNECTIONS, Load};
use super::measure::{count, millis};
use super::rows::Setup;
use super::world::World;
use super::{Plan, progress, requests};

/// A revocation that waits for a replica which is cut off takes this long at the most: the lease and what is left for it.
pub(crate) const AT_MOST_MILLIS: f64 = 1_050.0;
/// Long enough for a few revocations that wait for a lease to end.
const CUT_OFF_FOR: Duration = Duration::from_millis(4_200);
const BRIEFLY: Duration = Duration::from_millis(1_500);
/// A replica is on the list within this time after its start, unless something is wrong.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);
/// More than a database here can commit in a second.
const PER_SECOND: f64 = 6_000.0;

/// So many replicas, and how many of these are stopped.
const CASES: [(usize, usize); 4] = [(1, 0), (3, 0), (5, 0), (3, 1)];

#[derive(Debug)]
pub(crate) struct Revocations {
    pub(crate) replicas: usize,
    pub(crate) stopped: usize,
    pub(crate) one_at_a_time: Waits,
    pub(crate) many_at_once: Waits,
    /// With many at once.
    pub(crate) per_second: f64,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) greatest: f64,
}

impl Waits {
    fn of(answered: &Answered) -> Self {
        let of = |share| millis(answered.wait_of(share));
        Self { p50: of(0.5), p99: of(0.99), greatest: of(1.0) }
    }

    pub(crate) fn json(self) -> Value {
        json!({ "p50_ms": self.p50, "p99_ms": self.p99, "max_ms": self.greatest })
    }
}

pub(crate) async fn measure(world: &mut World<'_>, plan: Plan) -> anyhow::Result<Vec<Revocations>> {
    let mut measured = Vec::new();
    for (replicas, stopped) in CASES {
        progress(&format!("revoking with {replicas} replicas, {stopped} of them stopped"));
        measured.push(revoke(world, plan, replicas, stopped).await?);
    }
    Ok(measured)
}

async fn revoke(world: &mut World<'_>, plan: Plan, replicas: usize, stopped: usize) -> anyhow::Result<Revocations> {
    let fleet = world.start(Setup { replicas, ..Setup::USUAL }).await?;
    wait_for_replicas(world, replicas).await?;
    let (awake, asleep) = fleet.0.split_at(replicas - stopped);
    let addresses: Vec<_> = awake.iter().map(|process| process.public.clone()).collect();
    let time = match stopped {
        0 => plan.measured,
        _ if plan.quick => BRIEFLY,
        _ => CUT_OFF_FOR,
    };
    for process in asleep {
        process.signal("STOP")?;
    }
    let warm_up = if stopped == 0 { plan.warm_up } else { Duration::ZERO };
    let one = send(world, (warm_up, time), addresses.clone(), 1).await?;
    let many = send(world, (warm_up, time), addresses, CONNECTIONS).await?;
    for process in asleep {
        process.signal("CONT")?;
    }
    let per_second = count(&many) / many.took.as_secs_f64();
    Ok(Revocations { replicas, stopped, one_at_a_time: Waits::of(&one), many_at_once: Waits::of(&many), per_second })
}

async fn send(
    world: &mut World<'_>,
    (warm_up, time): (Duration, Duration),
    addresses: Vec<String>,
    connections: usize,
) -> anyhow::Result<Answered> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a small positive number")]
    let count = ((warm_up + time).as_secs_f64() * PER_SECOND) as usize;
    let writers = &world.on_postgres.writers;
    let requests = requests::revocations("/v1/api-keys", writers, &mut world.session, count).await?;
    let load = Arc::new(Load { addresses, requests, once: true, status: 200, connections });
    let (answered, (), ()) = load.run(warm_up, time, || Ok(())).await.context("revoking")?;
    Ok(answered)
}

async fn wait_for_replicas(world: &mut World<'_>, count: usize) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let query = sqlx::query_scalar::<_, i64>("select count(*) from replicas");
        if query.fetch_one(&mut world.session).await? == i64::try_from(count)? {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
    bail!("there are never {count} replicas on the list")
}
