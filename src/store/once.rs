//! What is carried out once, however often it is asked for.

use chrono::{DateTime, TimeDelta, Utc};

use super::{REMOVED_AT_ONCE, Result, Store, on};
use crate::id::AccountId;

/// How long an answer is kept for whoever asks again.
const KEPT_FOR: TimeDelta = TimeDelta::hours(1);

/// Whether another replica is at it: nobody waits for a lock that goes with its transaction.
pub(super) const LOCK_ON_POSTGRES: &str = "select pg_try_advisory_xact_lock($1)";

pub(super) const FIND: &str = "
    select request_hash, sealed from idempotent_answers where account_id = $1 and key_hash = $2 and created_at > $3";

pub(super) const KEEP: &str = "
    insert into idempotent_answers (account_id, key_hash, request_hash, sealed, created_at)
    values ($1, $2, $3, $4, $5)
    on conflict (account_id, key_hash) do update
    set request_hash = excluded.request_hash, sealed = excluded.sealed, created_at = excluded.created_at";

const SWEEP: &str = "
    delete from idempotent_answers where created_at <= $1 and (account_id, key_hash) in (
        select account_id, key_hash from idempotent_answers where created_at <= $1 limit $2)";

/// A request that its client may send again.
#[derive(Clone, Copy, Debug)]
pub struct Once {
    pub account_id: AccountId,
    /// Of what the client calls it.
    pub key_hash: [u8; 32],
    /// Of what it asks for.
    pub request_hash: [u8; 32],
    pub now: DateTime<Utc>,
}

impl Once {
    pub(super) fn oldest(&self) -> DateTime<Utc> {
        self.now - KEPT_FOR
    }

    /// Names the lock of this request.
    pub(super) fn lock(&self) -> i64 {
        let (account, key) = (self.account_id.0.as_u128().to_be_bytes(), self.key_hash);
        let part = |at: usize| i64::from_be_bytes(std::array::from_fn(|n| key[at + n] ^ account[8 + n]));
        part(0)
    }
}

/// A request with what makes the sealed answer that is kept.
#[derive(Clone)]
pub struct Kept<F> {
    pub once: Once,
    pub seal: F,
}

/// What came of a request that is carried out once.
#[derive(Debug)]
pub enum Carried<T> {
    /// It was carried out now.
    Out(T),
    /// It was carried out before; the sealed answer.
    Before(Vec<u8>),
    /// Another request was carried out under this name.
    OutOtherwise,
    /// It is being carried out.
    Still,
}

impl Store {
    /// Removes some of the answers that nobody may ask for any more; how many.
    pub async fn sweep_answers(&self, now: DateTime<Utc>) -> Result<u64> {
        on!(self, write, connection => {
            let done = sqlx::query(SWEEP).bind(now - KEPT_FOR).bind(i64::from(REMOVED_AT_ONCE)).execute(connection).await?;
            Ok(done.rows_affected())
        })
    }
}

/// Carries `$work` out in a transaction, unless it was before; `$sealed` makes the answer of its outcome that is kept with it, or
/// `None` if there is none to keep.
macro_rules! once {
    ($once:ident, $tx:ident, $work:expr, $sealed:expr) => {{
        let row = sqlx::query($crate::store::once::FIND)
            .bind($once.account_id.0)
            .bind($once.key_hash.as_slice())
            .bind($once.oldest())
            .fetch_optional(&mut *$tx)
            .await?;
        match row {
            Some(row) if row.try_get::<&[u8], _>(0)? == $once.request_hash => Carried::Before(row.try_get(1)?),
            Some(_) => Carried::OutOtherwise,
            None => {
                let outcome = $work;
                if let Some(sealed) = $sealed(&outcome) {
                    sqlx::query($crate::store::once::KEEP)
                        .bind($once.account_id.0)
                        .bind($once.key_hash.as_slice())
                        .bind($once.request_hash.as_slice())
                        .bind(sealed)
                        .bind($once.now)
                        .execute(&mut *$tx)
                        .await?;
                }
                Carried::Out(outcome)
            }
        }
    }};
}
pub(super) use once;

/// Whether nobody else is at it, on PostgreSQL. SQLite's one writer waits for whoever is.
macro_rules! is_ours {
    ($once:ident, $tx:ident) => {
        sqlx::query_scalar::<_, bool>($crate::store::once::LOCK_ON_POSTGRES)
            .bind($once.lock())
            .fetch_one(&mut *$tx)
            .await?
    };
}
pub(super) use is_ours;
