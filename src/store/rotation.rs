//! Giving a key another secret, and ending the one before it.

use std::sync::Arc;

use rand::TryRng;
use rand::rngs::SysError;
use sqlx::Row;

use super::edits::LOCK_ON_POSTGRES;
use super::events::record;
use super::listing::{FIND, gather};
use super::once::{Carried, Kept, is_ours, once};
use super::{Db, Result, Store, StoreError, keys, transaction};
use crate::event::What;
use crate::key::{ApiKey, Refusal, Rotation};
use crate::secret::Secret;

const REPLACE: &str = "update key_secrets set retires_at = $2 where key_id = $1 and retires_at is null";

/// Secrets that ended before, but the one that was used last: its use is the key's.
const FORGET: &str = "
    delete from key_secrets where key_id = $1 and retires_at <= $2 and prefix not in (
        select prefix from key_secrets where key_id = $1 and retires_at <= $2
        order by last_used_at desc nulls last, retires_at desc limit 1)";

const ADD: &str = "insert into key_secrets (prefix, key_id, hash, created_at) values ($1, $2, $3, $4)";

/// What came of a rotation.
#[derive(Debug)]
pub enum Rotated {
    Done(Box<ApiKey>, Secret),
    /// The account has no such key, or no more.
    NotFound,
    Refused(Refusal),
}

/// Makes the sealed answer of a rotation that is kept for whoever asks again.
pub type SealRotated = Arc<dyn Fn(&ApiKey, &Secret) -> Vec<u8> + Send + Sync>;

impl Store {
    /// Draws another secret for one of an account's keys; the one it had works until the grace ends.
    ///
    /// With `kept`, this happens once, however often it is asked for.
    pub async fn rotate_key<R>(
        &self,
        rotation: Rotation,
        kept: Option<Kept<SealRotated>>,
        rng: &mut R,
    ) -> Result<Carried<Rotated>>
    where
        R: TryRng<Error = SysError>,
    {
        for secret in keys::draws(rng) {
            match self.replace_secret(rotation.clone(), secret?, kept.clone()).await {
                Err(StoreError::Taken) => tracing::info!("a new secret's prefix was taken; drawing again"),
                outcome => return outcome,
            }
        }
        Err(StoreError::Taken)
    }

    async fn replace_secret(
        &self,
        rotation: Rotation,
        secret: Secret,
        kept: Option<Kept<SealRotated>>,
    ) -> Result<Carried<Rotated>> {
        self.to_its_end(async move |store| match &store.db {
            Db::Postgres(pool) => transaction!(pool, "begin", tx => match &kept {
                None => Carried::Out(replace_on_postgres!(store, rotation, secret, tx)),
                Some(Kept { once, .. }) if !is_ours!(once, tx) => Carried::Still,
                Some(Kept { once, seal }) => {
                    let keep = |rotated: &Rotated| rotated.sealed_by(seal);
                    once!(once, tx, replace_on_postgres!(store, rotation, secret, tx), keep)
                }
            }),
            Db::Sqlite { write: pool, .. } => transaction!(pool, "begin immediate", tx => match &kept {
                None => Carried::Out(replace!(store, rotation, secret, tx)),
                Some(Kept { once, seal }) => {
                    let keep = |rotated: &Rotated| rotated.sealed_by(seal);
                    once!(once, tx, replace!(store, rotation, secret, tx), keep)
                }
            }),
        })
        .await
    }
}

impl Rotated {
    fn sealed_by(&self, seal: &SealRotated) -> Option<Vec<u8>> {
        match self {
            Self::Done(key, secret) => Some(seal(key, secret)),
            Self::NotFound | Self::Refused(_) => None,
        }
    }
}

macro_rules! replace_on_postgres {
    ($store:ident, $rotation:ident, $secret:ident, $tx:ident) => {{
        let (account_id, id) = ($rotation.account_id.0, $rotation.id.0);
        sqlx::query(LOCK_ON_POSTGRES).bind(account_id).bind(id).execute(&mut *$tx).await?;
        replace!($store, $rotation, $secret, $tx)
    }};
}
use replace_on_postgres;

macro_rules! replace {
    ($store:ident, $rotation:ident, $secret:ident, $tx:ident) => {{
        let (account_id, id) = ($rotation.account_id.0, $rotation.id.0);
        let rows = sqlx::query(FIND).bind(account_id).bind(id).fetch_all(&mut *$tx).await?;
        match gather!($store, rows)?.pop() {
            None => Rotated::NotFound,
            Some(mut key) => match key.rotate(&$rotation, $secret.prefix()) {
                Err(refusal) => Rotated::Refused(refusal),
                Ok(retires_at) => {
                    sqlx::query(FORGET).bind(id).bind($rotation.now).execute(&mut *$tx).await?;
                    sqlx::query(REPLACE).bind(id).bind(retires_at).execute(&mut *$tx).await?;
                    sqlx::query(ADD)
                        .bind($secret.prefix().as_str())
                        .bind(id)
                        .bind($secret.hash().as_bytes())
                        .bind($rotation.now)
                        .execute(&mut *$tx)
                        .await?;
                    let Rotation { account_id, now, origin, .. } = &$rotation;
                    record!($tx, account_id, id, What::Rotated, None::<&str>, now, origin);
                    Rotated::Done(Box::new(key), $secret)
                }
            },
        }
    }};
}
use replace;
