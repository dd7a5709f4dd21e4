//! Queries on keys and their secrets.

use chrono::{DateTime, Utc};
use rand::TryRng;
use rand::rngs::SysError;
use sqlx::Row;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::events::record;
use super::once::{Carried, Kept, Once, is_ours, once};
use super::{Db, Result, Store, StoreError, is_writable_on_postgres, must_be_writable, on, transaction};
use crate::account::Plan;
use crate::event::{Origin, What};
use crate::id::{AccountId, KeyId};
use crate::key::{Credential, NewKey};
use crate::secret::{Prefix, Secret, SecretHash};

/// Two keys in 36⁸ share a prefix by chance; more than this in a row do not.
const MAX_DRAWS: u32 = 8;

/// With one row always, so that a server that may only be read is found out even by a prefix that it does not have.
macro_rules! find_credential {
    ($($is_writable:tt)+) => {
        concat!(
            "
    select s.hash, k.id, k.account_id, a.plan, k.expires_at, k.revoked_at, s.last_used_at,
           c.n, k.permissions, k.disabled_at, s.retires_at, ",
            $($is_writable)+,
            "
    from (select n from change_feed order by n desc limit 1) c
    left join key_secrets s on s.prefix = $1
    left join api_keys k on k.id = s.key_id
    left join accounts a on a.id = k.account_id"
        )
    };
}

const FIND_CREDENTIAL: &str = find_credential!("true");
const FIND_CREDENTIAL_ON_POSTGRES: &str = find_credential!(is_writable_on_postgres!());

const REVOKE: &str = "
    update api_keys set revoked_at = $3
    where account_id = $1 and id = $2 and revoked_at is null";

/// The same with its event, in one statement.
const REVOKE_ON_POSTGRES: &str = "
    with revoked as (
        update api_keys set revoked_at = $3
        where account_id = $1 and id = $2 and revoked_at is null
        returning id
    )
    insert into events (account_id, key_id, event, at, by_key, address, request_id)
    select $1, id, 'revoked', $3, $4, $5, $6 from revoked";

const FIND_OWNER: &str = "select account_id from api_keys where id = $1";

/// One statement, and so one round trip and one commit. The lock makes creations of one account wait for each other: each
/// then judges the count that the one before it left.
const CREATE_ON_POSTGRES: &str = "
    with account as (
        select id from accounts where id = $2 and live_keys < $6 for no key update
    ), key as (
        insert into api_keys (id, account_id, name, created_at, expires_at, permissions)
        select $1, id, $3, $4, $5, $7 from account
        returning id
    ), event as (
        insert into events (account_id, key_id, event, at, by_key, address, request_id)
        select $2, id, 'created', $4, $10, $11, $12 from key
    )
    insert into key_secrets (prefix, key_id, hash, created_at)
    select $8, id, $9, $4 from key";

/// SQLite takes no `insert` inside `with`; its one writer needs no lock on the account.
const CREATE_ON_SQLITE: [&str; 2] = [
    "insert into api_keys (id, account_id, name, created_at, expires_at, permissions)
     select $1, id, $3, $4, $5, $7 from accounts where id = $2 and live_keys < $6",
    "insert into key_secrets (prefix, key_id, hash, created_at) values ($1, $2, $3, $4)",
];

/// Rows are locked in the order of their prefixes, so that two replicas cannot wait for each other.
const TOUCH_ON_POSTGRES: &str = "
    with used as (
        select prefix, at from unnest($1::text[], $2::timestamptz[]) as used (prefix, at)
    ), locked as (
        select s.prefix from key_secrets s join used using (prefix) order by s.prefix for no key update of s
    )
    update key_secrets s set last_used_at = used.at
    from used join locked using (prefix)
    where s.prefix = used.prefix and (s.last_used_at is null or s.last_used_at < used.at)";

const TOUCH_ON_SQLITE: &str = "
    update key_secrets set last_used_at = $2
    where prefix = $1 and (last_used_at is null or last_used_at < $2)";

impl Store {
    /// What is stored of the secret with this prefix, live or not.
    ///
    /// # Errors
    /// Also if the server may only be read: a former primary, or a standby, does not know what was revoked on the primary.
    pub async fn find_credential(&self, prefix: Prefix) -> Result<Option<Credential>> {
        let find = if self.is_postgres() { FIND_CREDENTIAL_ON_POSTGRES } else { FIND_CREDENTIAL };
        on!(self, read, connection => {
            let row = sqlx::query(find).bind(prefix.as_str()).fetch_one(&mut *connection).await?;
            must_be_writable(row.try_get(11)?)?;
            let hash = row.try_get::<Option<&[u8]>, _>(0)?.map(decode_hash).transpose()?;
            hash.map(|hash| Ok(Credential {
                prefix,
                hash,
                key_id: KeyId(row.try_get(1)?),
                account_id: AccountId(row.try_get(2)?),
                plan: decode_plan(row.try_get(3)?)?,
                expires_at: row.try_get(4)?,
                revoked: row.try_get::<Option<DateTime<Utc>>, _>(5)?.is_some(),
                never_used: row.try_get::<Option<DateTime<Utc>>, _>(6)?.is_none(),
                as_of: row.try_get(7)?,
                permissions: self.catalogue.from_stored(row.try_get(8)?),
                disabled: row.try_get::<Option<DateTime<Utc>>, _>(9)?.is_some(),
                retires_at: row.try_get(10)?,
            })).transpose()
        })
    }

    /// Draws a secret for `key` and stores both; `None` if the account already holds `max_keys`.
    ///
    /// # Errors
    /// Besides the usual ones, the generator's.
    pub async fn create_key<R>(&self, key: &NewKey, max_keys: u32, rng: &mut R) -> Result<Option<Secret>>
    where
        R: TryRng<Error = SysError>,
    {
        for secret in draws(rng) {
            let secret = secret?;
            match self.insert_key(self.new_row(key, &secret, max_keys)).await {
                Err(StoreError::Taken) => tracing::info!("a new key's prefix was taken; drawing again"),
                Ok(inserted) => return Ok(inserted.then_some(secret)),
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Taken)
    }

    /// The same, unless this request was carried out before. What `seal` makes of the secret is kept for whoever asks again.
    pub async fn create_key_once<R>(
        &self,
        key: &NewKey,
        max_keys: u32,
        kept: Kept<impl Fn(&Secret) -> Vec<u8>>,
        rng: &mut R,
    ) -> Result<Carried<Option<Secret>>>
    where
        R: TryRng<Error = SysError>,
    {
        for secret in draws(rng) {
            let secret = secret?;
            let row = self.new_row(key, &secret, max_keys);
            return Ok(match self.insert_key_once(row, kept.once, (kept.seal)(&secret)).await {
                Err(StoreError::Taken) => continue,
                Err(error) => return Err(error),
                Ok(Carried::Out(inserted)) => Carried::Out(inserted.then_some(secret)),
                Ok(Carried::Before(sealed)) => Carried::Before(sealed),
                Ok(Carried::OutOtherwise) => Carried::OutOtherwise,
                Ok(Carried::Still) => Carried::Still,
            });
        }
        Err(StoreError::Taken)
    }

    async fn insert_key_once(&self, row: NewRow, once: Once, sealed: Vec<u8>) -> Result<Carried<bool>> {
        let keep = move |inserted: &bool| inserted.then_some(sealed);
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => transaction!(pool, "begin", tx => {
                if is_ours!(once, tx) {
                    once!(once, tx, row.insert_into_postgres(tx).await?, keep)
                } else {
                    Carried::Still
                }
            }),
            Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => {
                once!(once, tx, row.insert_into_sqlite(tx).await?, keep)
            }),
        })
        .await
    }

    pub(super) fn new_row(&self, key: &NewKey, secret: &Secret, max_keys: u32) -> NewRow {
        let permissions = self.catalogue.to_stored(key.permissions);
        NewRow {
            key: key.clone(),
            permissions,
            prefix: secret.prefix(),
            hash: secret.hash(),
            max_keys: max_keys.into(),
        }
    }

    async fn insert_key(&self, row: NewRow) -> Result<bool> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => on!(@write pool, connection => row.insert_into_postgres(connection).await),
            Db::Sqlite { write: pool, .. } => {
                transaction!(pool, "begin immediate", tx => row.insert_into_sqlite(tx).await?)
            }
        })
        .await
    }

    /// Revokes an account's key for good; `false` if it has no such key, or no more.
    pub async fn revoke_key(
        &self,
        account_id: AccountId,
        id: KeyId,
        now: DateTime<Utc>,
        origin: Origin,
    ) -> Result<bool> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => on!(@write pool, connection => {
                let done = sqlx::query(REVOKE_ON_POSTGRES)
                    .bind(account_id.0)
                    .bind(id.0)
                    .bind(now)
                    .bind(origin.key_id.map(|key| key.0))
                    .bind(origin.address.map(|address| address.to_string()))
                    .bind(origin.request_id.as_deref())
                    .execute(connection)
                    .await?;
                Ok(done.rows_affected() == 1)
            }),
            Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => {
                let done = sqlx::query(REVOKE).bind(account_id.0).bind(id.0).bind(now).execute(&mut *tx).await?;
                let was_live = done.rows_affected() == 1;
                if was_live {
                    record!(tx, account_id, id.0, What::Revoked, None::<&str>, now, origin);
                }
                was_live
            }),
        })
        .await
    }

    /// Whose key it is: for the operator, who names a key without its account.
    pub async fn find_owner(&self, id: KeyId) -> Result<Option<AccountId>> {
        on!(self, read, connection => {
            let owner = sqlx::query_scalar::<_, Uuid>(FIND_OWNER).bind(id.0).fetch_optional(&mut *connection).await?;
            Ok(owner.map(AccountId))
        })
    }

    /// Moves the last use of many secrets forward, never back. `uses` are in the order of their prefixes.
    pub async fn touch_secrets(&self, uses: Vec<(Prefix, DateTime<Utc>)>) -> Result<()> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => {
                let (prefixes, times): (Vec<_>, Vec<_>) =
                    uses.iter().map(|(prefix, at)| (prefix.as_str().to_owned(), *at)).unzip();
                on!(@write pool, connection => {
                    sqlx::query(TOUCH_ON_POSTGRES).bind(prefixes).bind(times).execute(connection).await.map(drop)
                })
            }
            Db::Sqlite { write, .. } => transaction!(write, "begin immediate", tx => {
                for (prefix, at) in &uses {
                    sqlx::query(TOUCH_ON_SQLITE).bind(prefix.as_str()).bind(at).execute(&mut *tx).await?;
                }
            }),
        })
        .await
    }
}

/// Secrets to be tried until one has a prefix that no other has.
pub(super) fn draws<R: TryRng>(rng: &mut R) -> impl Iterator<Item = Result<Secret, R::Error>> {
    (0..MAX_DRAWS).map(|_| Secret::generate(rng))
}

/// What is stored of a new key; the secret's text stays behind.
pub(super) struct NewRow {
    key: NewKey,
    permissions: Option<String>,
    prefix: Prefix,
    hash: SecretHash,
    max_keys: i64,
}

impl NewRow {
    /// `false` if the account is full.
    pub(super) async fn insert_into_postgres(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let done = sqlx::query(CREATE_ON_POSTGRES)
            .bind(self.key.id.0)
            .bind(self.key.account_id.0)
            .bind(self.key.name.as_str())
            .bind(self.key.created_at)
            .bind(self.key.expires_at)
            .bind(self.max_keys)
            .bind(self.permissions.as_deref())
            .bind(self.prefix.as_str())
            .bind(self.hash.as_bytes())
            .bind(self.key.origin.key_id.map(|key| key.0))
            .bind(self.key.origin.address.map(|address| address.to_string()))
            .bind(self.key.origin.request_id.as_deref())
            .execute(connection)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// `false` if the account is full. To be called in a transaction.
    pub(super) async fn insert_into_sqlite(&self, tx: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        let [key, secret] = CREATE_ON_SQLITE;
        let done = sqlx::query(key)
            .bind(self.key.id.0)
            .bind(self.key.account_id.0)
            .bind(self.key.name.as_str())
            .bind(self.key.created_at)
            .bind(self.key.expires_at)
            .bind(self.max_keys)
            .bind(self.permissions.as_deref())
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(secret)
            .bind(self.prefix.as_str())
            .bind(self.key.id.0)
            .bind(self.hash.as_bytes())
            .bind(self.key.created_at)
            .execute(&mut *tx)
            .await?;
        let NewKey { id, account_id, created_at, origin, .. } = &self.key;
        record!(tx, account_id, id.0, What::Created, None::<&str>, created_at, origin);
        Ok(true)
    }
}

pub(super) fn decode_plan(text: &str) -> Result<Plan, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

pub(super) fn decode_prefix(text: &str) -> Result<Prefix, sqlx::Error> {
    Prefix::parse(text)
        .ok_or_else(|| sqlx::Error::Decode("a stored prefix has not 8 characters of the alphabet".into()))
}

fn decode_hash(bytes: &[u8]) -> Result<SecretHash, sqlx::Error> {
    SecretHash::from_stored(bytes).ok_or_else(|| sqlx::Error::Decode("a stored hash has not 32 bytes".into()))
}
