//! The service as it is measured: which settings it is given, and how one or more replicas of it are started.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::accounts::LIMIT;
use super::process::{Process, cpu_of, memory_of};
use super::rows::{Memory, Setup};

/// The service as it is released.
const PROGRAM: &str = env!("CARGO_BIN_EXE_momail-api-keys");

/// The servers that the service needs.
pub(crate) struct Needs<'a> {
    pub(crate) database: &'a str,
    pub(crate) redis: Option<&'a str>,
}

/// The service with production's defaults but for what the setup says, and for limits that no load meets; and with nothing of
/// this process's environment.
pub(crate) fn command(setup: Setup, needs: &Needs<'_>, public_addr: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("DATABASE_URL", needs.database).env("MOMAIL_SERVER__INTERNAL_ADDR", "127.0.0.1:0");
    command.env("MOMAIL_SERVER__PUBLIC_ADDR", public_addr);
    command.env("MOMAIL_AUTH__CACHE", if setup.memory == Memory::None { "off" } else { "lease" });
    for limit in ["PER_MINUTE", "PER_HOUR", "PER_DAY", "MAX_KEYS"] {
        command.env(format!("MOMAIL_PLANS__PRO__{limit}"), LIMIT.to_string());
    }
    if let Memory::AtMost(keys) = setup.memory {
        command.env("MOMAIL_AUTH__MAX_CACHED_KEYS", keys.to_string());
    }
    if setup.behind_proxy {
        command.env("MOMAIL_PROXIES__TRUSTED", "127.0.0.1");
    }
    if let Some(url) = needs.redis {
        command.env("REDIS_URL", url);
    }
    command
}

/// Replicas of the service on one database, or another program in their place. They are killed when this is dropped.
pub(crate) struct Fleet(pub(crate) Vec<Process>);

impl Fleet {
    /// Each replica has a folder in `directory`, with its log.
    pub(crate) fn start(setup: Setup, needs: &Needs<'_>, directory: &Path) -> anyhow::Result<Self> {
        let mut fleet = Self(Vec::new());
        for number in 0..setup.replicas {
            let mut command = command(setup, needs, "127.0.0.1:0");
            fleet.0.push(Process::start(command.stdin(Stdio::null()), &directory.join(number.to_string()))?);
        }
        Ok(fleet)
    }

    /// Where each is asked.
    pub(crate) fn addresses(&self, internal: bool) -> Vec<String> {
        let addresses = self.0.iter().map(|process| if internal { &process.internal } else { &process.public });
        addresses.cloned().collect()
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.0.iter().map(|process| cpu_of(process.pid())).sum()
    }

    /// Resident memory of all, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        self.0.iter().map(|process| memory_of(process.pid())).sum()
    }
}
