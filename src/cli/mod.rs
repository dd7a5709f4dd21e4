//! The command line: what the operator may do on the host. The first key of a PostgreSQL database is made here.

mod args;
mod healthcheck;
mod operator;
mod output;

use std::borrow::Cow;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio::runtime::Runtime;

use self::args::{Cli, Command};
use self::operator::Operator;
use self::output::{complain, say, say_error};
use crate::config::Config;
use crate::store::Store;
use crate::{http, secret, serve, telemetry};

/// Does what the command line says, and says how it ended: 0 done, 1 failed, 2 wrong usage or configuration.
pub fn main() -> ExitCode {
    let error = match Cli::try_parse() {
        Ok(cli) => return run(cli),
        Err(error) => error,
    };
    let text = error.render().to_string();
    match secret::mask_in(&text) {
        // Help, too, comes as an error.
        Cow::Borrowed(_) => error.exit(),
        // The parser repeats what was typed, in whose place somebody pasted a key.
        Cow::Owned(masked) => {
            eprint!("{masked}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> ExitCode {
    if matches!(cli.command, Some(Command::Openapi)) {
        return say(http::openapi_document().trim_end());
    }
    if let Some(Command::Keys(command)) = &cli.command
        && command.key().is_some_and(|key| key.id().is_none())
    {
        eprintln!("error: KEYID must be a key's id, key_… or a UUID\n\nFor more information, try '--help'.");
        return ExitCode::from(2);
    }
    let config = match Config::load(cli.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            say_error(&error.to_string());
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
        // Whoever types a command wants its answer; what the service logs at every start is noise to them, and the cause of a
        // failure is in the answer already.
        "warn,momail_api_keys::store::trouble=off".clone_into(&mut config.log.filter);
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
        Command::Events { account, limit, output } => {
            runtime.block_on(Operator::new(config)?.events(account.as_deref(), limit, output))
        }
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
    let opened = Store::open(&config.store.url, 1, Arc::clone(&config.catalogue));
    opened.with_context(|| format!("the database file {} cannot be made", config.store.url))
}
