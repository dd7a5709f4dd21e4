//! How commands answer: tables for people, JSON for scripts.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::account::Account;
use crate::http::{CreatedKey, Key, RotatedKey, SHOWN_ONCE, ShownEvent, ShownUsage, View, timestamp};
use crate::id::AccountId;
use crate::secret;
use crate::store::CreatedAccount;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountWithKey {
    account_id: String,
    plan: &'static str,
    key: CreatedKey,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountInList<'a> {
    account_id: String,
    name: &'a str,
    plan: &'static str,
    keys: u32,
    created_at: String,
}

/// Prints a line. A reader that has gone, as `head` does, is no failure of the command.
pub(super) fn say(text: &str) -> ExitCode {
    match print(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => unprinted(&error),
        _ => ExitCode::SUCCESS,
    }
}

/// Prints a key, which nobody can show again: whoever does not get it must know.
fn say_once(text: &str) -> ExitCode {
    print(text).map_or_else(|error| unprinted(&error), |()| ExitCode::SUCCESS)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

fn unprinted(error: &io::Error) -> ExitCode {
    eprintln!("error: standard output cannot be written: {error}");
    ExitCode::FAILURE
}

/// Prints why a command failed: the error and its causes on one line. Some libraries repeat a cause in their own words.
pub(super) fn complain(error: &anyhow::Error) -> ExitCode {
    let causes = error.chain().skip(1).map(ToString::to_string);
    let text = causes.fold(
        error.to_string(),
        |text, cause| {
            if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
        },
    );
    say_error(&text);
    ExitCode::FAILURE
}

/// An error may repeat what was typed or set, and a key that was pasted there must not be repeated.
pub(super) fn say_error(text: &str) {
    eprintln!("error: {}", secret::mask_in(text));
}

fn say_json(value: &impl Serialize) -> ExitCode {
    say(&to_json(value))
}

fn say_json_once(value: &impl Serialize) -> ExitCode {
    say_once(&to_json(value))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own types have text as the names of their members")
}

pub(super) fn say_account(created: &CreatedAccount, view: &View<'_>, as_json: bool) -> ExitCode {
    let CreatedAccount { account, key, secret } = created;
    if as_json {
        let key = view.created(key, secret);
        let (account_id, plan) = (account.id.to_string(), account.plan.as_str());
        return say_json_once(&AccountWithKey { account_id, plan, key });
    }
    say_once(&format!(
        "account  {}  {}  ({})\nkey      {}  {}\n\n{}\n\n{SHOWN_ONCE}",
        account.id,
        account.name,
        account.plan,
        key.id,
        key.name.as_str(),
        secret.expose(),
    ))
}

pub(super) fn say_accounts(accounts: &[Account], as_json: bool) -> ExitCode {
    if as_json {
        let accounts = accounts.iter().map(|account| AccountInList {
            account_id: account.id.to_string(),
            name: &account.name,
            plan: account.plan.as_str(),
            keys: account.live_keys,
            created_at: timestamp(account.created_at),
        });
        return say_json(&accounts.collect::<Vec<_>>());
    }
    if accounts.is_empty() {
        return say("no accounts yet; `momail-api-keys accounts create --name NAME` makes one");
    }
    let rows = accounts.iter().map(|account| {
        let (id, plan, keys) = (account.id.to_string(), account.plan.to_string(), account.live_keys.to_string());
        [id, plan, keys, timestamp(account.created_at), account.name.clone()]
    });
    say(&table(["ACCOUNT", "PLAN", "KEYS", "CREATED", "NAME"], &rows.collect::<Vec<_>>()))
}

pub(super) fn say_key(key: &CreatedKey, as_json: bool) -> ExitCode {
    if as_json {
        return say_json_once(key);
    }
    say_once(&format!("key  {}  {}\n\n{}\n\n{SHOWN_ONCE}", key.key_id, key.name, key.api_key))
}

pub(super) fn say_rotated(key: &RotatedKey, as_json: bool) -> ExitCode {
    if as_json {
        return say_json_once(key);
    }
    let before = key.previous_secret.as_ref().map_or_else(
        || "The secret before opens nothing any more.".to_owned(),
        |previous| format!("The secret before, {}, works until {}.", previous.key_prefix, previous.retires_ts),
    );
    say_once(&format!("key  {}  {}\n\n{}\n\n{SHOWN_ONCE}\n{before}", key.key_id, key.name, key.api_key))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventOfAccount {
    account_id: String,
    #[serde(flatten)]
    event: ShownEvent,
}

pub(super) fn say_events(events: Vec<(AccountId, ShownEvent)>, as_json: bool) -> ExitCode {
    if as_json {
        let events = events.into_iter().map(|(id, event)| EventOfAccount { account_id: id.to_string(), event });
        return say_json(&events.collect::<Vec<_>>());
    }
    if events.is_empty() {
        return say("nothing was changed yet");
    }
    let rows = events.into_iter().map(|(account, event)| {
        let ShownEvent { at, event, key_id, by_key_id, address, detail, .. } = event;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let what = detail.map_or_else(|| event.clone(), |detail| format!("{event}: {detail}"));
        let by = by_key_id.unwrap_or_else(|| "operator".to_owned());
        [at, account.to_string(), or_dash(key_id), by, or_dash(address), what]
    });
    say(&table(["AT", "ACCOUNT", "KEY", "BY", "FROM", "EVENT"], &rows.collect::<Vec<_>>()))
}

pub(super) fn say_keys(keys: &[Key], as_json: bool) -> ExitCode {
    if as_json {
        return say_json(&keys);
    }
    if keys.is_empty() {
        return say("no keys; `momail-api-keys keys create --account ACCOUNT --name NAME` makes one");
    }
    let or_never = |at: &Option<String>| at.clone().unwrap_or_else(|| "never".to_owned());
    let rows = keys.iter().map(|key| {
        let (id, prefix) = (key.key_id.clone(), key.key_prefix.clone());
        let (last_used, expires) = (or_never(&key.last_used), or_never(&key.expiration_ts));
        [id, prefix, key.status.to_owned(), last_used, key.created_at.clone(), expires, key.name.clone()]
    });
    say(&table(["KEY", "PREFIX", "STATUS", "LAST USED", "CREATED", "EXPIRES", "NAME"], &rows.collect::<Vec<_>>()))
}

/// The days on which there was a request; scripts get all of it.
pub(super) fn say_usage(usage: &ShownUsage, as_json: bool) -> ExitCode {
    if as_json {
        return say_json(usage);
    }
    let used = usage.days.iter().filter(|day| day.allowed + day.refused > 0);
    // The day alone: its time is always midnight.
    let rows: Vec<_> =
        used.map(|day| [day.start[..10].to_owned(), day.allowed.to_string(), day.refused.to_string()]).collect();
    if rows.is_empty() {
        return say(&format!("no requests in {} days", usage.days.len()));
    }
    say(&table(["DAY", "ALLOWED", "REFUSED"], &rows))
}

/// Columns as wide as their widest cell; names come last, since they may be of any width.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    let head = head.map(str::to_owned);
    for row in std::iter::once(&head).chain(rows) {
        if !text.is_empty() {
            text.push('\n');
        }
        for (column, cell) in row.iter().enumerate() {
            let width = if column + 1 < N { widths[column] + 2 } else { 0 };
            let _ = write!(text, "{cell:<width$}");
        }
    }
    text
}
