//! The command line: what the operator may do on the host. The first key of a PostgreSQL database is made here.

mod healthcheck;
mod output;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use hyper::Uri;
use rand::rngs::SysRng;
use tokio::runtime::Runtime;

use self::output::{complain, say, say_account, say_accounts, say_key, say_keys};
use crate::account::{Account, Plan};
use crate::auth::Settler;
use crate::clock::Clock;
use crate::config::Config;
use crate::id::{AccountId, KeyId};
use crate::key::{KeyName, Lifetime, NewKey};
use crate::store::Store;
use crate::{http, serve, telemetry};

/// Issues, lists and revokes API keys, and says for every request who is calling and whether that key may go on.
///
/// Without a command it serves. Settings: config/default.toml lists them all; a file given with --config, then MOMAIL_SECTION__NAME,
/// then DATABASE_URL, REDIS_URL and RUST_LOG from the environment change them.
#[derive(Debug, Parser)]
#[command(name = "momail-api-keys", version, max_term_width = 100, arg_required_else_help = false)]
pub struct Cli {
    /// A file with settings, in the form of config/default.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
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
enum AccountsCommand {
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
enum KeysCommand {
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
    /// Revoke a key for good; the next request with it is refused
    Revoke {
        /// The key's id, as `keys list` shows it
        #[arg(value_name = "KEYID")]
        key: String,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command and says how it ended: 0 done, 1 failed, 2 wrong usage or configuration.
pub fn run(cli: Cli) -> ExitCode {
    if matches!(cli.command, Some(Command::Openapi)) {
        return say(http::openapi_document().trim_end());
    }
    // Not checked by the parser of the command line, which would repeat a key that was pasted instead of its id.
    if let Some(Command::Keys(KeysCommand::Revoke { key })) = &cli.command
        && KeyId::parse(key).is_none()
    {
        eprintln!("error: KEYID must be a key's id, key_… or a UUID\n\nFor more information, try '--help'.");
        return ExitCode::from(2);
    }
    let config = match Config::load(cli.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match execute(cli.command.unwrap_or(Command::Serve), config) {
        Ok(code) => code,
        Err(error) => complain(&error),
    }
}

fn execute(command: Command, mut config: Config) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new().context("the runtime cannot be started")?;
    if !matches!(command, Command::Serve) && config.log.filter == "info" {
        // Whoever types a command wants its answer; what the service logs at every start is noise to them.
        "warn".clone_into(&mut config.log.filter);
    }
    telemetry::init(&config.log);
    match command {
        Command::Serve => {
            let served = runtime.block_on(serve::run(config, |line| _ = say(line)));
            // What is still running then was cut off on purpose.
            runtime.shutdown_background();
            served.map(|()| ExitCode::SUCCESS)
        }
        Command::Healthcheck { url } => {
            let url = url.unwrap_or_else(|| healthcheck::livez_of(config.server.internal_addr));
            runtime.block_on(healthcheck::ask(&url))?;
            Ok(say("live"))
        }
        Command::Openapi => unreachable!("it needs no settings and was answered before they were read"),
        Command::Migrate => runtime.block_on(migrate(&config)),
        Command::Accounts(command) => runtime.block_on(Operator::new(config)?.accounts(command)),
        Command::Keys(command) => runtime.block_on(Operator::new(config)?.keys(command)),
    }
}

async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    let migrated = open(config)?.migrate().await.with_context(|| config.store.url.to_string())?;
    Ok(say(&match migrated.applied {
        0 => format!("schema {} is up to date", migrated.version),
        1 => format!("1 migration applied; schema {}", migrated.version),
        applied => format!("{applied} migrations applied; schema {}", migrated.version),
    }))
}

fn open(config: &Config) -> anyhow::Result<Store> {
    Store::open(&config.store.url, 1).with_context(|| format!("the database file {} cannot be made", config.store.url))
}

/// Whoever may run commands on the host may act for any account.
struct Operator {
    store: Store,
    config: Config,
    clock: Clock,
}

impl Operator {
    fn new(config: Config) -> anyhow::Result<Self> {
        Ok(Self { store: open(&config)?, config, clock: Clock::system() })
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        let prepared = if self.config.store.migrate_on_start {
            self.store.migrate().await.map(drop)
        } else {
            self.store.check_schema().await
        };
        prepared.with_context(|| self.config.store.url.to_string())
    }

    async fn accounts(self, command: AccountsCommand) -> anyhow::Result<ExitCode> {
        self.prepare().await?;
        match command {
            AccountsCommand::Create { name, plan, key_name, output } => {
                let now = self.clock.now();
                let name = name.as_str().to_owned();
                let account = Account { id: AccountId::new(), name, plan, live_keys: 0, created_at: now };
                let key = NewKey::new(account.id, key_name, None, now);
                let created = self.store.create_account(account, key, &mut SysRng).await?;
                Ok(say_account(&created, self.config.plans.rate_limit(plan), output.json))
            }
            AccountsCommand::List { output } => Ok(say_accounts(&self.store.list_accounts().await?, output.json)),
            AccountsCommand::SetPlan { account, plan } => {
                let account = self.find(&account).await?;
                self.store.set_plan(account.id, plan).await?;
                self.settle().await?;
                Ok(say(&format!("{} is on plan {plan} now", account.id)))
            }
        }
    }

    async fn keys(self, command: KeysCommand) -> anyhow::Result<ExitCode> {
        self.prepare().await?;
        match command {
            KeysCommand::Create { account, name, expiration_days, output } => {
                let account = self.find(&account).await?;
                let allowance = self.config.plans.of(account.plan);
                let key = NewKey::new(account.id, name, expiration_days, self.clock.now());
                let Some(secret) = self.store.create_key(&key, allowance.max_keys, &mut SysRng).await? else {
                    bail!("plan {} allows {} keys, and the account has them all", account.plan, allowance.max_keys);
                };
                let rate_limit = self.config.plans.rate_limit(account.plan);
                Ok(say_key(&http::CreatedKey::new(&key, &secret, account.plan, rate_limit), output.json))
            }
            KeysCommand::List { account, output } => {
                let account = self.find(&account).await?;
                let keys = self.store.list_keys(account.id).await?;
                let rate_limit = self.config.plans.rate_limit(account.plan);
                let keys: Vec<_> = keys.into_iter().map(|key| http::Key::new(key, account.plan, rate_limit)).collect();
                Ok(say_keys(&keys, output.json))
            }
            KeysCommand::Revoke { key } => {
                let key = KeyId::parse(&key).context("KEYID is no key's id")?;
                let owner = self.store.find_owner(key).await?;
                let revoked = match owner {
                    Some(owner) => self.store.revoke_key(owner, key, self.clock.now()).await?,
                    None => false,
                };
                // Also for a key that was revoked before: whoever did it may not have waited.
                self.settle().await?;
                if !revoked {
                    bail!("there is no key {key}, or it is revoked already");
                }
                Ok(say(&format!("{key} is revoked")))
            }
        }
    }

    /// Waits until no replica can still believe what was true before a change.
    async fn settle(&self) -> anyhow::Result<()> {
        let settled = Settler::new(self.store.clone(), self.clock.clone()).settle().await;
        settled.context("it is done, but replicas may not have heard of it; they have in ten seconds at the latest")
    }

    async fn find(&self, account: &str) -> anyhow::Result<Account> {
        let by_id = match AccountId::parse(account) {
            Some(id) => self.store.find_account(id).await?,
            None => None,
        };
        if let Some(account) = by_id {
            return Ok(account);
        }
        let mut named = self.store.find_accounts_named(account).await?;
        match (named.pop(), named.pop()) {
            (Some(account), None) => Ok(account),
            (None, _) => bail!("there is no account `{account}`; `accounts list` shows those there are"),
            (Some(_), Some(_)) => {
                bail!("several accounts are named `{account}`; give the id of one, see `accounts list`")
            }
        }
    }
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
