//! Queries on accounts.

use chrono::{DateTime, Utc};
use rand::TryRng;
use rand::rngs::SysError;
use sqlx::Row;
use uuid::Uuid;

use super::events::record;
use super::{Db, Result, Store, StoreError, keys, on, transaction};
use crate::account::{Account, Plan};
use crate::event::{Origin, What};
use crate::id::AccountId;
use crate::key::NewKey;
use crate::secret::Secret;

/// With `$5` true, only the very first account of a database is made.
const CREATE: &str = "
    insert into accounts (id, name, plan, created_at)
    select $1, $2, $3, $4 where not $5 or not exists (select 1 from accounts)";

const LIST: &str = "
    select id, name, plan, live_keys, created_at from accounts order by created_at, id";

const FIND: &str = "
    select id, name, plan, live_keys, created_at from accounts where id = $1";

const FIND_BY_NAME: &str = "
    select id, name, plan, live_keys, created_at from accounts where name = $1 order by created_at, id limit 2";

const SET_PLAN: &str = "update accounts set plan = $2 where id = $1";

/// An account with its first key, whose secret is shown now and never again.
#[derive(Debug)]
pub struct CreatedAccount {
    pub account: Account,
    pub key: NewKey,
    pub secret: Secret,
}

impl Store {
    /// Makes an account and its first key, both or neither.
    pub async fn create_account<R>(&self, account: Account, key: NewKey, rng: &mut R) -> Result<CreatedAccount>
    where
        R: TryRng<Error = SysError>,
    {
        self.insert_account(account, key, false, rng)
            .await?
            .ok_or_else(|| StoreError::Unexpected(anyhow::anyhow!("a new account had no room for its first key")))
    }

    /// The same, unless the database has an account already: then `None`.
    pub async fn create_first_account<R>(
        &self,
        account: Account,
        key: NewKey,
        rng: &mut R,
    ) -> Result<Option<CreatedAccount>>
    where
        R: TryRng<Error = SysError>,
    {
        self.insert_account(account, key, true, rng).await
    }

    async fn insert_account<R>(
        &self,
        account: Account,
        key: NewKey,
        only_first: bool,
        rng: &mut R,
    ) -> Result<Option<CreatedAccount>>
    where
        R: TryRng<Error = SysError>,
    {
        let secret = Secret::generate(rng)?;
        let row = self.new_row(&key, &secret, 1);
        let created = self.to_its_end(async move |store| {
            let made = match &store.db {
                Db::Postgres(pool) => transaction!(pool, "begin", tx => {
                    insert!(account, only_first, tx) && row.insert_into_postgres(tx).await?
                }),
                Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => {
                    insert!(account, only_first, tx) && row.insert_into_sqlite(tx).await?
                }),
            }?;
            Ok(made.then_some(account))
        });
        Ok(created.await?.map(|account| CreatedAccount { account, key, secret }))
    }

    /// Every account, the oldest first.
    pub async fn list_accounts(&self) -> Result<Vec<Account>> {
        on!(self, read, connection => {
            sqlx::query(LIST).fetch_all(connection).await?.iter().map(|row| account!(row)).collect()
        })
    }

    pub async fn find_account(&self, id: AccountId) -> Result<Option<Account>> {
        on!(self, read, connection => {
            sqlx::query(FIND).bind(id.0).fetch_optional(&mut *connection).await?.map(|row| account!(row)).transpose()
        })
    }

    /// The accounts of this name, two at the most: names need not be unique.
    pub async fn find_accounts_named(&self, name: &str) -> Result<Vec<Account>> {
        on!(self, read, connection => {
            sqlx::query(FIND_BY_NAME).bind(name).fetch_all(&mut *connection).await?.iter().map(|row| account!(row)).collect()
        })
    }

    /// Changes what an account has subscribed to; `false` if there is no such account.
    pub async fn set_plan(&self, id: AccountId, plan: Plan, now: DateTime<Utc>, origin: Origin) -> Result<bool> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => transaction!(pool, "begin", tx => set_plan!(id, plan, now, origin, tx)),
            Db::Sqlite { write: pool, .. } => {
                transaction!(pool, "begin immediate", tx => set_plan!(id, plan, now, origin, tx))
            }
        })
        .await
    }
}

macro_rules! set_plan {
    ($id:ident, $plan:ident, $now:ident, $origin:ident, $tx:ident) => {{
        let done = sqlx::query(SET_PLAN).bind($id.0).bind($plan.as_str()).execute(&mut *$tx).await?;
        let is_there = done.rows_affected() == 1;
        if is_there {
            record!($tx, $id, None::<Uuid>, What::PlanChanged, $plan.as_str(), $now, $origin);
        }
        is_there
    }};
}
use set_plan;

macro_rules! insert {
    ($account:ident, $only_first:ident, $tx:ident) => {
        sqlx::query(CREATE)
            .bind($account.id.0)
            .bind($account.name.as_str())
            .bind($account.plan.as_str())
            .bind($account.created_at)
            .bind($only_first)
            .execute(&mut *$tx)
            .await?
            .rows_affected()
            == 1
    };
}
use insert;

macro_rules! account {
    ($row:ident) => {{
        let live_keys: i32 = $row.try_get(3)?;
        Ok(Account {
            id: AccountId($row.try_get::<Uuid, _>(0)?),
            name: $row.try_get(1)?,
            plan: keys::decode_plan($row.try_get(2)?)?,
            live_keys: live_keys.unsigned_abs(),
            created_at: $row.try_get(4)?,
        })
    }};
}
use account;
