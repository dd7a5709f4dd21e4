//! Keys as their account sees them.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Result, Store, on};
use crate::id::{AccountId, KeyId};
use crate::key::{ApiKey, PreviousSecret};

/// Keys of the account `$1` that are not revoked, with all their secrets, in the columns that [`gather!`] reads. Of each key
/// the current secret comes first, and then the one that was the last to be replaced.
macro_rules! select_keys {
    ($condition:literal) => {
        concat!(
            "select k.id, k.name, s.prefix, k.created_at, k.expires_at, s.last_used_at, k.permissions, k.disabled_at,
                    s.retires_at
             from api_keys k
             join key_secrets s on s.key_id = k.id
             where k.account_id = $1 and k.revoked_at is null ",
            $condition,
            " order by k.created_at desc, k.id desc, s.retires_at desc nulls first"
        )
    };
}

const LIST: &str = select_keys!("");

pub(super) const FIND: &str = select_keys!("and k.id = $2");

impl Store {
    /// An account's keys that are not revoked, the newest first.
    pub async fn list_keys(&self, account_id: AccountId) -> Result<Vec<ApiKey>> {
        on!(self, read, connection => {
            let rows = sqlx::query(LIST).bind(account_id.0).fetch_all(&mut *connection).await?;
            gather!(self, rows)
        })
    }

    /// One of an account's keys that is not revoked.
    pub async fn find_key(&self, account_id: AccountId, id: KeyId) -> Result<Option<ApiKey>> {
        on!(self, read, connection => {
            let rows = sqlx::query(FIND).bind(account_id.0).bind(id.0).fetch_all(&mut *connection).await?;
            gather!(self, rows).map(|mut keys: Vec<ApiKey>| keys.pop())
        })
    }
}

/// Makes one key of each of them, whose rows follow each other.
pub(super) fn into_keys(
    rows: impl Iterator<Item = Result<SecretRow, sqlx::Error>>,
) -> Result<Vec<ApiKey>, sqlx::Error> {
    let mut keys: Vec<ApiKey> = Vec::with_capacity(rows.size_hint().0);
    for row in rows {
        let SecretRow { key, retires_at } = row?;
        match (keys.last_mut().filter(|last| last.id == key.id), retires_at) {
            (None, None) => keys.push(key),
            // Whoever ended the only secret by hand has ended the key.
            (None, Some(_)) => (),
            (Some(last), retires_at) => {
                last.earlier_used_at = last.earlier_used_at.max(key.last_used_at);
                if let (None, Some(retires_at)) = (&last.previous, retires_at) {
                    let (prefix, last_used_at) = (key.prefix, key.last_used_at);
                    last.previous = Some(PreviousSecret { prefix, last_used_at, retires_at });
                }
            }
        }
    }
    Ok(keys)
}

/// A key with one of its secrets.
pub(super) struct SecretRow {
    pub(super) key: ApiKey,
    pub(super) retires_at: Option<DateTime<Utc>>,
}

macro_rules! gather {
    ($store:ident, $rows:ident) => {
        $crate::store::listing::into_keys($rows.iter().map(|row| {
            let key = $crate::key::ApiKey {
                id: $crate::id::KeyId(row.try_get(0)?),
                name: row.try_get(1)?,
                prefix: $crate::store::keys::decode_prefix(row.try_get(2)?)?,
                created_at: row.try_get(3)?,
                expires_at: row.try_get(4)?,
                last_used_at: row.try_get(5)?,
                permissions: $store.catalogue.from_stored(row.try_get(6)?),
                disabled_at: row.try_get(7)?,
                earlier_used_at: None,
                previous: None,
            };
            Ok($crate::store::listing::SecretRow { key, retires_at: row.try_get(8)? })
        }))
    };
}
pub(super) use gather;
