//! How many requests keys have made, by the hour for two days and by the day for longer.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Db, Result, Store, on, transaction};
use crate::id::{AccountId, KeyId};
use crate::secret::Prefix;

/// Hours for which requests are known by the hour.
pub const HOURS_KEPT: i64 = 48;
/// Days for which they are known by the day: a year, and time to look at it.
const DAYS_KEPT: i64 = 400;
/// Rows removed at once; the rest has time until the next round.
const REMOVED_AT_ONCE: i64 = 1_000;
const HOURS_A_DAY: i64 = 24;

/// Counts of one hour and key come as one row at the most, and in the order of keys and hours, so that two replicas cannot wait
/// for each other.
const COUNT_ON_POSTGRES: &str = "
    with counted as (
        select s.key_id, c.hour, sum(c.allowed)::bigint as allowed, sum(c.refused)::bigint as refused
        from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) as c (prefix, hour, allowed, refused)
        join key_secrets s on s.prefix = c.prefix
        group by s.key_id, c.hour
    ), by_hour as (
        insert into usage_by_hour as u (key_id, hour, allowed, refused)
        select key_id, hour, allowed, refused from counted order by key_id, hour
        on conflict (key_id, hour) do update
        set allowed = u.allowed + excluded.allowed, refused = u.refused + excluded.refused
    )
    insert into usage_by_day as u (key_id, day, allowed, refused)
    select key_id, hour / 24, sum(allowed)::bigint, sum(refused)::bigint from counted group by key_id, hour / 24
    order by key_id, hour / 24
    on conflict (key_id, day) do update
    set allowed = u.allowed + excluded.allowed, refused = u.refused + excluded.refused";

const COUNT_ON_SQLITE: [&str; 2] = [
    "insert into usage_by_hour (key_id, hour, allowed, refused)
     select key_id, $2, $3, $4 from key_secrets where prefix = $1
     on conflict (key_id, hour) do update
     set allowed = allowed + excluded.allowed, refused = refused + excluded.refused",
    "insert into usage_by_day (key_id, day, allowed, refused)
     select key_id, $2 / 24, $3, $4 from key_secrets where prefix = $1
     on conflict (key_id, day) do update
     set allowed = allowed + excluded.allowed, refused = refused + excluded.refused",
];

const BY_DAY: &str = "
    select u.day, u.allowed, u.refused from usage_by_day u join api_keys k on k.id = u.key_id
    where k.account_id = $1 and k.id = $2 and u.day between $3 and $4";

const BY_HOUR: &str = "
    select u.hour, u.allowed, u.refused from usage_by_hour u join api_keys k on k.id = u.key_id
    where k.account_id = $1 and k.id = $2 and u.hour between $3 and $4";

const REMOVE: [&str; 2] = [
    "delete from usage_by_hour where (key_id, hour) in (select key_id, hour from usage_by_hour where hour <= $1 limit $2)",
    "delete from usage_by_day where (key_id, day) in (select key_id, day from usage_by_day where day <= $1 limit $2)",
];

/// Requests of one key in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub allowed: i64,
    /// Beyond a limit of the plan.
    pub refused: i64,
}

/// Requests with one secret in one hour.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub prefix: Prefix,
    /// Since 1970.
    pub hour: i64,
    pub counts: Counts,
}

/// What a key has done, by hours and days since 1970; those without a request are missing.
#[derive(Debug, Default)]
pub struct Usage {
    pub days: BTreeMap<i64, Counts>,
    pub hours: BTreeMap<i64, Counts>,
}

pub fn hour_of(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(3_600)
}

pub fn day_of(at: DateTime<Utc>) -> i64 {
    hour_of(at).div_euclid(HOURS_A_DAY)
}

impl Store {
    /// Adds to what is known already.
    pub async fn count_requests(&self, counted: Vec<Counted>) -> Result<()> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => on!(@write pool, connection => {
                let column = |of: fn(&Counted) -> i64| counted.iter().map(of).collect::<Vec<_>>();
                sqlx::query(COUNT_ON_POSTGRES)
                    .bind(counted.iter().map(|counted| counted.prefix.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(column(|counted| counted.hour))
                    .bind(column(|counted| counted.counts.allowed))
                    .bind(column(|counted| counted.counts.refused))
                    .execute(connection)
                    .await
                    .map(drop)
            }),
            Db::Sqlite { write, .. } => transaction!(write, "begin immediate", tx => {
                for Counted { prefix, hour, counts } in &counted {
                    for sql in COUNT_ON_SQLITE {
                        let query = sqlx::query(sql).bind(prefix.as_str()).bind(hour);
                        query.bind(counts.allowed).bind(counts.refused).execute(&mut *tx).await?;
                    }
                }
            }),
        })
        .await
    }

    /// What one of an account's keys has done in the last `days`, today included, and in the last hours.
    pub async fn usage(&self, account_id: AccountId, id: KeyId, days: i64, now: DateTime<Utc>) -> Result<Usage> {
        let spans = [(BY_DAY, day_of(now), days), (BY_HOUR, hour_of(now), HOURS_KEPT)];
        on!(self, read, connection => {
            let mut found = [BTreeMap::new(), BTreeMap::new()];
            for ((sql, last, length), found) in spans.into_iter().zip(&mut found) {
                let query = sqlx::query(sql).bind(account_id.0).bind(id.0).bind(last - length + 1).bind(last);
                for row in query.fetch_all(&mut *connection).await? {
                    found.insert(row.try_get(0)?, Counts { allowed: row.try_get(1)?, refused: row.try_get(2)? });
                }
            }
            let [days, hours] = found;
            Ok(Usage { days, hours })
        })
    }

    /// Removes counts from so long ago that nobody can ask for them, so many at once.
    pub async fn remove_usage(&self, now: DateTime<Utc>) -> Result<()> {
        let ends = [hour_of(now) - HOURS_KEPT, day_of(now) - DAYS_KEPT];
        on!(self, write, connection => {
            for (sql, end) in REMOVE.into_iter().zip(ends) {
                sqlx::query(sql).bind(end).bind(REMOVED_AT_ONCE).execute(&mut *connection).await?;
            }
            Ok(())
        })
    }
}
