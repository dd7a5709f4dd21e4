//! Where Redis is, and what is said when it cannot be asked: never its password, and never what it was sent.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use redis::{Client, ConnectionAddr, RedisError};

/// Which Redis counts, and how long it is waited for.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    pub url: RedisUrl,
    /// How long one request waits for Redis before this process counts.
    pub answer_within: Duration,
}

/// A checked Redis URL; showing it hides the password.
#[derive(Clone)]
pub struct RedisUrl(Client);

/// What a Redis URL must look like. The URL itself is not repeated: it may hold a password.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("must be redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], or rediss://… for TLS")]
pub struct InvalidUrl;

impl RedisUrl {
    pub(super) fn client(&self) -> &Client {
        &self.0
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        if !["redis://", "rediss://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(InvalidUrl);
        }
        Client::open(url).map(Self).map_err(|_| InvalidUrl)
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.0.get_connection_info();
        let scheme = if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) { "rediss" } else { "redis" };
        let secret = if info.redis_settings().password().is_some() { "***@" } else { "" };
        write!(f, "{scheme}://{secret}{}/{}", info.addr(), info.redis_settings().db())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why Redis could not be asked.
#[derive(Debug)]
pub(super) enum Trouble {
    Late,
    Failed(RedisError),
    Unintelligible,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("it did not answer in time"),
            // The rest of the server's words may repeat what it was sent.
            Self::Failed(error) => f.write_str(error.code().unwrap_or(error.category())),
            Self::Unintelligible => f.write_str("its answer makes no sense"),
        }
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self::Failed(error)
    }
}
