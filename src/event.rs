//! What is recorded of each change: what it was, and whose doing. No I/O.

use std::net::IpAddr;

use chrono::{DateTime, Utc};

use crate::id::{AccountId, KeyId};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Created,
    Updated,
    Rotated,
    /// A rotation's old secret was ended before its time.
    Retired,
    Revoked,
    PlanChanged,
    /// A day or a week before its end, if nobody sees to it.
    ExpiresSoon,
    /// Long after its end, by the service itself.
    Removed,
}

impl What {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Rotated => "rotated",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
            Self::PlanChanged => "plan_changed",
            Self::ExpiresSoon => "expires_soon",
            Self::Removed => "removed",
        }
    }
}

/// Whose doing a change is, and from where it came.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The key that asked; `None` for the operator.
    pub key_id: Option<KeyId>,
    pub address: Option<IpAddr>,
    pub request_id: Option<String>,
}

impl Origin {
    /// Whoever may run commands on the host.
    pub fn operator() -> Self {
        Self::default()
    }
}

/// A recorded change.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: i64,
    pub account_id: AccountId,
    /// `None` if it is the account's own.
    pub key_id: Option<KeyId>,
    pub what: String,
    /// What else there is to say: the members that were changed, or the new plan.
    pub detail: Option<String>,
    pub at: DateTime<Utc>,
    pub by_key: Option<KeyId>,
    pub address: Option<String>,
    pub request_id: Option<String>,
}
