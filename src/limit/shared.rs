//! Limits that replicas share: the same bucket and windows, judged by one script in Redis, in one round trip.
//!
//! Redis is never needed. While it cannot be asked there is no link to it, and whoever asks here is told at once to count for
//! itself; a task of its own looks for Redis meanwhile.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use chrono::DateTime;
use quick_cache::sync::Cache;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Script};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::redis_url::{RedisSettings, Trouble};
use super::{Counted, Decision, Quota, Window, bounded};
use crate::account::{Allowance, Plan, Plans};
use crate::clock::Clock;
use crate::id::KeyId;

/// Where the script has its time from: the server's own clock.
const SERVER_TIME: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
";
const JUDGE: &str = include_str!("shared.lua");
/// Before a key's id, in the name of what Redis knows of it.
const NAMESPACE: &str = "momail:limits:";
/// What a link is tried with: like any key, but nobody's.
const PROBE: &str = "momail:limits:probe";
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How often a link has to show that it works.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// The pauses before Redis is looked for again grow from the first to the last of these, for as long as it does not stay.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// A link that has worked for so long did not merely flicker.
const STAYED: Duration = Duration::from_secs(10);
/// A refused key is asked about again at least this often: clocks differ in rate, and an operator may have forgiven.
const ASK_AGAIN_AFTER: Duration = Duration::from_mins(1);

/// The limits of every key, counted in Redis.
pub(super) struct Shared {
    settings: RedisSettings,
    plans: Plans,
    judge: Script,
    clock: Clock,
    /// `None` while Redis cannot be asked.
    link: RwLock<Option<Link>>,
    lost: Notify,
    /// Cancelled once Redis was looked for, with whatever success.
    looked: CancellationToken,
    /// Keys that were refused, and need not be asked about before they may go again.
    refused: Cache<KeyId, Refusal>,
}

/// One connection, on which any number of requests ask at once.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    made_at: Duration,
}

/// Instants are times since the clock was made.
#[derive(Clone, Copy)]
struct Refusal {
    plan: Plan,
    quota: Quota,
    until: Duration,
    full_at: Duration,
    ask_again_at: Duration,
}

/// What the script returns.
type Judged = (bool, i64, i64, u32, u32, u32, u32);

impl Shared {
    pub(super) fn new(settings: RedisSettings, plans: Plans, max_keys: usize, clock: Clock) -> Self {
        Self::with_time(SERVER_TIME, settings, plans, max_keys, clock)
    }

    /// `time` is a piece of the script that sets `now`.
    pub(super) fn with_time(time: &str, settings: RedisSettings, plans: Plans, max_keys: usize, clock: Clock) -> Self {
        Self {
            settings,
            plans,
            judge: Script::new(&format!("{time}{JUDGE}")),
            clock,
            link: RwLock::default(),
            lost: Notify::new(),
            looked: CancellationToken::new(),
            refused: bounded(max_keys),
        }
    }

    /// Judges one request, and counts it if it may go on; `None` if Redis cannot be asked.
    pub(super) async fn check(&self, key: KeyId, plan: Plan) -> Option<Decision> {
        if matches!(self.plans.of(plan), Allowance { per_minute: 0, per_hour: 0, per_day: 0, .. }) {
            return Some(Decision::Go(None));
        }
        if let Some(refusal) = self.still_refused(key, plan) {
            return Some(refusal);
        }
        let link = self.link()?;
        match self.ask(&link, &format!("{NAMESPACE}{key}"), plan).await {
            Ok(decision) => {
                if let Decision::Wait(quota, wait) = decision {
                    self.remember(key, plan, quota, wait);
                }
                Some(decision)
            }
            Err(trouble) => {
                self.lose(&link, &trouble);
                None
            }
        }
    }

    pub(super) fn is_linked(&self) -> bool {
        self.link().is_some()
    }

    /// Forgets refusals that are over.
    pub(super) fn prune(&self) {
        let now = self.clock.elapsed();
        self.refused.retain(|_, refusal| refusal.ask_again_at > now);
    }

    /// Looks for Redis while it is away, and now and then whether it is still there.
    pub(super) async fn keep_linked(&self) {
        let (mut pause, longest_pause) = PAUSES;
        let mut is_told = false;
        loop {
            match self.find().await {
                Ok(link) => {
                    tracing::info!(redis = %self.settings.url, "limits are counted for all replicas together");
                    is_told = true;
                    self.set_link(Some(link.clone()));
                    self.looked.cancel();
                    self.watch(&link).await;
                    let has_stayed = self.clock.elapsed().saturating_sub(link.made_at) >= STAYED;
                    pause = if has_stayed { PAUSES.0 } else { pause };
                }
                // Whoever lost it has said so.
                Err(_) if is_told => (),
                Err(trouble) => {
                    is_told = true;
                    self.complain(&trouble);
                }
            }
            self.looked.cancel();
            sleep(pause).await;
            pause = longest_pause.min(pause * 2);
        }
    }

    /// Waits until Redis was looked for once, while [`Self::keep_linked`] runs.
    pub(super) async fn looked(&self) {
        self.looked.cancelled().await;
    }

    /// A new link, which has shown that it can count.
    async fn find(&self) -> Result<Link, Trouble> {
        // Each answer is waited for by whoever asks, and no longer than the settings say.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connect = self.settings.url.client().get_multiplexed_async_connection_with_config(&config);
        let connection = timeout(CONNECT_WITHIN, connect).await.map_err(|_| Trouble::Late)??;
        let link = Link { connection, made_at: self.clock.elapsed() };
        // Its first question may have to bring the script along.
        timeout(CONNECT_WITHIN, self.judge.prepare_invoke().load_async(&mut link.connection.clone()))
            .await
            .map_err(|_| Trouble::Late)??;
        self.probe(&link).await?;
        Ok(link)
    }

    /// Asks as a request without limits would, which always writes: a server that has become a replica answers, but cannot count.
    async fn probe(&self, link: &Link) -> Result<(), Trouble> {
        self.ask_of(link, PROBE, Plan::Free, &Allowance { per_minute: 0, per_hour: 0, per_day: 0, max_keys: 0 })
            .await
            .map(drop)
    }

    /// Comes back when the link is lost.
    async fn watch(&self, link: &Link) {
        loop {
            tokio::select! {
                () = self.lost.notified() => return,
                () = sleep(PROBE_EVERY) => {
                    if let Err(trouble) = self.probe(link).await {
                        self.lose(link, &trouble);
                    }
                }
            }
        }
    }

    async fn ask(&self, link: &Link, name: &str, plan: Plan) -> Result<Decision, Trouble> {
        self.ask_of(link, name, plan, self.plans.of(plan)).await
    }

    async fn ask_of(&self, link: &Link, name: &str, plan: Plan, allowed: &Allowance) -> Result<Decision, Trouble> {
        let Allowance { per_minute, per_hour, per_day, .. } = *allowed;
        let mut question = self.judge.key(name);
        question.arg(plan.as_str()).arg(per_minute).arg(per_hour).arg(per_day);
        let mut connection = link.connection.clone();
        let answer = timeout(self.settings.answer_within, question.invoke_async::<Judged>(&mut connection));
        let (goes, now, full_at, hour, in_hour, day, in_day) = answer.await.map_err(|_| Trouble::Late)??;
        let time = DateTime::from_timestamp_micros(now).ok_or(Trouble::Unintelligible)?;
        let minute = (per_minute > 0).then(|| bucket(goes, per_minute, full_at.saturating_sub(now)));
        let counted =
            [Counted::new(Window::Hour, per_hour, hour, in_hour), Counted::new(Window::Day, per_day, day, in_day)];
        Decision::of(goes, minute, counted, time).ok_or(Trouble::Unintelligible)
    }

    fn link(&self) -> Option<Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_link(&self, link: Option<Link>) {
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Gives up a link, unless it was given up before and another is there by now.
    fn lose(&self, lost: &Link, trouble: &Trouble) {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.take_if(|link| link.made_at == lost.made_at).is_some() {
            drop(link);
            self.complain(trouble);
            self.lost.notify_one();
        }
    }

    fn complain(&self, trouble: &Trouble) {
        tracing::warn!(redis = %self.settings.url, %trouble, "each replica counts limits for itself until Redis answers");
    }

    fn still_refused(&self, key: KeyId, plan: Plan) -> Option<Decision> {
        let refusal = self.refused.get(&key)?;
        let now = self.clock.elapsed();
        if refusal.plan != plan || now >= refusal.ask_again_at {
            self.refused.remove(&key);
            return None;
        }
        let quota = Quota { reset_after: refusal.full_at.saturating_sub(now), ..refusal.quota };
        Some(Decision::Wait(quota, refusal.until.saturating_sub(now)))
    }

    fn remember(&self, key: KeyId, plan: Plan, quota: Quota, wait: Duration) {
        // Counted from the answer's arrival, which is later than Redis's judgement: who waits this long is not too early.
        let now = self.clock.elapsed();
        let ask_again_at = now + wait.min(ASK_AGAIN_AFTER);
        let refusal = Refusal { plan, quota, until: now + wait, full_at: now + quota.reset_after, ask_again_at };
        self.refused.insert(key, refusal);
    }
}

/// How the minute's bucket stands that will be full in so many microseconds: the script's arithmetic, read back.
fn bucket(goes: bool, per_minute: u32, full_in: i64) -> Result<Quota, (Quota, Duration)> {
    let micros = |number: i64| Duration::from_micros(u64::try_from(number).unwrap_or_default());
    let limit = i64::from(per_minute);
    let token = (i64::from(Window::Minute.seconds()) * 1_000_000 / limit).max(1);
    let room = token * limit - full_in.max(0);
    if goes || room >= token {
        let remaining = u32::try_from(room / token).unwrap_or_default();
        return Ok(Quota::of_minute(per_minute, remaining));
    }
    Err((Quota::of_minute(per_minute, 0), micros(token - room)))
}
