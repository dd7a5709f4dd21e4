//! What may be typed on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hyper::Uri;

use super::healthcheck;
use crate::account::Plan;
use crate::id::KeyId;
use crate::key::{Expiry, Grace, InvalidGrace, KeyName, Lifetime};

/// Issues, lists and revokes API keys, and says for every request who is calling and whether that key may go on.
///
/// Without a command it serves. Settings: config/default.toml lists them all; a file given with --config, then MOMAIL_SECTION__NAME,
/// then DATABASE_URL, REDIS_URL and RUST_LOG from the environment change them.
#[derive(Debug, Parser)]
#[command(name = "momail-api-keys", version, max_term_width = 100, arg_required_else_help = false)]
pub(super) struct Cli {
    /// A file with settings, in the form of config/default.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve the API until told to stop (the default)
    Serve,
    /// Bring the database's schema up to date
    Migrate,
    /// Make, list and change accounts
    #[command(subcommand)]
    Accounts(AccountsCommand),
    /// Make, list and revoke keys of any account
    #[command(subcommand)]
    Keys(KeysCommand),
    /// List who changed what, the newest change first
    Events {
        /// Only those of one account: its id, or its name if no other has it
        #[arg(long)]
        account: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        #[command(flatten)]
        output: Output,
    },
    /// Print the API's description (OpenAPI 3.1)
    Openapi,
    /// Ask a running service whether it lives; for containers
    Healthcheck {
        /// What to ask; by default /livez on the internal address
        #[arg(long, value_parser = healthcheck::parse_url)]
        url: Option<Uri>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AccountsCommand {
    /// Make an account and its first key, which is shown once
    Create {
        /// The account's name, 1 to 100 characters; others may have the same
        #[arg(long, value_parser = parse_name)]
        name: KeyName,
        /// free, pro or enterprise
        #[arg(long, default_value = "free")]
        plan: Plan,
        /// The first key's name
        #[arg(long, value_name = "NAME", default_value = "first key", value_parser = parse_name)]
        key_name: KeyName,
        #[command(flatten)]
        output: Output,
    },
    /// List every account
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Change an account's plan, from the next request of each of its keys on
    SetPlan {
        /// The account's id, or its name if no other has it
        account: String,
        /// free, pro or enterprise
        plan: Plan,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key, which is shown once
    Create {
        /// The account's id, or its name if no other has it
        #[arg(long)]
        account: String,
        /// The key's name, 1 to 100 characters; others may have the same
        #[arg(long, value_parser = parse_name)]
        name: KeyName,
        /// Days until the key expires, 1 to 365; never if not given
        #[arg(long, value_name = "N", value_parser = parse_lifetime)]
        expiration_days: Option<Lifetime>,
        /// What the key may do, such as domains:read,emails:write; everything if not given
        #[arg(long, value_name = "LIST", value_delimiter = ',')]
        permissions: Option<Vec<String>>,
        #[command(flatten)]
        output: Output,
    },
    /// List an account's keys
    List {
        /// The account's id, or its name if no other has it
        #[arg(long)]
        account: String,
        #[command(flatten)]
        output: Output,
    },
    /// Change a key's name, what it may do, or until when it lives
    Change {
        #[command(flatten)]
        key: KeyArgument,
        #[command(flatten)]
        changes: Changes,
    },
    /// Show how many requests a key has made
    Usage {
        #[command(flatten)]
        key: KeyArgument,
        /// Days to look back, today included
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(i64).range(1..=365))]
        days: i64,
        #[command(flatten)]
        output: Output,
    },
    /// Give a key another secret, which is shown once; the one before works for a while
    Rotate {
        #[command(flatten)]
        key: KeyArgument,
        /// Hours for which the secret before still works, 0 to 168
        #[arg(long, value_name = "N", default_value = "24", value_parser = parse_grace)]
        grace_hours: Grace,
        #[command(flatten)]
        output: Output,
    },
    /// End the secret that a rotation has replaced, before its grace is over
    Retire(KeyArgument),
    /// Let a key open nothing until it is enabled again
    Disable(KeyArgument),
    /// Let a disabled key open again what it may
    Enable(KeyArgument),
    /// Revoke a key for good; the next request with it is refused
    Revoke(KeyArgument),
}

impl KeysCommand {
    /// The text given for a key's id, if the command wants one.
    pub(super) fn key(&self) -> Option<&KeyArgument> {
        match self {
            Self::Create { .. } | Self::List { .. } => None,
            Self::Change { key, .. }
            | Self::Usage { key, .. }
            | Self::Rotate { key, .. }
            | Self::Retire(key)
            | Self::Disable(key)
            | Self::Enable(key)
            | Self::Revoke(key) => Some(key),
        }
    }
}

/// What shall be different; at least one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Changes {
    /// A new name, 1 to 100 characters
    #[arg(long, value_parser = parse_name)]
    pub(super) name: Option<KeyName>,
    /// What the key may do from now on, such as domains:read,emails:write; `all` for everything
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(super) permissions: Option<Vec<String>>,
    /// Days until the key expires, 1 to 365, counted from now; `never` for no end
    #[arg(long, value_name = "N", value_parser = parse_expiry)]
    pub(super) expiration_days: Option<Expiry>,
}

/// It is not checked by the parser of the command line, which would repeat a key that was pasted instead of its id.
#[derive(Debug, Args)]
pub(super) struct KeyArgument {
    /// The key's id, as `keys list` shows it
    #[arg(value_name = "KEYID")]
    key: String,
}

impl KeyArgument {
    pub(super) fn id(&self) -> Option<KeyId> {
        KeyId::parse(&self.key)
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    pub(super) json: bool,
}

fn parse_name(text: &str) -> Result<KeyName, String> {
    KeyName::try_from(text).map_err(|error| error.to_string())
}

fn parse_lifetime(text: &str) -> Result<Lifetime, String> {
    text.parse::<i64>()
        .ok()
        .and_then(|days| Lifetime::try_from(days).ok())
        .ok_or_else(|| crate::key::InvalidLifetime.to_string())
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" { Ok(Expiry::Never) } else { parse_lifetime(text).map(Expiry::After) }
}

fn parse_grace(text: &str) -> Result<Grace, String> {
    let grace = text.parse::<i64>().ok().and_then(|hours| Grace::try_from(hours).ok());
    grace.ok_or_else(|| InvalidGrace.to_string())
}
