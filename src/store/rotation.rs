//! Giving a key another secret, and ending the one before it.

use rand::TryRng;
use rand::rngs::SysError;
use sqlx::Row;

use super::edits::LOCK_ON_POSTGRES;
use super::listing::{FIND, gather};
use super::{Db, Result, Store, StoreError, keys, to_its_end, transaction};
use crate::id::{AccountId, KeyId};
use crate::key::{ApiKey, Refusal, Rotation};
use crate::secret::{Prefix, Secret, SecretHash};

const REPLACE: &str = "update key_secrets set retires_at = $2 where key_id = $1 and retires_at is null";

const ADD: &str = "insert into key_secrets (prefix, key_id, hash, created_at) values ($1, $2, $3, $4)";

/// What came of a rotation.
#[derive(Debug)]
pub enum Rotated {
    Done(Box<ApiKey>, Secret),
    /// The account has no such key, or no more.
    NotFound,
    Refused(Refusal),
}

impl Store {
    /// Draws another secret for one of an account's keys; the one it had works until the grace ends.
    pub async fn rotate_key<R>(
        &self,
        account_id: AccountId,
        id: KeyId,
        rotation: Rotation,
        rng: &mut R,
    ) -> Result<Rotated>
    where
        R: TryRng<Error = SysError>,
    {
        for secret in keys::draws(rng) {
            let secret = secret?;
            match self.replace_secret(account_id, id, rotation, (secret.prefix(), secret.hash())).await {
                Err(StoreError::Taken) => tracing::info!("a new secret's prefix was taken; drawing again"),
                Ok(Outcome::Done(key)) => return Ok(Rotated::Done(key, secret)),
                Ok(Outcome::NotFound) => return Ok(Rotated::NotFound),
                Ok(Outcome::Refused(refusal)) => return Ok(Rotated::Refused(refusal)),
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Taken)
    }

    async fn replace_secret(
        &self,
        account_id: AccountId,
        id: KeyId,
        rotation: Rotation,
        (prefix, hash): (Prefix, SecretHash),
    ) -> Result<Outcome> {
        let store = self.clone();
        to_its_end(async move {
            match &store.db {
                Db::Postgres(pool) => transaction!(pool, "begin", tx => {
                    sqlx::query(LOCK_ON_POSTGRES).bind(account_id.0).bind(id.0).execute(&mut *tx).await?;
                    replace!(store, account_id, id, rotation, prefix, hash, tx)
                }),
                Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => {
                    replace!(store, account_id, id, rotation, prefix, hash, tx)
                }),
            }
        })
        .await
    }
}

enum Outcome {
    Done(Box<ApiKey>),
    NotFound,
    Refused(Refusal),
}

macro_rules! replace {
    ($store:ident, $account_id:ident, $id:ident, $rotation:ident, $prefix:ident, $hash:ident, $tx:ident) => {{
        let rows = sqlx::query(FIND).bind($account_id.0).bind($id.0).fetch_all(&mut *$tx).await?;
        match gather!($store, rows)?.pop() {
            None => Outcome::NotFound,
            Some(mut key) => match key.rotate(&$rotation, $prefix) {
                Err(refusal) => Outcome::Refused(refusal),
                Ok(retires_at) => {
                    sqlx::query(REPLACE).bind($id.0).bind(retires_at).execute(&mut *$tx).await?;
                    sqlx::query(ADD)
                        .bind($prefix.as_str())
                        .bind($id.0)
                        .bind($hash.as_bytes())
                        .bind($rotation.now)
                        .execute(&mut *$tx)
                        .await?;
                    Outcome::Done(Box::new(key))
                }
            },
        }
    }};
}
use replace;
