//! What a change waits for before it is answered: until nobody can still believe what was true before it.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::store::{Followers, Result, Store};

/// The pauses between looks at the list grow from the first to the last of these.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));
/// What a replica's lease may be at the most; the wait when nobody can say how long the leases are.
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
    /// It cannot fail: when the database cannot be asked, it waits until every lease has ended.
    pub async fn settle(&self) {
        // The change was committed before this instant, so leases that were given before it end within their length from now on.
        let committed = self.clock.elapsed();
        let mut pause = PAUSES.0;
        let mut target = None;
        let mut longest_lease = MAX_LEASE;
        loop {
            // Clocks may differ in rate by one in a hundred.
            let waited = self.clock.elapsed().saturating_sub(committed);
            let left = (longest_lease + longest_lease / 100).saturating_sub(waited);
            if left.is_zero() {
                return;
            }
            if let Ok(Ok(followers)) = timeout(left, self.look()).await {
                let target = *target.get_or_insert(followers.latest);
                let behind = followers.replicas.iter().filter(|(applied, _)| *applied < target);
                let Some(lease_ms) = behind.map(|(_, lease_ms)| *lease_ms).max() else { return };
                longest_lease = Duration::from_millis(lease_ms);
            }
            sleep(pause).await;
            pause = PAUSES.1.min(pause * 2);
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
