//! Keeps a replica's memory true: follows the feed of changes, renews the lease, and keeps the replica on the list of those who
//! are waited for.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cache::Cache;
use crate::clock::Clock;
use crate::store::{FeedPosition, Heartbeat, Result, Store, StoreError};

/// How often a replica says that it is there, even if nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A replica that could not say so for this long believes nothing until it is on the list again.
const SELF_FENCE: Duration = Duration::from_secs(30);
/// A replica whose heartbeat stands still for this long, by the clock of the one that looks, is taken off the list: by then it has
/// believed nothing for [`SELF_FENCE`]. Clocks that are set forward or back play no part.
const REMOVED_AFTER: Duration = Duration::from_secs(60);
const RELISTEN_AFTER: Duration = Duration::from_secs(1);
const RELISTEN_AT_LEAST: Duration = Duration::from_mins(30);

/// Follows the feed for a [`Cache`].
pub struct Follower {
    pub(super) cache: Arc<Cache>,
    pub(super) store: Store,
    pub(super) clock: Clock,
    replica: Uuid,
    /// When this replica last said that it is there; `None` while it is not on the list.
    renewed: Option<Duration>,
    tidied: Duration,
    reported: Option<FeedPosition>,
    /// The last heartbeat of each replica, and when this one first saw it, by its own clock.
    seen: HashMap<Uuid, (Heartbeat, Duration)>,
}

impl Follower {
    pub(super) fn new(cache: Arc<Cache>, store: Store, clock: Clock) -> Self {
        let (replica, tidied) = (Uuid::now_v7(), Duration::ZERO);
        Self { cache, store, clock, replica, renewed: None, tidied, reported: None, seen: HashMap::new() }
    }

    /// Runs until `stop`, and takes the replica off the list.
    pub async fn run(self, stop: CancellationToken) {
        let listening = listen(self.store.clone(), Arc::clone(&self.cache));
        // In one task, so that neither goes on without the other.
        tokio::select! {
            () = self.follow(stop) => (),
            never = listening => match never {},
        }
    }

    async fn follow(mut self, stop: CancellationToken) {
        let mut ticks = interval(self.cache.settings.renew);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => (),
                () = self.cache.changed.notified() => (),
            }
            // A database that is away must not hold up the end.
            if let Some(Err(error)) = stop.run_until_cancelled(self.step()).await {
                tracing::debug!(%error, "the feed of changes cannot be followed now");
            }
        }
        self.cache.end_lease();
        if self.renewed.is_some() && self.store.deregister_replica(self.replica).await.is_err() {
            tracing::warn!("this replica stays on the list until it is taken off as silent");
        }
    }

    /// Asks once, applies the answer, and reports it.
    pub(super) async fn step(&mut self) -> Result<()> {
        if self.renewed.is_none_or(|renewed| self.clock.elapsed().saturating_sub(renewed) >= SELF_FENCE) {
            self.register().await?;
        }
        let asked = self.cache.ask();
        let feed = self.store.follow(self.cache.applied(), self.replica).await?;
        if !feed.is_registered {
            self.forget_registration();
            return Err(StoreError::Unavailable("this replica was taken off the list".to_owned()));
        }
        let (latest, as_before) = (feed.latest, feed.has_earlier_replicas);
        self.cache.apply(feed, asked).await;
        if self.reported != Some(latest) {
            self.store.report_progress(self.replica, latest, as_before).await?;
            self.reported = Some(latest);
        }
        if self.renewed.is_none_or(|renewed| self.clock.elapsed().saturating_sub(renewed) >= HEARTBEAT) {
            self.renew(latest.n).await?;
        }
        if self.clock.elapsed().saturating_sub(self.tidied) >= HEARTBEAT {
            self.tidied = self.clock.elapsed();
            self.remove_silent().await?;
            self.store.trim_changes().await?;
        }
        Ok(())
    }

    /// Takes those off the list whose heartbeat has not changed for long enough.
    async fn remove_silent(&mut self) -> Result<()> {
        let (now, before) = (self.clock.elapsed(), std::mem::take(&mut self.seen));
        for (replica, heartbeat) in self.store.heartbeats().await? {
            let since = before.get(&replica).filter(|(seen, _)| *seen == heartbeat).map_or(now, |(_, since)| *since);
            if now.saturating_sub(since) >= REMOVED_AFTER {
                self.store.remove_silent_replica(replica, heartbeat).await?;
            } else {
                self.seen.insert(replica, (heartbeat, since));
            }
        }
        Ok(())
    }

    async fn register(&mut self) -> Result<()> {
        let lease_ms = i64::try_from(self.cache.settings.lease.as_millis()).unwrap_or(i64::MAX);
        let asked = self.clock.elapsed();
        self.store.register_replica(self.replica, lease_ms).await?;
        self.renewed = Some(asked);
        self.reported = None;
        Ok(())
    }

    async fn renew(&mut self, applied: i64) -> Result<()> {
        let asked = self.clock.elapsed();
        if self.store.renew_replica(self.replica, applied).await? {
            self.renewed = Some(asked);
        } else {
            self.forget_registration();
        }
        Ok(())
    }

    /// Nobody waits for this replica any more, so it must not believe its memory any longer.
    fn forget_registration(&mut self) {
        self.cache.end_lease();
        self.renewed = None;
        self.reported = None;
    }
}

/// Passes on what the database tells. Without it the follower hears of a change with its next question.
async fn listen(store: Store, cache: Arc<Cache>) -> Infallible {
    loop {
        match store.listen().await {
            None => return pending().await,
            Some(Ok(mut listener)) => {
                let hear = async {
                    while listener.heard().await.is_ok() {
                        cache.changed.notify_one();
                    }
                };
                // A former primary stays silent for ever, so nobody listens to one server for ever.
                let _ = timeout(RELISTEN_AT_LEAST, hear).await;
            }
            Some(Err(error)) => tracing::debug!(%error, "changes are heard of by asking only"),
        }
        sleep(RELISTEN_AFTER).await;
    }
}
