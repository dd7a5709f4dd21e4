//! Accounts with keys, put into a database quickly: by plain SQL, in one transaction.

use std::sync::Arc;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use momail_api_keys::clock::Clock;
use momail_api_keys::id::{AccountId, KeyId};
use momail_api_keys::permission::Catalogue;
use momail_api_keys::secret::Secret;
use momail_api_keys::store::{Store, StoreUrl};
use rand::rngs::SysRng;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

/// What a list shows.
pub(crate) const KEYS_IN_LIST: usize = 10;
/// Of all limits: far more than any load reaches.
pub(crate) const LIMIT: u32 = 1_000_000_000;

const ACCOUNT: &str = "insert into accounts (id, name, plan, created_at) values ($1, 'bench', 'pro', $2)";
const KEY: &str = "insert into api_keys (id, account_id, name, created_at, expires_at) values ($1, $2, $3, $4, $5)";
const SECRET: &str = "insert into key_secrets (prefix, key_id, hash, created_at) values ($1, $2, $3, $4)";
const SPARE_KEYS: &str = "
    insert into api_keys (id, account_id, name, created_at)
    select id, account_id, 'spare key', now() from unnest($1::uuid[], $2::uuid[]) as spare (id, account_id)";

/// An account, and the text of one of its keys.
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) key: String,
}

/// Those whose keys are listed, and those that get and lose keys, so that the former's lists stay as they are.
pub(crate) struct Accounts {
    pub(crate) readers: Vec<Account>,
    pub(crate) writers: Vec<Account>,
}

/// Adds accounts of each kind.
macro_rules! fill {
    ($connection:ident, $count:expr) => {{
        let mut transaction = $connection.begin().await?;
        let mut kinds = [Vec::new(), Vec::new()];
        for (accounts, keys) in kinds.iter_mut().zip([KEYS_IN_LIST, 1]) {
            for _ in 0..$count {
                let new = NewAccount::draw(keys)?;
                sqlx::query(ACCOUNT).bind(new.id.0).bind(new.created_at).execute(&mut *transaction).await?;
                for (number, (key, secret)) in new.keys.iter().enumerate() {
                    let query = sqlx::query(KEY).bind(key.0).bind(new.id.0).bind(format!("Production API {number}"));
                    let query = query.bind(new.created_at).bind(new.created_at + TimeDelta::days(365));
                    query.execute(&mut *transaction).await?;
                    let (prefix, hash) = (secret.prefix(), secret.hash());
                    let query = sqlx::query(SECRET).bind(prefix.as_str()).bind(key.0).bind(hash.as_bytes());
                    query.bind(new.created_at).execute(&mut *transaction).await?;
                }
                let (_, first) = new.keys.first().context("an account was to have a key")?;
                accounts.push(Account { id: new.id, key: first.expose().to_owned() });
            }
        }
        transaction.commit().await?;
        let [readers, writers] = kinds;
        Accounts { readers, writers }
    }};
}

pub(crate) async fn fill_postgres(
    url: &str,
    mut session: PgConnection,
    count: usize,
) -> anyhow::Result<(PgConnection, Accounts)> {
    migrate(url).await?;
    let accounts = fill!(session, count);
    sqlx::query("vacuum analyze").execute(&mut session).await?;
    Ok((session, accounts))
}

pub(crate) async fn fill_sqlite(url: &str, count: usize) -> anyhow::Result<Accounts> {
    migrate(url).await?;
    let options: SqliteConnectOptions = url.parse()?;
    let mut session = options.disable_statement_logging().connect().await?;
    let accounts = fill!(session, count);
    session.close().await?;
    Ok(accounts)
}

/// Gives the accounts keys to lose, in turn; `ids[n]` belongs to the account `n` modulo their number.
pub(crate) async fn add_spare_keys(
    session: &mut PgConnection,
    accounts: &[Account],
    count: usize,
) -> anyhow::Result<Vec<KeyId>> {
    let ids: Vec<KeyId> = std::iter::repeat_with(KeyId::new).take(count).collect();
    let owners: Vec<Uuid> = accounts.iter().cycle().take(count).map(|account| account.id.0).collect();
    let plain: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query(SPARE_KEYS).bind(plain).bind(owners).execute(session).await?;
    Ok(ids)
}

async fn migrate(url: &str) -> anyhow::Result<()> {
    let store = Store::open(&url.parse::<StoreUrl>()?, 1, Arc::new(Catalogue::new(Vec::new())?))?;
    store.migrate().await?;
    store.close();
    Ok(())
}

struct NewAccount {
    id: AccountId,
    keys: Vec<(KeyId, Secret)>,
    created_at: DateTime<Utc>,
}

impl NewAccount {
    fn draw(keys: usize) -> anyhow::Result<Self> {
        let draw = || anyhow::Ok((KeyId::new(), Secret::generate(&mut SysRng)?));
        let keys = std::iter::repeat_with(draw).take(keys).collect::<Result<_, _>>()?;
        Ok(Self { id: AccountId::new(), keys, created_at: Clock::system().now() })
    }
}
