//! A presented text in, a [`Caller`] or the reason for refusal out.
//!
//! It must not know of HTTP: the API, gateways and the benchmark ask it in the same way.

mod cache;
mod follower;
mod last_used;
mod lease;
#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod lease_threads_tests;
mod settle;

/// What threads meet in. The lease is also tried with others in their place, which run threads in every order.
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

use std::sync::Arc;

use chrono::{DateTime, Utc};

pub use self::cache::{Cache, CacheSettings, CacheUse};
pub use self::follower::Follower;
pub use self::last_used::LastUsed;
pub use self::settle::{MAX_LEASE, Settler};
use crate::account::Plan;
use crate::clock::Clock;
use crate::id::{AccountId, KeyId};
use crate::key::{Credential, Standing};
use crate::permission::Permissions;
use crate::secret::{Malformed, Prefix, Secret};
use crate::store::{Store, StoreError};

/// What a request may take of the database when there is not enough for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// It stands in line, and is refused where the line is long.
    Common,
    /// It has a line of its own: it may end what a key can do.
    Reserved,
}

/// Proof that a live key was presented; only [`Auth`] makes one.
#[derive(Clone, Debug)]
pub struct Caller {
    credential: Arc<Credential>,
    share: Share,
}

impl Caller {
    fn live(credential: Arc<Credential>, share: Share, now: DateTime<Utc>) -> Result<Self, Denial> {
        match credential.standing(now) {
            Standing::Live => Ok(Self { credential, share }),
            Standing::Revoked => Err(Denial::Revoked),
            Standing::Disabled => Err(Denial::Disabled),
            Standing::Expired(since) => Err(Denial::Expired(since)),
        }
    }

    pub fn key_id(&self) -> KeyId {
        self.credential.key_id
    }

    pub fn account_id(&self) -> AccountId {
        self.credential.account_id
    }

    pub fn plan(&self) -> Plan {
        self.credential.plan
    }

    pub fn prefix(&self) -> Prefix {
        self.credential.prefix
    }

    /// What the key may do.
    pub fn permissions(&self) -> Permissions {
        self.credential.permissions
    }

    /// What the request may take of the database.
    pub fn share(&self) -> Share {
        self.share
    }
}

/// Why a presented text opens nothing. The log and the metrics know; the client is told one sentence for all but [`Denial::Expired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// No key at all.
    Missing,
    /// Several keys that differ, or one in the query string.
    Misplaced,
    Malformed,
    WrongChecksum,
    Unknown,
    WrongSecret,
    Revoked,
    Disabled,
    /// Shown with its right secret, so its holder may be told since when.
    Expired(DateTime<Utc>),
}

impl Denial {
    /// Every reason, as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Misplaced => "misplaced",
            Self::Malformed => "malformed",
            Self::WrongChecksum => "wrong_checksum",
            Self::Unknown => "unknown",
            Self::WrongSecret => "wrong_secret",
            Self::Revoked => "revoked",
            Self::Disabled => "disabled",
            Self::Expired(_) => "expired",
        }
    }
}

impl From<Malformed> for Denial {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Shape => Self::Malformed,
            Malformed::Checksum => Self::WrongChecksum,
        }
    }
}

#[derive(Debug)]
pub enum AuthError {
    Denied(Denial),
    /// Nobody can say now whether the key is good.
    Store(StoreError),
}

/// Says who is calling.
pub struct Auth {
    store: Store,
    /// The same for requests, by their share.
    common: Store,
    reserved: Store,
    /// For the look-ups of reserved requests.
    knocking: Store,
    /// `None` where every request asks the database.
    cache: Option<Arc<Cache>>,
    settler: Settler,
    last_used: LastUsed,
    clock: Clock,
}

impl Auth {
    pub fn new(store: Store, cache: Option<CacheSettings>, last_used: LastUsed, clock: Clock) -> Self {
        let cache = cache.map(|settings| Arc::new(Cache::new(settings, clock.clone())));
        let settler = Settler::new(store.clone(), clock.clone());
        let (reserved, knocking) = (store.for_reserved_requests(true), store.for_reserved_requests(false));
        Self { common: store.for_requests(), store, reserved, knocking, cache, settler, last_used, clock }
    }

    /// What keeps the cache true, if there is one. It must run for the cache to be believed at all.
    pub fn follower(&self) -> Option<Follower> {
        let cache = self.cache.as_ref()?;
        Some(Follower::new(Arc::clone(cache), self.store.clone(), self.clock.clone()))
    }

    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_deref()
    }

    /// Waits, after a change has been committed, until no replica can still answer from before it.
    ///
    /// # Errors
    /// If nobody can say that they do not; the change is made all the same.
    pub async fn settle(&self) -> Result<(), StoreError> {
        self.hear_of_change();
        self.settler.settle().await
    }

    /// The same for an answer that must not be lost: it waits for longer rather than fail.
    pub async fn settle_surely(&self) {
        self.hear_of_change();
        self.settler.settle_surely().await;
    }

    fn hear_of_change(&self) {
        if let Some(cache) = &self.cache {
            cache.changed.notify_one();
        }
    }

    /// The database as a request with this share may use it.
    pub fn store(&self, share: Share) -> &Store {
        match share {
            Share::Common => &self.common,
            Share::Reserved => &self.reserved,
        }
    }

    async fn find(&self, prefix: Prefix, share: Share) -> Result<Option<Arc<Credential>>, StoreError> {
        let store = match share {
            Share::Common => &self.common,
            Share::Reserved => &self.knocking,
        };
        match &self.cache {
            Some(cache) => cache.find(store, prefix, share).await,
            None => Ok(store.find_credential(prefix).await?.map(Arc::new)),
        }
    }

    /// Judges a presented text by what is true now.
    pub async fn authenticate(&self, presented: &[u8], share: Share) -> Result<Caller, AuthError> {
        let denied = |denial| Err(AuthError::Denied(denial));
        let secret = Secret::parse(presented).map_err(|malformed| AuthError::Denied(malformed.into()))?;
        let Some(credential) = self.find(secret.prefix(), share).await.map_err(AuthError::Store)? else {
            return denied(Denial::Unknown);
        };
        if !secret.hash().matches(&credential.hash) {
            return denied(Denial::WrongSecret);
        }
        let now = self.clock.now();
        let caller = Caller::live(credential, share, now).map_err(AuthError::Denied)?;
        self.last_used.record(caller.prefix(), now, caller.credential.never_used);
        Ok(caller)
    }

    /// Judges a caller once more, who has had time since: its key may have been changed or taken away.
    pub async fn again(&self, caller: &Caller) -> Result<Caller, AuthError> {
        match self.find(caller.prefix(), caller.share).await.map_err(AuthError::Store)? {
            Some(now) if now.hash.matches(&caller.credential.hash) => {
                Caller::live(now, caller.share, self.clock.now()).map_err(AuthError::Denied)
            }
            _ => Err(AuthError::Denied(Denial::Unknown)),
        }
    }
}
