//! Who owns keys, and what each plan allows.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::id::AccountId;

#[derive(Clone, Debug)]
pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub plan: Plan,
    pub live_keys: u32,
    pub created_at: DateTime<Utc>,
}

/// What an account has subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    Free,
    Pro,
    Enterprise,
}

impl Plan {
    pub const ALL: [Self; 3] = [Self::Free, Self::Pro, Self::Enterprise];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no plan.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a plan: use free, pro or enterprise")]
pub struct UnknownPlan(String);

impl FromStr for Plan {
    type Err = UnknownPlan;

    fn from_str(text: &str) -> Result<Self, UnknownPlan> {
        Self::ALL.into_iter().find(|plan| plan.as_str() == text).ok_or_else(|| UnknownPlan(text.to_owned()))
    }
}

/// What a plan allows. A window of 0 requests is no window at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub per_minute: u32,
    pub per_hour: u32,
    pub per_day: u32,
    /// Keys an account may hold at once, expired ones included.
    pub max_keys: u32,
}

/// The allowance of each plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plans {
    pub free: Allowance,
    pub pro: Allowance,
    pub enterprise: Allowance,
}

impl Plans {
    pub fn of(&self, plan: Plan) -> &Allowance {
        match plan {
            Plan::Free => &self.free,
            Plan::Pro => &self.pro,
            Plan::Enterprise => &self.enterprise,
        }
    }

    /// Requests per minute; `None` if the plan has no such window.
    pub fn rate_limit(&self, plan: Plan) -> Option<u32> {
        Some(self.of(plan).per_minute).filter(|limit| *limit > 0)
    }
}
