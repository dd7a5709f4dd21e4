//! The change feed, and the registry of replicas that follow it.
//!
//! 1. Triggers write down which cached keys a statement makes untrue; when its transaction commits, all of it gets one number. Numbers
//!    are in the order of commits (`migrations/postgres/0010_changes_by_commit.sql` says how).
//! 2. A replica asks for what came after the last change that it has applied, by that change's number and random id. A change that
//!    is not there belongs to another history (failover, restore): then nothing that was read before can be trusted.
//! 3. It appends how far it is to its progress, which those who change something wait for.
//!
//! No row is updated by every change: dead versions of one would be in the way of every look-up as long as a snapshot is open.

use sqlx::Row;
use sqlx::postgres::{PgListener, PgPoolOptions};
use uuid::Uuid;

use super::{Db, Result, Store, is_writable_on_postgres, keys, must_be_writable, on};
use crate::id::AccountId;
use crate::secret::Prefix;

/// A replica that is further behind forgets everything instead of reading what it missed.
const KEPT_CHANGES: i64 = 10_000;
/// Rows of old changes that are removed by one statement, and statements in one round.
const TRIMMED_AT_ONCE: i64 = 5_000;
const TRIMS_A_ROUND: u32 = 20;

/// In one snapshot: the last change, whether the change `$1` with the id `$2` is known, whether the replica `$3` is registered,
/// whether replicas of the version before are, whether the server may be written, and what came after `$1`.
macro_rules! follow {
    ($($is_writable:tt)+) => {
        concat!(
            "
    select l.n, l.id,
           exists (select 1 from change_feed where n = $1 and id = $2),
           exists (select 1 from replicas where id = $3),
           exists (select 1 from replicas where beats is null), ",
            $($is_writable)+,
            ", c.n, c.prefix, c.account_id
    from (select n, id from change_feed order by n desc limit 1) l
    left join (
        select f.n, c.prefix, c.account_id
        from change_feed f join changed c on c.change_id = f.id
        where f.n > $1 and (c.mark is null or c.mark <> 'transaction')
        order by f.n
        limit $4
    ) c on true
    order by c.n"
        )
    };
}

const FOLLOW: &str = follow!("true");
const FOLLOW_ON_POSTGRES: &str = follow!(is_writable_on_postgres!());

const FORGET_PROGRESS: &str = "delete from replica_progress where replica_id = $1";

/// Nothing is applied yet, whatever was applied under this id in another history.
const REGISTER: &str = "
    insert into replicas (id, applied, lease_ms, renewed_ms, beats)
    select $1, -1, $2, ms, 0 from database_clock
    where true
    on conflict (id) do update
    set applied = -1, lease_ms = excluded.lease_ms, renewed_ms = excluded.renewed_ms, beats = 0";

const RENEW: &str = "
    update replicas set beats = coalesce(beats, 0) + 1, renewed_ms = (select ms from database_clock) where id = $1";

/// Only a change of this history counts: a report that was sent to a server which has failed since may arrive at another one.
macro_rules! report {
    () => {
        "insert into replica_progress (replica_id, n)
         select $1, n from change_feed
         where n = $2 and id = $3 and exists (select 1 from replicas where id = $1)
         on conflict do nothing"
    };
}

const REPORT: &str = report!();

/// The same, without waiting for the disk: what a crash takes back makes others wait longer, and nothing worse. Whoever changes
/// something waits for this.
const REPORT_ON_POSTGRES: &str =
    concat!("with soon as materialized (select set_config('synchronous_commit', 'off', true)) ", report!());

/// What replicas of the version before look at.
const REPORT_AS_BEFORE: &str = "
    update replicas set applied = $2
    where id = $1 and exists (select 1 from change_feed where n = $2 and id = $3)";

const TRIM_PROGRESS: &str = "delete from replica_progress where replica_id = $1 and n < $2";

const DEREGISTER: &str = "delete from replicas where id = $1";

const HEARTBEATS: &str = "select id, beats, renewed_ms from replicas";

/// Unless it has shown a sign of life since.
const REMOVE_SILENT: &str = "delete from replicas where id = $1 and coalesce(beats, -1) = $2 and renewed_ms = $3";

const OLDEST_KEPT: &str = "select n - $1 from change_feed order by n desc limit 1";

const TRIM_ON_POSTGRES: &str = "
    delete from changed where ctid = any (array(
        select c.ctid from change_feed f join changed c on c.change_id = f.id where f.n <= $1 limit $2))";

const TRIM_ON_SQLITE: &str = "
    delete from changed where rowid in (
        select c.rowid from change_feed f join changed c on c.change_id = f.id where f.n <= $1 limit $2)";

const TRIM_NUMBERS: &str = "delete from change_feed where n <= $1";

const PROGRESS: &str = "
    select l.n, r.lease_ms,
           coalesce((select p.n from replica_progress p where p.replica_id = r.id order by p.n desc limit 1), r.applied)
    from (select n from change_feed order by n desc limit 1) l
    left join replicas r on true";

/// What a change makes untrue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Secret(Prefix),
    /// Every secret of an account.
    Account(AccountId),
}

/// A place in the feed: a change's number, and the random id that tells it from the same number in another history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedPosition {
    pub n: i64,
    pub id: Uuid,
}

/// The feed after some position.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The last change.
    pub latest: FeedPosition,
    /// Whether `changes` is all that came after the position, and the position is one of this history.
    pub is_complete: bool,
    /// Whether the replica that asks is registered.
    pub is_registered: bool,
    /// Whether replicas of the version before are.
    pub has_earlier_replicas: bool,
    /// In the order of their numbers.
    pub changes: Vec<(i64, Subject)>,
}

/// How far the feed is, and how far each registered replica has followed it.
#[derive(Clone, Debug)]
pub struct Followers {
    pub latest: i64,
    /// The last change each has applied, and how long its lease is, in milliseconds.
    pub replicas: Vec<(i64, u64)>,
}

/// What changes with each sign of life of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    beats: i64,
    renewed_ms: i64,
}

impl Store {
    /// The changes after `applied`; none of them, and an incomplete feed, for a replica that has applied nothing yet.
    ///
    /// # Errors
    /// Also if the server may only be read: a former primary hears of no changes any more, and would say that there are none.
    pub async fn follow(&self, applied: Option<FeedPosition>, replica: Uuid) -> Result<Feed> {
        let applied = applied.unwrap_or(FeedPosition { n: i64::MAX, id: Uuid::nil() });
        let follow = if self.is_postgres() { FOLLOW_ON_POSTGRES } else { FOLLOW };
        on!(self, read, connection => {
            let query = sqlx::query(follow).bind(applied.n).bind(applied.id).bind(replica).bind(KEPT_CHANGES + 1);
            let rows = query.fetch_all(&mut *connection).await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            must_be_writable(first.try_get(5)?)?;
            let latest = FeedPosition { n: first.try_get(0)?, id: first.try_get(1)? };
            let is_whole = i64::try_from(rows.len()).is_ok_and(|rows| rows <= KEPT_CHANGES);
            let mut is_complete = is_whole && first.try_get(2)?;
            let (is_registered, has_earlier_replicas) = (first.try_get(3)?, first.try_get(4)?);
            let mut changes = Vec::with_capacity(rows.len());
            for row in &rows {
                let Some(n) = row.try_get::<Option<i64>, _>(6)? else { continue };
                match (row.try_get::<Option<&str>, _>(7)?, row.try_get::<Option<Uuid>, _>(8)?) {
                    (Some(prefix), _) => changes.push((n, Subject::Secret(keys::decode_prefix(prefix)?))),
                    (None, Some(account)) => changes.push((n, Subject::Account(AccountId(account)))),
                    // A table was emptied.
                    (None, None) => is_complete = false,
                }
            }
            Ok(Feed { latest, is_complete, is_registered, has_earlier_replicas, changes })
        })
    }

    /// Registers a replica before its first lease, as one that has applied nothing yet.
    pub async fn register_replica(&self, replica: Uuid, lease_ms: i64) -> Result<()> {
        on!(self, write, connection => {
            sqlx::query(FORGET_PROGRESS).bind(replica).execute(&mut *connection).await?;
            sqlx::query(REGISTER).bind(replica).bind(lease_ms).execute(connection).await.map(drop)
        })
    }

    /// A replica's heartbeat. `false` if it is not registered any more.
    pub async fn renew_replica(&self, replica: Uuid, applied: i64) -> Result<bool> {
        on!(self, write, connection => {
            sqlx::query(TRIM_PROGRESS).bind(replica).bind(applied).execute(&mut *connection).await?;
            Ok(sqlx::query(RENEW).bind(replica).execute(connection).await?.rows_affected() == 1)
        })
    }

    /// Says how far a replica has followed, also to replicas of the version before if there are any.
    pub async fn report_progress(&self, replica: Uuid, applied: FeedPosition, as_before: bool) -> Result<()> {
        let report = if self.is_postgres() { REPORT_ON_POSTGRES } else { REPORT };
        on!(self, write, connection => {
            if as_before {
                let query = sqlx::query(REPORT_AS_BEFORE).bind(replica).bind(applied.n).bind(applied.id);
                query.execute(&mut *connection).await?;
            }
            sqlx::query(report).bind(replica).bind(applied.n).bind(applied.id).execute(connection).await.map(drop)
        })
    }

    /// Takes a replica out of the registry: its progress is waited for no longer.
    pub async fn deregister_replica(&self, replica: Uuid) -> Result<()> {
        on!(self, write, connection => {
            sqlx::query(DEREGISTER).bind(replica).execute(&mut *connection).await?;
            sqlx::query(FORGET_PROGRESS).bind(replica).execute(connection).await.map(drop)
        })
    }

    /// The last heartbeat of each registered replica.
    pub async fn heartbeats(&self) -> Result<Vec<(Uuid, Heartbeat)>> {
        on!(self, read, connection => {
            let rows = sqlx::query(HEARTBEATS).fetch_all(&mut *connection).await?;
            rows.iter().map(|row| {
                let beats = row.try_get::<Option<i64>, _>(1)?.unwrap_or(-1);
                Ok((row.try_get(0)?, Heartbeat { beats, renewed_ms: row.try_get(2)? }))
            }).collect()
        })
    }

    /// Takes a replica out of the registry that has given no sign of life since `heartbeat`.
    pub async fn remove_silent_replica(&self, replica: Uuid, heartbeat: Heartbeat) -> Result<()> {
        on!(self, write, connection => {
            let query = sqlx::query(REMOVE_SILENT).bind(replica).bind(heartbeat.beats).bind(heartbeat.renewed_ms);
            if query.execute(&mut *connection).await?.rows_affected() == 1 {
                sqlx::query(FORGET_PROGRESS).bind(replica).execute(connection).await?;
            }
            Ok(())
        })
    }

    /// Drops changes that no replica will ask for. The last one always stays.
    pub async fn trim_changes(&self) -> Result<()> {
        let trim = if self.is_postgres() { TRIM_ON_POSTGRES } else { TRIM_ON_SQLITE };
        on!(self, write, connection => {
            let until: i64 = sqlx::query_scalar(OLDEST_KEPT).bind(KEPT_CHANGES).fetch_one(&mut *connection).await?;
            for _ in 0..TRIMS_A_ROUND {
                let done = sqlx::query(trim).bind(until).bind(TRIMMED_AT_ONCE).execute(&mut *connection).await?;
                if done.rows_affected() == 0 {
                    sqlx::query(TRIM_NUMBERS).bind(until).execute(&mut *connection).await?;
                    break;
                }
            }
            Ok(())
        })
    }

    pub async fn followers(&self) -> Result<Followers> {
        on!(self, read, connection => {
            let rows = sqlx::query(PROGRESS).fetch_all(&mut *connection).await?;
            let latest = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
            let mut replicas = Vec::new();
            for row in &rows {
                if let (Some(lease_ms), Some(applied)) = (row.try_get::<Option<i64>, _>(1)?, row.try_get(2)?) {
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
