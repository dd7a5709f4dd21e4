//! The feed of changes to keys, and the list of replicas that follow it.

use sqlx::Row;
use sqlx::postgres::{PgListener, PgPoolOptions};
use uuid::Uuid;

use super::{Db, Result, Store, is_writable_on_postgres, keys, must_be_writable, on};
use crate::id::AccountId;
use crate::secret::Prefix;

/// A replica that is further behind forgets everything instead of reading what it missed.
const KEPT_CHANGES: i64 = 10_000;
/// A replica that has not renewed its row for so long, by the database's clock, is taken off the list.
const REMOVED_AFTER_MS: i64 = 60_000;

/// In one snapshot: how far the feed is, whether the replica `$2` is on the list, whether the server may be written, and what
/// came after `$1`.
macro_rules! follow {
    ($($is_writable:tt)+) => {
        concat!(
            "
    select c.n, coalesce((select min(n) from changes), 0), exists (select 1 from replicas where id = $2), ",
            $($is_writable)+,
            ", f.n, f.prefix, f.account_id
    from change_counter c left join changes f on f.n > $1
    order by f.n
    limit $3"
        )
    };
}

const FOLLOW: &str = follow!("true");
const FOLLOW_ON_POSTGRES: &str = follow!(is_writable_on_postgres!());

const REGISTER: &str = "
    insert into replicas (id, applied, lease_ms, renewed_ms)
    select $1, $2, $3, ms from database_clock
    where true
    on conflict (id) do update set applied = excluded.applied, lease_ms = excluded.lease_ms, renewed_ms = excluded.renewed_ms";

const RENEW: &str = "update replicas set applied = $2, renewed_ms = (select ms from database_clock) where id = $1";

/// The same, without waiting for the disk: what a crash takes back makes others wait longer, and nothing worse. Whoever changes
/// something waits for this.
const RENEW_ON_POSTGRES: &str = "
    with soon as (select set_config('synchronous_commit', 'off', true))
    update replicas set applied = $2, renewed_ms = (select ms from database_clock) from soon where id = $1";

const DEREGISTER: &str = "delete from replicas where id = $1";

const REMOVE_SILENT: &str = "delete from replicas where renewed_ms < (select ms from database_clock) - $1";

const TRIM: &str = "delete from changes where n <= (select n from change_counter) - $1";

const STANDING: &str = "
    select c.n, r.applied, r.lease_ms from change_counter c left join replicas r on true";

/// What a change makes untrue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Secret(Prefix),
    /// Every secret of an account.
    Account(AccountId),
}

/// The feed after some point.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The number of the last change.
    pub latest: i64,
    /// Whether nothing was missed: the oldest change that is still kept is the next one or an older one.
    pub is_complete: bool,
    /// Whether the replica that asks is on the list.
    pub is_registered: bool,
    /// In the order of their numbers.
    pub changes: Vec<(i64, Subject)>,
}

/// How far the feed is, and how far each replica on the list has followed it.
#[derive(Clone, Debug)]
pub struct Followers {
    pub latest: i64,
    /// The last change each has applied, and how long its lease is, in milliseconds.
    pub replicas: Vec<(i64, u64)>,
}

impl Store {
    /// The changes after number `applied`; none of them, and an incomplete feed, for a replica that has applied nothing yet.
    ///
    /// # Errors
    /// Also if the server may only be read: a former primary hears of no changes any more, and would say that there are none.
    pub async fn follow(&self, applied: Option<i64>, replica: Uuid) -> Result<Feed> {
        let applied = applied.unwrap_or(i64::MAX);
        let follow = if self.is_postgres() { FOLLOW_ON_POSTGRES } else { FOLLOW };
        on!(self, read, connection => {
            let query = sqlx::query(follow).bind(applied).bind(replica).bind(KEPT_CHANGES + 1);
            let rows = query.fetch_all(&mut *connection).await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            must_be_writable(first.try_get(3)?)?;
            let (latest, oldest): (i64, i64) = (first.try_get(0)?, first.try_get(1)?);
            // A database restored from a backup may even have gone back.
            let is_whole = i64::try_from(rows.len()).is_ok_and(|rows| rows <= KEPT_CHANGES);
            let is_complete = latest == applied || (latest > applied && is_whole && (1..=applied + 1).contains(&oldest));
            let is_registered = first.try_get(2)?;
            let mut changes = Vec::new();
            for row in &rows {
                let Some(n) = row.try_get::<Option<i64>, _>(4)? else { continue };
                let subject = match row.try_get::<Option<&str>, _>(5)? {
                    Some(prefix) => Subject::Secret(keys::decode_prefix(prefix)?),
                    None => Subject::Account(AccountId(row.try_get(6)?)),
                };
                changes.push((n, subject));
            }
            Ok(Feed { latest, is_complete, is_registered, changes })
        })
    }

    /// Puts a replica on the list, before its first lease.
    pub async fn register_replica(&self, replica: Uuid, applied: i64, lease_ms: i64) -> Result<()> {
        on!(self, write, connection => {
            sqlx::query(REGISTER).bind(replica).bind(applied).bind(lease_ms).execute(connection).await.map(drop)
        })
    }

    /// Says how far a replica has followed. `false` if it is not on the list any more.
    pub async fn renew_replica(&self, replica: Uuid, applied: i64) -> Result<bool> {
        let renew = if matches!(self.db, Db::Postgres(_)) { RENEW_ON_POSTGRES } else { RENEW };
        on!(self, write, connection => {
            let done = sqlx::query(renew).bind(replica).bind(applied).execute(connection).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// Takes a replica off the list: nobody waits for it any more.
    pub async fn deregister_replica(&self, replica: Uuid) -> Result<()> {
        on!(self, write, connection => {
            sqlx::query(DEREGISTER).bind(replica).execute(connection).await.map(drop)
        })
    }

    /// Takes replicas off the list that have long been silent, and drops changes that nobody will ask for.
    pub async fn tidy_changes(&self) -> Result<()> {
        on!(self, write, connection => {
            sqlx::query(REMOVE_SILENT).bind(REMOVED_AFTER_MS).execute(&mut *connection).await?;
            sqlx::query(TRIM).bind(KEPT_CHANGES).execute(&mut *connection).await.map(drop)
        })
    }

    pub async fn followers(&self) -> Result<Followers> {
        on!(self, read, connection => {
            let rows = sqlx::query(STANDING).fetch_all(&mut *connection).await?;
            let latest = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
            let mut replicas = Vec::new();
            for row in &rows {
                if let (Some(applied), Some(lease_ms)) = (row.try_get(1)?, row.try_get::<Option<i64>, _>(2)?) {
                    replicas.push((applied, lease_ms.unsigned_abs()));
                }
            }
            Ok(Followers { latest, replicas })
        })
    }

    /// Hears of changes at once, where the database can tell; `None` where it cannot. A lost message costs nothing but time.
    pub async fn listen(&self) -> Option<Result<Listener>> {
        let Db::Postgres(pool) = &self.db else { return None };
        let own = PgPoolOptions::new().max_connections(1).acquire_timeout(super::BOUND);
        let own = own.connect_lazy_with(pool.options().clone());
        Some(
            async {
                let mut listener = PgListener::connect_with(&own).await?;
                listener.listen("changes").await?;
                Ok(Listener(listener))
            }
            .await,
        )
    }
}

/// A connection on which the database tells of changes.
pub struct Listener(PgListener);

impl Listener {
    /// Waits for the next word of a change, or of a connection that was lost meanwhile.
    pub async fn heard(&mut self) -> Result<()> {
        Ok(self.0.try_recv().await.map(drop)?)
    }
}
