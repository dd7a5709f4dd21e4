//! Keys as their account sees them.

use sqlx::Row;

use super::{Result, Store, on};
use crate::id::{AccountId, KeyId};
use crate::key::ApiKey;

/// Keys of the account `$1` that are not revoked, in the columns that [`api_key!`] reads.
macro_rules! select_keys {
    ($rest:literal) => {
        concat!(
            "select k.id, k.name, s.prefix, k.created_at, k.expires_at, s.last_used_at, k.permissions, k.disabled_at
             from api_keys k
             join key_secrets s on s.key_id = k.id and s.retires_at is null
             where k.account_id = $1 and k.revoked_at is null ",
            $rest
        )
    };
}

const LIST: &str = select_keys!("order by k.created_at desc, k.id desc");

pub(super) const FIND: &str = select_keys!("and k.id = $2");

impl Store {
    /// An account's keys that are not revoked, the newest first.
    pub async fn list_keys(&self, account_id: AccountId) -> Result<Vec<ApiKey>> {
        on!(self, read, connection => {
            let rows = sqlx::query(LIST).bind(account_id.0).fetch_all(&mut *connection).await?;
            rows.iter().map(|row| api_key!(self, row)).collect()
        })
    }

    /// One of an account's keys that is not revoked.
    pub async fn find_key(&self, account_id: AccountId, id: KeyId) -> Result<Option<ApiKey>> {
        on!(self, read, connection => {
            let row = sqlx::query(FIND).bind(account_id.0).bind(id.0).fetch_optional(&mut *connection).await?;
            row.map(|row| api_key!(self, row)).transpose()
        })
    }
}

macro_rules! api_key {
    ($store:ident, $row:ident) => {
        Ok(ApiKey {
            id: KeyId($row.try_get(0)?),
            name: $row.try_get(1)?,
            prefix: $crate::store::keys::decode_prefix($row.try_get(2)?)?,
            created_at: $row.try_get(3)?,
            expires_at: $row.try_get(4)?,
            last_used_at: $row.try_get(5)?,
            permissions: $store.catalogue.from_stored($row.try_get(6)?),
            disabled_at: $row.try_get(7)?,
        })
    };
}
pub(super) use api_key;
