//! Changes to a key that stays.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::events::record;
use super::listing::{FIND, gather};
use super::{Db, Result, Store, transaction};
use crate::event::What;
use crate::id::{AccountId, KeyId};
use crate::key::{self, ApiKey, Edit};
use crate::permission::Permissions;

/// Whoever edits a key waits for whoever edits it, so that each judges what the one before it left. SQLite's one writer needs
/// no lock. The key is locked first and then its secrets by their prefixes, as whatever else locks several of them does: so none of
/// these wait for each other in a circle.
pub(super) const LOCK_ON_POSTGRES: &str = "
    with key as (
        select id from api_keys where account_id = $1 and id = $2 for no key update
    )
    select 1 from key_secrets s join key k on k.id = s.key_id order by s.prefix for no key update of s";

const UPDATE: &str = "
    update api_keys set name = $3, permissions = $4, expires_at = $5, disabled_at = $6,
        told_days = case when expires_at = $5 then told_days end
    where account_id = $1 and id = $2";

const RETIRE: &str = "update key_secrets set retires_at = $3 where key_id = $1 and retires_at > $2";

/// What came of an edit.
#[derive(Debug)]
pub enum Edited {
    Done(Box<ApiKey>),
    /// The account has no such key, or no more.
    NotFound,
    /// Whoever asks would need these permissions.
    Needs(Permissions),
}

impl Store {
    /// Changes one of an account's keys, if whoever asks may.
    pub async fn edit_key(&self, account_id: AccountId, id: KeyId, edit: Edit, now: DateTime<Utc>) -> Result<Edited> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => transaction!(pool, "begin", tx => {
                sqlx::query(LOCK_ON_POSTGRES).bind(account_id.0).bind(id.0).execute(&mut *tx).await?;
                edit!(store, account_id, id, edit, now, tx)
            }),
            Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => {
                edit!(store, account_id, id, edit, now, tx)
            }),
        })
        .await
    }
}

macro_rules! edit {
    ($store:ident, $account_id:ident, $id:ident, $edit:ident, $now:ident, $tx:ident) => {{
        let rows = sqlx::query(FIND).bind($account_id.0).bind($id.0).fetch_all(&mut *$tx).await?;
        match gather!($store, rows)?.pop() {
            None => Edited::NotFound,
            Some(mut key) => match key.edit(&$edit, $now) {
                Err(needed) => Edited::Needs(needed),
                Ok(()) => {
                    sqlx::query(UPDATE)
                        .bind($account_id.0)
                        .bind($id.0)
                        .bind(key.name.as_str())
                        .bind($store.catalogue.to_stored(key.permissions))
                        .bind(key.expires_at)
                        .bind(key.disabled_at)
                        .execute(&mut *$tx)
                        .await?;
                    let members = $edit.given();
                    if !members.is_empty() {
                        record!($tx, $account_id, $id.0, What::Updated, &members, $now, $edit.origin);
                    }
                    if $edit.retire_now {
                        record!($tx, $account_id, $id.0, What::Retired, None::<&str>, $now, $edit.origin);
                        sqlx::query(RETIRE).bind($id.0).bind($now).bind(key::at_once()).execute(&mut *$tx).await?;
                    }
                    Edited::Done(Box::new(key))
                }
            },
        }
    }};
}
use edit;
