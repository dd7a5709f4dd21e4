//! The running service: builds everything, listens, and stops it all in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::rngs::SysRng;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::access_log::{self, AccessLog};
use crate::account::{Account, Plan};
use crate::auth::LastUsed;
use crate::clock::Clock;
use crate::config::{Config, Server};
use crate::http::{self, App, Parts};
use crate::id::AccountId;
use crate::key::{KeyName, NewKey};
use crate::permission::Permissions;
use crate::server::{self, Listener, Stop, Timeouts};
use crate::store::{Store, StoreError};
use crate::tasks::{Part, Tasks};
use crate::telemetry;
use crate::upkeep::Upkeep;

/// Health checks and a scraper need few connections, but must find one.
const MIN_INTERNAL_CONNECTIONS: usize = 256;
/// How long the start is held up for the database, before the service listens without it.
const START_PATIENCE: Duration = Duration::from_secs(3);
/// The pauses between attempts to reach the database double from the first to the last of these.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
const PRUNE_EVERY: Duration = Duration::from_mins(1);
/// The longest drain delay and grace of a process that has lost a part of itself: whoever restarts it waits for that.
const LAME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));

/// Runs until a signal asks for the end. `announce` is given the lines meant for whoever started the process.
///
/// # Errors
/// If an address cannot be bound, the database cannot be used at all, or a task that must not end has ended.
pub async fn run(config: Config, announce: fn(&str)) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("no signals can be received")?;
    let clock = Clock::system();
    let store = Store::open(&config.store.url, config.store.max_connections, Arc::clone(&config.catalogue))
        .with_context(|| format!("the database file {} cannot be made", config.store.url))?;
    let last_used = LastUsed::default();
    let app = build(&config, store.clone(), last_used.clone(), clock.clone());
    let access_log = app.access_log.write().context("the access log cannot be written")?;

    let stop = Stop::default();
    let flush = CancellationToken::new();
    let mut tasks = Tasks::default();
    let addresses = listen(&config.server, &app, &stop, &mut tasks)?;
    let Config { event_retention, key_retention, .. } = config;
    let upkeep = Upkeep { store: store.clone(), clock: clock.clone(), event_retention, key_retention };
    tasks.spawn(Part::Upkeep, prune(app.clone(), upkeep, stop.gently.clone()));
    let migrated = Arc::new(Notify::new());
    let mut background = background(&app, last_used, &clock, &flush, &migrated);
    tracing::info!(store = %config.store.url, given = config.given.join(", "), "starting");
    if config.redis.is_none() {
        tracing::info!("limits are counted by each replica for itself; REDIS_URL lets replicas share them");
    }

    let mut start = tokio::spawn(start(app.clone(), config.clone(), clock, migrated, announce));
    let mut started = tokio::select! {
        started = &mut start => { started??; true }
        () = sleep(START_PATIENCE) => false,
        () = signals.first() => return Ok(()),
    };
    announce(&addresses);

    let mut outcome = loop {
        tokio::select! {
            () = signals.first() => break Ok(()),
            ended = &mut start, if !started => match ended.map_err(anyhow::Error::from).flatten() {
                Ok(()) => started = true,
                Err(error) => break Err(error),
            },
            error = lost_part(&mut tasks, &mut background, &access_log) => break Err(error),
        }
    };
    let (mut drain_delay, mut grace) = (config.server.drain_delay, config.server.grace);
    // A replica that was never ready has no load balancer to give time to.
    drain_delay = if started { drain_delay } else { Duration::ZERO };
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
        (drain_delay, grace) = (drain_delay.min(LAME.0), grace.min(LAME.1));
    }
    tokio::select! {
        () = drain(&app, drain_delay, grace, &stop) => (),
        // Whoever asks twice is in a hurry.
        () = signals.again() => anyhow::bail!("told to stop at once"),
    }
    flush.cancel();
    while let Some((part, ended)) = background.next_end().await {
        if let Err(error) = ended {
            tracing::error!("{part} has failed: {error}");
            outcome = outcome.and(Err(anyhow::Error::new(error).context(format!("{part} has failed"))));
        }
    }
    store.close();
    drop(access_log);
    tracing::info!("stopped");
    outcome
}

/// Waits until a part of the process has ended that is not meant to, and says which.
async fn lost_part(tasks: &mut Tasks, background: &mut Tasks, access_log: &access_log::Writer) -> anyhow::Error {
    let lost = tokio::select! {
        Some(lost) = tasks.next_end() => lost,
        Some(lost) = background.next_end() => lost,
        () = access_log.ended() => (Part::AccessLog, Ok(())),
    };
    match lost {
        (part, Ok(())) => anyhow::anyhow!("{part} has ended, and the process with it"),
        (part, Err(panic)) => anyhow::Error::new(panic).context(format!("{part} has failed, and the process with it")),
    }
}

fn build(config: &Config, store: Store, last_used: LastUsed, clock: Clock) -> App {
    App::new(Parts {
        store,
        cache: config.cache,
        last_used,
        clock,
        plans: config.plans,
        max_tracked_keys: config.max_tracked_keys,
        redis: config.redis.clone(),
        failed_per_minute: config.failed_per_minute,
        allowed_origins: config.allowed_origins.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        body_timeout: config.server.body_timeout,
        access_log: Arc::new(AccessLog::new(telemetry::access_form(&config.log))),
        allow_options: config.allow_options,
    })
}

/// Binds both addresses and begins to accept; says where.
fn listen(settings: &Server, app: &App, stop: &Stop, tasks: &mut Tasks) -> anyhow::Result<String> {
    let timeouts =
        Timeouts { header: settings.header_timeout, keep_alive: settings.keep_alive, write: settings.write_timeout };
    let bind = |address, name| {
        server::listen(address).with_context(|| format!("server.{name}: {address} cannot be listened on"))
    };
    let public = Listener {
        socket: bind(settings.public_addr, "public_addr")?,
        routes: http::public(app),
        max_connections: server::affordable(settings.max_connections),
        timeouts,
        app: app.clone(),
    };
    let internal = Listener {
        socket: bind(settings.internal_addr, "internal_addr")?,
        routes: http::internal(app),
        // A gateway that asks for every request may hold as many as clients would.
        max_connections: settings.max_connections.max(MIN_INTERNAL_CONNECTIONS),
        timeouts,
        app: app.clone(),
    };
    let addresses = format!("listening public=http://{} internal=http://{}", public.address()?, internal.address()?);
    // Tracked, since until it ends a listener may still bring connections.
    for (part, listener) in [(Part::PublicListener, public), (Part::InternalListener, internal)] {
        tasks.spawn(part, stop.connections.track_future(listener.run(stop.clone())));
    }
    Ok(addresses)
}

/// Begins what must outlast the last request: the writer of last uses, the follower of changes, and the link to Redis.
fn background(
    app: &App,
    last_used: LastUsed,
    clock: &Clock,
    flush: &CancellationToken,
    migrated: &Arc<Notify>,
) -> Tasks {
    let mut tasks = Tasks::default();
    tasks.spawn(Part::LastUses, last_used.run(app.store.clone(), clock.clone(), flush.clone()));
    let (limits, until) = (app.clone(), flush.clone());
    tasks.spawn(Part::RedisLink, async move {
        until.run_until_cancelled(limits.limiter.keep_linked()).await;
    });
    if let Some(follower) = app.auth.follower() {
        let (migrated, flush) = (Arc::clone(migrated), flush.clone());
        tasks.spawn(Part::Follower, async move {
            // Before the schema is there, a second connection could only disturb whoever makes it.
            if flush.run_until_cancelled(migrated.notified()).await.is_some() {
                follower.run(flush).await;
            }
        });
    }
    tasks
}

/// Opens the door, once the schema is there and an embedded database has its first key.
async fn start(
    app: App,
    config: Config,
    clock: Clock,
    migrated: Arc<Notify>,
    announce: fn(&str),
) -> anyhow::Result<()> {
    wait_for_schema(&app.store, &config).await?;
    if config.store.url.is_embedded() {
        make_first_key(&app.store, &clock, announce).await?;
    }
    migrated.notify_one();
    app.limiter.looked_for_redis().await;
    app.readiness.serve();
    tracing::info!("ready");
    Ok(())
}

/// Waits for the database, and brings its schema up to date or waits until somebody has.
async fn wait_for_schema(store: &Store, config: &Config) -> anyhow::Result<()> {
    let (mut pause, longest_pause) = RETRY_PAUSES;
    loop {
        let outcome =
            if config.store.migrate_on_start { store.migrate().await.map(drop) } else { store.check_schema().await };
        match outcome {
            Ok(()) => return Ok(()),
            // A file that cannot be read now will not be later; a server may come back.
            Err(StoreError::Unavailable(error)) if !config.store.url.is_embedded() => {
                tracing::warn!(error, "waiting for the database");
            }
            Err(error @ StoreError::NotMigrated { .. }) => tracing::warn!(%error, "waiting for the schema"),
            Err(error) => return Err(anyhow::Error::new(error).context(format!("{}", config.store.url))),
        }
        // With some chance in it, or replicas that fail together would also come back together.
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = longest_pause.min(pause * 2);
    }
}

/// An empty embedded database gets one account, and its key is printed once. PostgreSQL may be shared with others, so there
/// the first key is made on the command line.
async fn make_first_key(store: &Store, clock: &Clock, announce: fn(&str)) -> anyhow::Result<()> {
    let now = clock.now();
    let account =
        Account { id: AccountId::new(), name: "default".to_owned(), plan: Plan::Pro, live_keys: 0, created_at: now };
    let name = KeyName::try_from("first key").expect("the name is a good one");
    let key = NewKey::new(account.id, name, Permissions::EVERYTHING, None, now);
    if let Some(created) = store.create_first_account(account, key, &mut SysRng).await? {
        announce(&format!("first key: {}", created.secret.expose()));
    }
    Ok(())
}

async fn prune(app: App, upkeep: Upkeep, stop: CancellationToken) {
    let mut ticks = interval(PRUNE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                app.limiter.prune();
                app.failed_keys.prune();
                if app.readiness.is_serving() {
                    stop.run_until_cancelled(upkeep.run()).await;
                }
            }
        }
    }
}

/// Readiness first, so that load balancers turn away while requests are still taken; then no new ones; then none at all.
async fn drain(app: &App, drain_delay: Duration, grace: Duration, stop: &Stop) {
    tracing::info!(?drain_delay, ?grace, "stopping");
    app.readiness.drain();
    sleep(drain_delay).await;
    stop.gently.cancel();
    stop.connections.close();
    if timeout(grace, stop.connections.wait()).await.is_err() {
        tracing::warn!(connections = stop.connections.len(), "the grace is over; cutting what is left");
        stop.at_once.cancel();
        stop.connections.wait().await;
    }
}

/// The signals that ask for the end: from an orchestrator, from a keyboard, and from a terminal that closes.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
            _ = self.hangup.recv() => (),
        }
    }

    async fn again(&mut self) {
        self.first().await;
    }
}
