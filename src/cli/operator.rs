//! What the operator's commands do.

use std::process::ExitCode;

use anyhow::{Context, bail};
use rand::rngs::SysRng;

use super::args::{AccountsCommand, Changes, KeyArgument, KeysCommand, Output};
use super::open;
use super::output::{say, say_account, say_accounts, say_events, say_key, say_keys, say_rotated, say_usage};
use crate::account::{Account, Plan};
use crate::auth::Settler;
use crate::clock::Clock;
use crate::config::Config;
use crate::event::Origin;
use crate::http::{ShownEvent, ShownUsage, View, timestamp};
use crate::id::{AccountId, KeyId};
use crate::key::{Edit, Grace, NewKey, Refusal, Rotation};
use crate::permission::{Permissions, UnknownPermission};
use crate::secret;
use crate::store::{Carried, Edited, Rotated, Store};

/// Whoever may run commands on the host may act for any account.
pub(super) struct Operator {
    store: Store,
    config: Config,
    clock: Clock,
}

impl Operator {
    pub(super) fn new(config: Config) -> anyhow::Result<Self> {
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

    pub(super) async fn accounts(self, command: AccountsCommand) -> anyhow::Result<ExitCode> {
        self.prepare().await?;
        match command {
            AccountsCommand::Create { name, plan, key_name, output } => {
                let now = self.clock.now();
                let name = name.as_str().to_owned();
                let account = Account { id: AccountId::new(), name, plan, live_keys: 0, created_at: now };
                let key = NewKey::new(account.id, key_name, Permissions::EVERYTHING, None, now);
                let created = self.store.create_account(account, key, &mut SysRng).await?;
                Ok(say_account(&created, &self.view(plan), output.json))
            }
            AccountsCommand::List { output } => Ok(say_accounts(&self.store.list_accounts().await?, output.json)),
            AccountsCommand::SetPlan { account, plan } => {
                let account = self.find(&account).await?;
                self.store.set_plan(account.id, plan, self.clock.now(), Origin::operator()).await?;
                self.settle().await?;
                Ok(say(&format!("{} is on plan {plan} now", account.id)))
            }
        }
    }

    pub(super) async fn keys(self, command: KeysCommand) -> anyhow::Result<ExitCode> {
        self.prepare().await?;
        match command {
            KeysCommand::Create { account, name, expiration_days, permissions, output } => {
                let account = self.find(&account).await?;
                let permissions = self.parse(permissions.as_deref())?;
                let allowance = self.config.plans.of(account.plan);
                let key = NewKey::new(account.id, name, permissions, expiration_days, self.clock.now());
                let Some(secret) = self.store.create_key(&key, allowance.max_keys, &mut SysRng).await? else {
                    bail!("plan {} allows {} keys, and the account has them all", account.plan, allowance.max_keys);
                };
                Ok(say_key(&self.view(account.plan).created(&key, &secret), output.json))
            }
            KeysCommand::List { account, output } => {
                let account = self.find(&account).await?;
                let keys = self.store.list_keys(account.id).await?;
                let view = self.view(account.plan);
                let keys: Vec<_> = keys.into_iter().map(|key| view.key(key)).collect();
                Ok(say_keys(&keys, output.json))
            }
            KeysCommand::Change { key, changes } => self.change(&key, changes).await,
            KeysCommand::Usage { key, days, output } => {
                let (account, key) = self.find_key(&key).await?;
                let now = self.clock.now();
                let found = self.store.usage(account, key, days, now).await?;
                Ok(say_usage(&ShownUsage::new(key, &found, days, now), output.json))
            }
            KeysCommand::Rotate { key, grace_hours, output } => self.rotate(&key, grace_hours, output).await,
            KeysCommand::Retire(key) => {
                let key = self.edit(&key, Edit { retire_now: true, ..no_edit() }).await?;
                Ok(say(&format!("{key} has one secret now")))
            }
            KeysCommand::Disable(key) => {
                let key = self.edit(&key, Edit { enabled: Some(false), ..no_edit() }).await?;
                Ok(say(&format!("{key} is disabled now")))
            }
            KeysCommand::Enable(key) => {
                let key = self.edit(&key, Edit { enabled: Some(true), ..no_edit() }).await?;
                Ok(say(&format!("{key} is enabled now")))
            }
            KeysCommand::Revoke(key) => {
                let (account, key) = self.find_key(&key).await?;
                let was_live = self.store.revoke_key(account, key, self.clock.now(), Origin::operator()).await?;
                // Also for a key that was revoked before: whoever did it may not have waited.
                self.settle().await?;
                if !was_live {
                    bail!(no_key(key));
                }
                Ok(say(&format!("{key} is revoked")))
            }
        }
    }

    pub(super) async fn events(self, account: Option<&str>, limit: u32, output: Output) -> anyhow::Result<ExitCode> {
        self.prepare().await?;
        let account = match account {
            Some(account) => Some(self.find(account).await?.id),
            None => None,
        };
        let events = self.store.list_events(account, None, limit).await?;
        Ok(say_events(
            events.into_iter().map(|event| (event.account_id, ShownEvent::from(event))).collect(),
            output.json,
        ))
    }

    async fn change(&self, key: &KeyArgument, changes: Changes) -> anyhow::Result<ExitCode> {
        let Changes { name, permissions, expiration_days } = changes;
        let permissions = match permissions {
            Some(names) if names == ["all"] => Some(Permissions::EVERYTHING),
            Some(names) => Some(self.parse(Some(&names))?),
            None => None,
        };
        let edit = Edit { name, permissions, expiry: expiration_days, ..no_edit() };
        let given = edit.given();
        let key = self.edit(key, edit).await?;
        Ok(say(&format!("{key} is changed: {given}")))
    }

    async fn edit(&self, key: &KeyArgument, edit: Edit) -> anyhow::Result<KeyId> {
        let (account, key) = self.find_key(key).await?;
        let Edited::Done(_) = self.store.edit_key(account, key, edit, self.clock.now()).await? else {
            bail!(no_key(key));
        };
        self.settle().await?;
        Ok(key)
    }

    async fn rotate(&self, key: &KeyArgument, grace: Grace, output: Output) -> anyhow::Result<ExitCode> {
        let (account, key) = self.find_key(key).await?;
        let plan = self.store.find_account(account).await?.with_context(|| no_key(key))?.plan;
        let (by, now) = (Permissions::EVERYTHING, self.clock.now());
        let rotation = Rotation { account_id: account, id: key, grace, by, now, origin: Origin::operator() };
        match self.store.rotate_key(rotation, None, &mut SysRng).await? {
            Carried::Out(Rotated::Done(key, secret)) => {
                // The secret can be shown only now.
                self.settler().settle_surely().await;
                Ok(say_rotated(&self.view(plan).rotated(*key, &secret), output.json))
            }
            Carried::Out(Rotated::Refused(Refusal::StillLive(until))) => {
                let until = timestamp(until);
                bail!("the secret before still works until {until}; `keys retire {key}` ends it first")
            }
            _ => bail!(no_key(key)),
        }
    }

    async fn find_key(&self, key: &KeyArgument) -> anyhow::Result<(AccountId, KeyId)> {
        let key = key.id().context("KEYID is no key's id")?;
        let owner = self.store.find_owner(key).await?;
        Ok((owner.with_context(|| no_key(key))?, key))
    }

    fn view(&self, plan: Plan) -> View<'_> {
        View {
            plan,
            rate_limit: self.config.plans.rate_limit(plan),
            catalogue: &self.config.catalogue,
            now: self.clock.now(),
        }
    }

    fn parse(&self, permissions: Option<&[String]>) -> anyhow::Result<Permissions> {
        let Some(names) = permissions else { return Ok(Permissions::EVERYTHING) };
        let catalogue = &self.config.catalogue;
        catalogue.parse(names.iter().map(String::as_str)).map_err(|UnknownPermission(name)| {
            let known: Vec<_> = catalogue.names(Permissions::EVERYTHING).collect();
            anyhow::anyhow!("there is no permission `{name}`; there are {}", known.join(", "))
        })
    }

    /// Waits until no replica can still believe what was true before a change.
    async fn settle(&self) -> anyhow::Result<()> {
        let settled = self.settler().settle().await;
        settled.context("it is done, but replicas may not have heard of it; they have in ten seconds at the latest")
    }

    fn settler(&self) -> Settler {
        Settler::new(self.store.clone(), self.clock.clone())
    }

    async fn find(&self, account: &str) -> anyhow::Result<Account> {
        let by_id = match AccountId::parse(account) {
            Some(id) => self.store.find_account(id).await?,
            None => None,
        };
        if let Some(account) = by_id {
            return Ok(account);
        }
        // It is repeated below, and a key that was pasted in its place must not be.
        if secret::appears_in(account.as_bytes()) {
            bail!("ACCOUNT must be an account's id or name, and this is a key");
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

fn no_key(key: KeyId) -> String {
    format!("there is no key {key}, or it is revoked already")
}

/// The operator may do everything.
fn no_edit() -> Edit {
    let (name, permissions, expiry, enabled) = (None, None, None, None);
    let (by, origin) = (Permissions::EVERYTHING, Origin::operator());
    Edit { name, permissions, expiry, enabled, retire_now: false, by, origin }
}
