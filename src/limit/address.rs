//! Failed keys, limited by the address they come from.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;

use super::bucket::{Bucket, Minute};
use super::{Quota, bounded, get_or_insert};
use crate::clock::Clock;

/// A bound on memory: forged addresses push each other out, and cost their senders a fresh count at the most.
const MAX_ADDRESSES: usize = 32_768;

/// How many keys that open nothing one client may show in a minute.
pub struct FailedKeys {
    minute: Option<Minute>,
    clients: Cache<IpAddr, Arc<Mutex<Bucket>>>,
}

impl FailedKeys {
    /// A limit of 0 is none.
    pub fn new(per_minute: u32, clock: &Clock) -> Self {
        Self { minute: Minute::new(per_minute, clock), clients: bounded(MAX_ADDRESSES) }
    }

    /// Counts one failure.
    ///
    /// # Errors
    /// The limit and how long to wait, if the client has failed too often already.
    pub fn record(&self, client: IpAddr) -> Result<(), (Quota, Duration)> {
        let Some(minute) = &self.minute else { return Ok(()) };
        let bucket = get_or_insert(&self.clients, &network(client), || Mutex::new(Bucket::default()));
        let bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        minute.take(&bucket).map(drop)
    }

    /// Forgets clients that have not failed for a minute.
    pub fn prune(&self) {
        let Some(minute) = &self.minute else { return };
        self.clients.retain(|_, bucket| !minute.is_full(&bucket.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    /// How many clients are remembered.
    pub fn tracked(&self) -> usize {
        self.clients.len()
    }
}

/// One client: an IPv4 address, or the /64 that an IPv6 host can move about in.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}
