//! What a change waits for before it is answered: until nobody can still believe what was true before it.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::store::{BOUND, Followers, Result, Store, StoreError};

/// The pauses between looks at the list grow from the first to the last of these.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));
/// What a replica's lease may be at the most: a change may have to wait for all of it.
pub const MAX_LEASE: Duration = Duration::from_secs(10);

/// Waits for the replicas on behalf of changes.
pub struct Settler {
    store: Store,
    clock: Clock,
    /// Held while somebody looks at the list.
    last_look: Mutex<Option<Look>>,
}

/// What somebody saw who began to look at this instant.
struct Look {
    began: Duration,
    followers: Followers,
}

impl Settler {
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, last_look: Mutex::default() }
    }

    /// Waits, after a change has been committed, until every replica on the list has applied it, or its lease must have ended.
    ///
    /// # Errors
    /// If the database cannot say within [`BOUND`] who is to be waited for. The change is made all the same, and holds everywhere
    /// when the longest lease has ended; but nobody can promise that it holds now.
    pub async fn settle(&self) -> Result<()> {
        // The change was committed before this instant, so leases that were given before it end within their length from now on.
        let committed = self.clock.elapsed();
        let mut pause = PAUSES.0;
        let mut target = None;
        let mut longest_lease = None;
        loop {
            // Clocks may differ in rate by one in a hundred.
            let limit = longest_lease.map_or(BOUND, |lease: Duration| lease + lease / 100);
            let left = limit.saturating_sub(self.clock.elapsed().saturating_sub(committed));
            // A look that fails at once would never be late.
            let look = if left.is_zero() { None } else { timeout(left, self.look()).await.ok() };
            match look {
                Some(Ok(followers)) => {
                    let target = *target.get_or_insert(followers.latest);
                    let behind = followers.replicas.iter().filter(|(applied, _)| *applied < target);
                    let Some(lease_ms) = behind.map(|(_, lease_ms)| *lease_ms).max() else { return Ok(()) };
                    longest_lease = Some(Duration::from_millis(lease_ms));
                }
                Some(Err(_)) => (),
                None if longest_lease.is_some() => return Ok(()),
                None => return Err(StoreError::Unavailable("it did not say who is to be waited for".to_owned())),
            }
            sleep(pause).await;
            pause = PAUSES.1.min(pause * 2);
        }
    }

    /// The same for an answer that must not be lost: when nobody can say who is to be waited for, it waits until the longest lease
    /// there may be has ended.
    pub async fn settle_surely(&self) {
        let committed = self.clock.elapsed();
        if self.settle().await.is_err() {
            let waited = self.clock.elapsed().saturating_sub(committed);
            sleep((MAX_LEASE + MAX_LEASE / 100).saturating_sub(waited)).await;
        }
    }

    /// What the list says now. Of many who ask at once, one looks for those who have begun to wait before it.
    async fn look(&self) -> Result<Followers> {
        let asked = self.clock.elapsed();
        let mut last_look = self.last_look.lock().await;
        if let Some(look) = last_look.as_ref().filter(|look| look.began > asked) {
            return Ok(look.followers.clone());
        }
        let began = self.clock.elapsed();
        let followers = self.store.followers().await?;
        *last_look = Some(Look { began, followers: followers.clone() });
        Ok(followers)
    }
}
