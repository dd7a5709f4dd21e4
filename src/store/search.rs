//! Some of an account's keys: which, in which order, and how many at once.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::listing::gather;
use super::{Result, Store, on};
use crate::id::AccountId;
use crate::key::{ApiKey, Status};

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Search {
    pub status: Option<Status>,
    /// A part of the name; A to Z are as good as a to z.
    pub part_of_name: Option<String>,
    pub order: Order,
    /// At most so many, after so many that are left out.
    pub limit: u32,
    pub offset: u32,
    pub now: DateTime<Utc>,
}

/// What keys are sorted by. Those that have no such time come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    CreatedAt,
    LastUsed,
    Name,
    Expiration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub by: By,
    pub descending: bool,
}

/// Some keys, and how many there are in all.
#[derive(Debug)]
pub struct Found {
    pub keys: Vec<ApiKey>,
    pub total: usize,
}

/// The text of a search in one order. `lower` knows A to Z only, on either store, and ids settle what is left open.
macro_rules! search {
    ($column:literal, $direction:literal) => {
        concat!(
            "with matching as (
                 select k.*, lower(k.name) as lower_name,
                        (select max(last_used_at) from key_secrets s where s.key_id = k.id) as last_used_at
                 from api_keys k
                 where k.account_id = $1 and k.revoked_at is null
                   and exists (select 1 from key_secrets s where s.key_id = k.id and s.retires_at is null)
                   and ($2 is null or $2 = case when k.disabled_at is not null then 'disabled'
                                                when k.expires_at <= $3 then 'expired'
                                                else 'active' end)
                   and ($4 is null or lower(k.name) like $4 escape '!')
             ), page as (
                 select p.* from matching p order by ",
            order!($column, $direction),
            " limit $5 offset $6
             )
             select p.id, p.name, s.prefix, p.created_at, p.expires_at, s.last_used_at, p.permissions, p.disabled_at,
                    s.retires_at, (select count(*) from matching)
             from (select 1) as always
             left join page p on true
             left join key_secrets s on s.key_id = p.id
             order by ",
            order!($column, $direction),
            ", s.retires_at desc nulls first"
        )
    };
}

macro_rules! order {
    ($column:literal, $direction:literal) => {
        concat!("p.", $column, " ", $direction, " nulls last, p.id ", $direction)
    };
}

impl Order {
    fn sql(self) -> &'static str {
        match (self.by, self.descending) {
            (By::CreatedAt, false) => search!("created_at", "asc"),
            (By::CreatedAt, true) => search!("created_at", "desc"),
            (By::LastUsed, false) => search!("last_used_at", "asc"),
            (By::LastUsed, true) => search!("last_used_at", "desc"),
            (By::Name, false) => search!("lower_name", "asc"),
            (By::Name, true) => search!("lower_name", "desc"),
            (By::Expiration, false) => search!("expires_at", "asc"),
            (By::Expiration, true) => search!("expires_at", "desc"),
        }
    }
}

impl Store {
    /// Those of an account's keys that a search finds.
    pub async fn search_keys(&self, account_id: AccountId, search: &Search) -> Result<Found> {
        let pattern = search.part_of_name.as_deref().map(containing);
        on!(self, read, connection => {
            let mut rows = sqlx::query(search.order.sql())
                .bind(account_id.0)
                .bind(search.status.map(Status::as_str))
                .bind(search.now)
                .bind(pattern.as_deref())
                .bind(i64::from(search.limit))
                .bind(i64::from(search.offset))
                .fetch_all(&mut *connection)
                .await?;
            // There is one row at least, for the count.
            let total: i64 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(9)?;
            rows.retain(|row| !matches!(row.try_get::<Option<&str>, _>(1), Ok(None)));
            Ok(Found { keys: gather!(self, rows)?, total: usize::try_from(total).unwrap_or_default() })
        })
    }
}

/// The pattern of `like` for whatever contains `part`.
fn containing(part: &str) -> String {
    let mut pattern = String::from("%");
    for character in part.chars() {
        if matches!(character, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(character.to_ascii_lowercase());
    }
    pattern.push('%');
    pattern
}
