//! What a change waits for before it is answered: until nobody can still believe what was true before it.

use std::time::Duration;

use tokio::time::sleep;

use crate::clock::Clock;
use crate::store::Store;

/// The pauses between looks at the list grow from the first to the last of these.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));
/// What a replica's lease may be at the most; the wait when nobody can say how long the leases are.
pub const MAX_LEASE: Duration = Duration::from_secs(10);

/// Waits, after a change has been committed, until every replica on the list has applied it, or its lease must have ended.
///
/// It cannot fail: when the database cannot be asked, it waits until every lease has ended.
pub async fn settle(store: &Store, clock: &Clock) {
    // The change was committed before this instant, so leases that were given before it end within their length from now on.
    let committed = clock.elapsed();
    let mut pause = PAUSES.0;
    let mut target = None;
    let mut longest_lease = MAX_LEASE;
    loop {
        if let Ok(followers) = store.followers().await {
            let target = *target.get_or_insert(followers.latest);
            let behind = followers.replicas.iter().filter(|(applied, _)| *applied < target);
            let Some(lease_ms) = behind.map(|(_, lease_ms)| *lease_ms).max() else { return };
            longest_lease = Duration::from_millis(lease_ms);
        }
        // Clocks may differ in rate by one in a hundred.
        if clock.elapsed().saturating_sub(committed) >= longest_lease + longest_lease / 100 {
            return;
        }
        sleep(pause).await;
        pause = PAUSES.1.min(pause * 2);
    }
}
