//! Accounts and keys by the thousand, drawn here, and how each database takes them quickly.

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
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqliteConnection};
use uuid::Uuid;

/// What a list shows.
pub(crate) const KEYS_IN_LIST: usize = 10;
/// Of all limits: far more than any load reaches.
pub(crate) const LIMIT: u32 = 1_000_000_000;
/// Accounts that one statement takes.
const BATCH: usize = 5_000;

/// Keys are counted here, which is faster than by the trigger on each row.
const WITHOUT_TRIGGERS: &str = "alter table api_keys disable trigger user";
const WITH_TRIGGERS: &str = "alter table api_keys enable trigger user";
/// How foreign keys are taken away and brought back: to check all rows at the end is faster than each by itself.
const FOREIGN_KEYS: &str = "
    select format('alter table %s drop constraint %I', conrelid::regclass, conname),
           format('alter table %s add constraint %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    from pg_constraint where contype = 'f' and connamespace = current_schema()::regnamespace";

/// Every key has been used before: it is the first use ever that is dear, and few requests are that.
const INTO_POSTGRES: [&str; 3] = [
    "insert into accounts (id, name, plan, live_keys, created_at)
     select id, 'bench', 'pro', $2, $3 from unnest($1::uuid[]) as account (id)",
    "insert into api_keys (id, account_id, name, created_at, expires_at)
     select id, account_id, name, $4, $5 from unnest($1::uuid[], $2::uuid[], $3::text[]) as key (id, account_id, name)",
    "insert into key_secrets (prefix, key_id, hash, created_at, last_used_at)
     select prefix, key_id, hash, $4, $4 from unnest($1::text[], $2::uuid[], $3::bytea[]) as secret (prefix, key_id, hash)",
];

/// The same, where arrays are JSON and bytes in it hexadecimal. The triggers of the schema count the keys.
const INTO_SQLITE: [&str; 3] = [
    "insert into accounts (id, name, plan, created_at) select unhex(value), 'bench', 'pro', $2 from json_each($1)",
    "insert into api_keys (id, account_id, name, created_at, expires_at)
     select unhex(value ->> 0), unhex(value ->> 1), value ->> 2, $2, $3 from json_each($1)",
    "insert into key_secrets (prefix, key_id, hash, created_at, last_used_at)
     select value ->> 0, unhex(value ->> 1), unhex(value ->> 2), $2, $2 from json_each($1)",
];

/// An account, and the texts of its keys.
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) keys: Vec<Secret>,
}

/// Those whose keys are listed, and those that get and lose keys, so that the former's lists stay as they are.
pub(crate) struct Accounts {
    pub(crate) readers: Vec<Account>,
    pub(crate) writers: Vec<Account>,
}

impl Accounts {
    fn draw(readers: usize, writers: usize) -> anyhow::Result<Self> {
        let draw = |count: usize, keys: usize| -> anyhow::Result<Vec<Account>> {
            std::iter::repeat_with(|| Account::draw(keys)).take(count).collect()
        };
        Ok(Self { readers: draw(readers, KEYS_IN_LIST)?, writers: draw(writers, 1)? })
    }

    fn batches(&self) -> impl Iterator<Item = &[Account]> {
        self.readers.chunks(BATCH).chain(self.writers.chunks(BATCH))
    }

    /// The readers' keys, of each account the first before any second one.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (AccountId, &Secret)> {
        (0..KEYS_IN_LIST).flat_map(|number| self.readers.iter().map(move |reader| (reader.id, &reader.keys[number])))
    }
}

impl Account {
    fn draw(keys: usize) -> anyhow::Result<Self> {
        let keys = std::iter::repeat_with(|| Secret::generate(&mut SysRng)).take(keys).collect::<Result<_, _>>()?;
        Ok(Self { id: AccountId::new(), keys })
    }
}

/// Accounts as columns, with an id for each key.
#[derive(Default)]
struct Columns {
    accounts: Vec<Uuid>,
    owners: Vec<Uuid>,
    ids: Vec<Uuid>,
    names: Vec<String>,
    prefixes: Vec<String>,
    hashes: Vec<Vec<u8>>,
}

impl Columns {
    fn of(accounts: &[Account]) -> Self {
        let mut columns = Self::default();
        for account in accounts {
            columns.accounts.push(account.id.0);
            for (number, secret) in account.keys.iter().enumerate() {
                columns.push_key(account.id, format!("Production API {number}"), secret);
            }
        }
        columns
    }

    fn push_key(&mut self, owner: AccountId, name: String, secret: &Secret) {
        self.owners.push(owner.0);
        self.ids.push(KeyId::new().0);
        self.names.push(name);
        self.prefixes.push(secret.prefix().as_str().to_owned());
        self.hashes.push(secret.hash().as_bytes().to_vec());
    }

    async fn insert_keys(self, connection: &mut PgConnection, expires: Option<DateTime<Utc>>) -> sqlx::Result<()> {
        let now = Clock::system().now();
        let [_, keys, secrets] = INTO_POSTGRES;
        let query = sqlx::query(keys).bind(&self.ids).bind(self.owners).bind(self.names);
        query.bind(now).bind(expires).execute(&mut *connection).await?;
        let query = sqlx::query(secrets).bind(self.prefixes).bind(self.ids).bind(self.hashes);
        query.bind(now).execute(connection).await.map(drop)
    }
}

pub(crate) async fn fill_postgres(
    url: &str,
    session: &mut PgConnection,
    (readers, writers): (usize, usize),
) -> anyhow::Result<Accounts> {
    migrate(url).await?;
    let accounts = Accounts::draw(readers, writers)?;
    let now = Clock::system().now();
    let mut transaction = session.begin().await?;
    let foreign_keys: Vec<(String, String)> = sqlx::query_as(FOREIGN_KEYS).fetch_all(&mut *transaction).await?;
    sqlx::query(WITHOUT_TRIGGERS).execute(&mut *transaction).await?;
    for (without, _) in &foreign_keys {
        sqlx::query(AssertSqlSafe(without.clone())).execute(&mut *transaction).await?;
    }
    for batch in accounts.batches() {
        let columns = Columns::of(batch);
        let each = i32::try_from(batch.first().map_or(0, |account| account.keys.len()))?;
        let query = sqlx::query(INTO_POSTGRES[0]).bind(&columns.accounts).bind(each).bind(now);
        query.execute(&mut *transaction).await?;
        columns.insert_keys(&mut transaction, Some(now + TimeDelta::days(365))).await?;
    }
    for (_, with) in foreign_keys {
        sqlx::query(AssertSqlSafe(with)).execute(&mut *transaction).await?;
    }
    sqlx::query(WITH_TRIGGERS).execute(&mut *transaction).await?;
    transaction.commit().await?;
    sqlx::query("vacuum analyze").execute(session).await?;
    Ok(accounts)
}

pub(crate) async fn fill_sqlite(url: &str, (readers, writers): (usize, usize)) -> anyhow::Result<Accounts> {
    migrate(url).await?;
    let accounts = Accounts::draw(readers, writers)?;
    let mut session = sqlite(url).await?;
    let mut transaction = session.begin().await?;
    for batch in accounts.batches() {
        insert_into_sqlite(&mut transaction, Columns::of(batch)).await?;
    }
    transaction.commit().await?;
    session.close().await?;
    Ok(accounts)
}

async fn insert_into_sqlite(connection: &mut SqliteConnection, columns: Columns) -> anyhow::Result<()> {
    let now = Clock::system().now();
    let [accounts, keys, secrets] = INTO_SQLITE;
    let plain = |id: &Uuid| id.simple().to_string();
    let array = serde_json::to_string(&columns.accounts.iter().map(plain).collect::<Vec<_>>())?;
    sqlx::query(accounts).bind(array).bind(now).execute(&mut *connection).await?;

    let rows = columns.ids.iter().zip(&columns.owners).zip(&columns.names);
    let rows: Vec<_> = rows.map(|((id, owner), name)| [plain(id), plain(owner), name.clone()]).collect();
    let query = sqlx::query(keys).bind(serde_json::to_string(&rows)?).bind(now).bind(now + TimeDelta::days(365));
    query.execute(&mut *connection).await?;

    let rows = columns.prefixes.iter().zip(&columns.ids).zip(&columns.hashes);
    let rows: Vec<_> = rows.map(|((prefix, id), hash)| [prefix.clone(), plain(id), hexadecimal(hash)]).collect();
    sqlx::query(secrets).bind(serde_json::to_string(&rows)?).bind(now).execute(connection).await?;
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes whatever is written to it");
        text
    })
}

/// Gives the accounts keys to lose, in turn; `ids[n]` belongs to the account `n` modulo their number.
pub(crate) async fn add_spare_keys(
    session: &mut PgConnection,
    accounts: &[Account],
    count: usize,
) -> anyhow::Result<Vec<KeyId>> {
    let columns = spare_keys(accounts, count)?;
    let ids = columns.ids.iter().copied().map(KeyId).collect();
    let mut transaction = session.begin().await.context("spare keys")?;
    columns.insert_keys(&mut transaction, None).await?;
    transaction.commit().await?;
    Ok(ids)
}

/// The same on SQLite.
pub(crate) async fn add_spare_keys_to_sqlite(
    url: &str,
    accounts: &[Account],
    count: usize,
) -> anyhow::Result<Vec<KeyId>> {
    let columns = spare_keys(accounts, count)?;
    let ids = columns.ids.iter().copied().map(KeyId).collect();
    let mut session = sqlite(url).await?;
    let mut transaction = session.begin().await.context("spare keys")?;
    insert_into_sqlite(&mut transaction, columns).await?;
    transaction.commit().await?;
    session.close().await?;
    Ok(ids)
}

/// With secrets, since replicas are told of those: without, a revocation would be one that they cannot follow.
fn spare_keys(accounts: &[Account], count: usize) -> anyhow::Result<Columns> {
    let mut columns = Columns::default();
    for account in accounts.iter().cycle().take(count) {
        let secret = Secret::generate(&mut SysRng)?;
        columns.push_key(account.id, "spare key".to_owned(), &secret);
    }
    Ok(columns)
}

pub(crate) async fn sqlite(url: &str) -> anyhow::Result<SqliteConnection> {
    let options: SqliteConnectOptions = url.parse()?;
    options.disable_statement_logging().connect().await.context("the SQLite file cannot be opened")
}

async fn migrate(url: &str) -> anyhow::Result<()> {
    let store = Store::open(&url.parse::<StoreUrl>()?, 1, Arc::new(Catalogue::new(Vec::new())?))?;
    store.migrate().await?;
    store.close();
    Ok(())
}
