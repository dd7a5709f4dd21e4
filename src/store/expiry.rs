//! Keys near their end, and those long past it.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row;

use super::events::record;
use super::{Db, Result, Store, transaction};
use crate::event::{Origin, What};
use crate::id::{AccountId, KeyId};

/// Days before its end at which a key is warned of.
const WARNED_BEFORE: [i32; 2] = [1, 7];
/// Keys warned of at once; the rest has time until the next round.
const WARNED_AT_ONCE: i64 = 100;

/// The condition stands there twice: of two replicas, the one that comes second looks at each key again.
const WARN: &str = "
    update api_keys set told_days = $3
    where coalesce(told_days, $3 + 1) > $3 and revoked_at is null and id in (
        select id from api_keys
        where revoked_at is null and expires_at > $1 and expires_at <= $2 and coalesce(told_days, $3 + 1) > $3
        order by id limit $4)
    returning id, account_id, expires_at";

/// The condition stands there twice, for a key may be given more time meanwhile. One at a time: every change must lock an account before the counter of changes, which is held until the commit.
const REMOVE: &str = "
    delete from api_keys where (revoked_at < $1 or expires_at < $1) and id in (
        select id from api_keys where revoked_at < $1 or expires_at < $1 order by id limit 1)
    returning id, account_id";

/// A key that expires soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning {
    pub key_id: KeyId,
    pub account_id: AccountId,
    pub expires_at: DateTime<Utc>,
    /// At most so many days before.
    pub days: i32,
}

impl Store {
    /// Notes which keys expire within a day or a week, each once, with an event for their accounts.
    pub async fn warn_of_expiry(&self, now: DateTime<Utc>) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        for days in WARNED_BEFORE {
            let warned = self.to_its_end(async move |store| match &store.db {
                Db::Postgres(pool) => transaction!(pool, "begin", tx => warn_of!(days, now, tx)),
                Db::Sqlite { write: pool, .. } => {
                    transaction!(pool, "begin immediate", tx => warn_of!(days, now, tx))
                }
            });
            warnings.extend(warned.await?);
        }
        Ok(warnings)
    }

    /// Removes one key that was revoked or has expired before this instant; `false` if there is none.
    pub async fn remove_key_from_before(&self, before: DateTime<Utc>, now: DateTime<Utc>) -> Result<bool> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => transaction!(pool, "begin", tx => remove!(before, now, tx)),
            Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => remove!(before, now, tx)),
        })
        .await
    }
}

macro_rules! warn_of {
    ($days:ident, $now:ident, $tx:ident) => {{
        let until = $now + TimeDelta::days($days.into());
        let query = sqlx::query(WARN).bind($now).bind(until).bind($days).bind(WARNED_AT_ONCE);
        let rows = query.fetch_all(&mut *$tx).await?;
        let mut warnings = Vec::new();
        for row in &rows {
            let (key_id, account_id) = (KeyId(row.try_get(0)?), AccountId(row.try_get(1)?));
            let detail = if $days == 1 { "1 day".to_owned() } else { format!("{} days", $days) };
            record!($tx, account_id, key_id.0, What::ExpiresSoon, detail, $now, Origin::operator());
            warnings.push(Warning { key_id, account_id, expires_at: row.try_get(2)?, days: $days });
        }
        warnings
    }};
}
use warn_of;

macro_rules! remove {
    ($before:ident, $now:ident, $tx:ident) => {{
        let row = sqlx::query(REMOVE).bind($before).fetch_optional(&mut *$tx).await?;
        if let Some(row) = &row {
            let (key_id, account_id) = (KeyId(row.try_get(0)?), AccountId(row.try_get(1)?));
            record!($tx, account_id, key_id.0, What::Removed, None::<&str>, $now, Origin::operator());
        }
        row.is_some()
    }};
}
use remove;
