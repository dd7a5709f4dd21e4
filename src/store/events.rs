//! The record of changes. Rows are written with the changes they record; here they are read, and in the end removed.

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use super::{Db, Result, Store, on, transaction};
use crate::event::Event;
use crate::id::{AccountId, KeyId};

/// Events removed at once; the rest has time until the next round.
const REMOVED_AT_ONCE: i64 = 1_000;

/// For changes that are several statements anyway.
pub(super) const ADD: &str = "
    insert into events (account_id, key_id, event, detail, at, by_key, address, request_id)
    values ($1, $2, $3, $4, $5, $6, $7, $8)";

const LIST: &str = "
    select id, account_id, key_id, event, detail, at, by_key, address, request_id
    from events
    where ($1 is null or account_id = $1) and ($2 is null or id < $2)
    order by id desc
    limit $3";

const ALLOW_REMOVAL: &str = "update event_retention set before_at = $1 where before_at < $1";

const REMOVE: &str = "
    delete from events where id in (
        select id from events where at < (select before_at from event_retention) order by at limit $1)";

impl Store {
    /// The last events of an account, or of all; the newest first, and only those before an event that is known already.
    pub async fn list_events(&self, account: Option<AccountId>, before: Option<i64>, limit: u32) -> Result<Vec<Event>> {
        on!(self, read, connection => {
            let rows = sqlx::query(LIST)
                .bind(account.map(|account| account.0))
                .bind(before)
                .bind(i64::from(limit))
                .fetch_all(&mut *connection)
                .await?;
            rows.iter().map(|row| Ok(Event {
                id: row.try_get(0)?,
                account_id: AccountId(row.try_get(1)?),
                key_id: row.try_get::<Option<Uuid>, _>(2)?.map(KeyId),
                what: row.try_get(3)?,
                detail: row.try_get(4)?,
                at: row.try_get(5)?,
                by_key: row.try_get::<Option<Uuid>, _>(6)?.map(KeyId),
                address: row.try_get(7)?,
                request_id: row.try_get(8)?,
            })).collect()
        })
    }

    /// Removes events from before this instant, so many at once; how many.
    pub async fn remove_events(&self, before: DateTime<Utc>) -> Result<u64> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => transaction!(pool, "begin", tx => remove!(before, tx)),
            Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => remove!(before, tx)),
        })
        .await
    }
}

macro_rules! remove {
    ($before:ident, $tx:ident) => {{
        sqlx::query(ALLOW_REMOVAL).bind($before).execute(&mut *$tx).await?;
        sqlx::query(REMOVE).bind(REMOVED_AT_ONCE).execute(&mut *$tx).await?.rows_affected()
    }};
}
use remove;

/// Records a change in the transaction that makes it.
macro_rules! record {
    ($tx:ident, $account_id:expr, $key_id:expr, $what:expr, $detail:expr, $at:expr, $origin:expr) => {
        sqlx::query($crate::store::events::ADD)
            .bind($account_id.0)
            .bind($key_id)
            .bind($what.as_str())
            .bind($detail)
            .bind($at)
            .bind($origin.key_id.map(|key| key.0))
            .bind($origin.address.map(|address| address.to_string()))
            .bind($origin.request_id.as_deref())
            .execute(&mut *$tx)
            .await?
    };
}
pub(super) use record;
