//! Accounts and keys in PostgreSQL or SQLite, behind one type. Each query is written once where both can run it.
//!
//! It must not know of HTTP, settings or the clock: it is given a URL, the catalogue of permissions and instants.

mod accounts;
mod changes;
mod edits;
mod events;
mod expiry;
mod file;
mod keys;
mod line;
mod listing;
mod once;
mod pool;
mod rotation;
mod schema;
mod search;
#[cfg(test)]
mod tests;
mod trouble;
mod usage;

use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, Postgres};
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

pub use self::accounts::CreatedAccount;
pub use self::changes::{Feed, FeedPosition, Followers, Heartbeat, Listener, Subject};
pub use self::edits::Edited;
pub use self::expiry::Warning;
use self::file::OwnFile;
use self::line::Queue;
pub use self::once::{Carried, Kept, Once};
use self::pool::Pool;
pub use self::rotation::{Rotated, SealRotated};
pub use self::schema::Migrated;
pub use self::search::{By, Found, Order, Search};
use self::trouble::Trouble;
pub use self::usage::{Counted, Counts, HOURS_KEPT, Usage, day_of, hour_of};
use crate::permission::Catalogue;

/// Any method of [`Store`] has ended after this time, whatever the database does.
pub const BOUND: Duration = Duration::from_millis(2_900);
/// Rows that are removed by one statement, which must not take long.
pub const REMOVED_AT_ONCE: u32 = 1_000;
/// A server that still answers gives up a statement itself, before we give up the server.
const STATEMENT_TIMEOUT: &str = "2000";
/// Only another process on the same SQLite file makes a statement wait this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database, on whichever engine its URL names.
#[derive(Clone)]
pub struct Store {
    db: Db,
    migrations: schema::Source,
    /// What the names mean that are stored for a key's permissions.
    catalogue: Arc<Catalogue>,
}

#[derive(Clone)]
enum Db {
    Postgres(Pool<Postgres>),
    /// SQLite has one writer at a time: a queue for one connection is fairer and faster than its busy handler.
    Sqlite {
        read: Pool<Sqlite>,
        write: Pool<Sqlite>,
    },
}

/// Connections to the database at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    pub open: usize,
    /// Those of them that nobody uses.
    pub idle: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Requests that were refused so far because they would have waited for too long.
    pub refused: u64,
}

impl Add for Connections {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            open: self.open + other.open,
            idle: self.idle + other.idle,
            waiting: self.waiting + other.waiting,
            refused: self.refused + other.refused,
        }
    }
}

/// Runs one body on a connection of whichever database is open (it is compiled once for each), within [`BOUND`].
///
/// `read` bodies are tried again when a pooled connection turns out to have died meanwhile; `write` bodies are not,
/// because they may have been carried out.
macro_rules! on {
    ($store:expr, read, $connection:ident => $body:expr) => {
        match &$store.db {
            $crate::store::Db::Postgres(pool) => $crate::store::on!(@read pool, $connection => $body),
            $crate::store::Db::Sqlite { read: pool, .. } => $crate::store::on!(@read pool, $connection => $body),
        }
    };
    ($store:expr, write, $connection:ident => $body:expr) => {
        match &$store.db {
            $crate::store::Db::Postgres(pool) => $crate::store::on!(@write pool, $connection => $body),
            $crate::store::Db::Sqlite { write: pool, .. } => $crate::store::on!(@write pool, $connection => $body),
        }
    };
    (@read $pool:ident, $connection:ident => $body:expr) => {
        $pool.judge(
            $crate::store::pool::within_bound(async {
                $pool.check_file()?;
                loop {
                    let mut lease = $pool.lease().await?;
                    let $connection = &mut *lease;
                    let outcome: Result<_, sqlx::Error> = async { $body }.await;
                    if let Some(outcome) = lease.end_or_retry(outcome) {
                        break outcome;
                    }
                }
            })
            .await,
        )
    };
    (@write $pool:ident, $connection:ident => $body:expr) => {
        $pool.judge(
            $crate::store::pool::within_bound(async {
                $pool.check_file()?;
                let mut lease = $pool.lease().await?;
                let $connection = &mut *lease;
                let outcome: Result<_, sqlx::Error> = async { $body }.await;
                lease.end(outcome)
            })
            .await,
        )
    };
}
use on;

/// Runs several statements as one transaction, on a connection that is closed rather than reused if the work is cut short
/// (sqlx 0.9 can leave a transaction open on a connection whose `begin` was dropped).
///
/// Call it only in a task of its own ([`Store::to_its_end`]), so that a client that hangs up cuts nothing short.
macro_rules! transaction {
    ($pool:expr, $begin:literal, $tx:ident => $body:expr) => {
        $pool.judge(
            $crate::store::pool::within_bound(async {
                $pool.check_file()?;
                let mut lease = $pool.lease().await?.closed_if_cut_short();
                let outcome: Result<_, sqlx::Error> = async {
                    let mut tx = sqlx::Connection::begin_with(&mut *lease, $begin).await?;
                    let $tx = &mut *tx;
                    let value = $body;
                    tx.commit().await?;
                    Ok(value)
                }
                .await;
                lease.end(outcome)
            })
            .await,
        )
    };
}
use transaction;

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot do it now: gone, frozen, read-only, full or out of connections.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// More is asked of the database than it can answer in time. Nothing was done.
    #[error("the database is asked for more than it can answer in time")]
    Overloaded,
    /// A unique column already has this value.
    #[error("the value is taken")]
    Taken,
    #[error("the operating system gave no random bytes: {0}")]
    Randomness(#[from] rand::rngs::SysError),
    #[error("the database has a schema this version cannot use: {0}")]
    Schema(String),
    #[error("the database has schema {found}, this version needs {needed}: run `momail-api-keys migrate`")]
    NotMigrated { found: i64, needed: i64 },
    #[error(transparent)]
    Unexpected(anyhow::Error),
}

/// What a store's URL must look like. The URL itself is not repeated: it may hold a password.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("must be sqlite://FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
pub struct InvalidUrl;

/// A checked database URL; showing it hides the password.
#[derive(Clone)]
pub enum StoreUrl {
    Postgres(Box<PgConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

impl FromStr for StoreUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return url.parse().map(|options| Self::Postgres(Box::new(options))).map_err(|_| InvalidUrl);
        }
        let path = url.strip_prefix("sqlite:").ok_or(InvalidUrl)?.trim_start_matches("//");
        // A database in memory would lose every key it answered for.
        if path.is_empty() || path.starts_with(":memory:") || path.contains("mode=memory") {
            return Err(InvalidUrl);
        }
        url.parse().map(|options| Self::Sqlite(Box::new(options))).map_err(|_| InvalidUrl)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(options) => write!(
                f,
                "postgres://{}:***@{}:{}/{}",
                options.get_username(),
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or(options.get_username()),
            ),
            Self::Sqlite(options) => write!(f, "sqlite://{}", options.get_filename().display()),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl StoreUrl {
    /// Whether the database is a file of this process's own.
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }
}

/// What PostgreSQL says of itself in a statement that must not be believed on a server that is only read. A standby's transactions
/// are read-only as well.
macro_rules! is_writable_on_postgres {
    () => {
        "current_setting('transaction_read_only') = 'off'"
    };
}
use is_writable_on_postgres;

const IS_WRITABLE_ON_POSTGRES: &str = concat!("select ", is_writable_on_postgres!());

fn must_be_writable(is_writable: bool) -> Result<(), sqlx::Error> {
    // After an error like this no connection is kept.
    if is_writable { Ok(()) } else { Err(sqlx::Error::Protocol("the server may only be read".to_owned())) }
}

impl Store {
    /// Prepares the pools. A missing SQLite file is made, readable by its owner only; PostgreSQL is not asked yet.
    ///
    /// # Errors
    /// If the SQLite file can neither be found nor made.
    pub fn open(url: &StoreUrl, max_connections: usize, catalogue: Arc<Catalogue>) -> std::io::Result<Self> {
        match url {
            StoreUrl::Postgres(options) => {
                let options = postgres_options(options);
                let migrations = schema::Source::Postgres(Arc::new(options.clone()));
                let trouble = Trouble::new("the database is not available", "the database is available again");
                let pool = Pool::new(options, max_connections, trouble, None);
                Ok(Self { db: Db::Postgres(pool), migrations, catalogue })
            }
            StoreUrl::Sqlite(options) => {
                let file = OwnFile::make(options.get_filename())?;
                let options = sqlite_options(options);
                let migrations = schema::Source::Sqlite(Arc::new(options.clone()));
                let trouble = Trouble::new("the database cannot be read", "the database can be read again");
                let read = Pool::new(options.clone(), max_connections, trouble, Some(file.clone()));
                let trouble = Trouble::new("the database takes no changes", "the database takes changes again");
                let write = Pool::new(options, 1, trouble, Some(file));
                Ok(Self { db: Db::Sqlite { read, write }, migrations, catalogue })
            }
        }
    }

    /// Brings the schema up to date. Any number of processes may do so at once.
    ///
    /// # Errors
    /// [`StoreError::Schema`] if the database was migrated by a newer version, or by other text under the same numbers.
    pub async fn migrate(&self) -> Result<Migrated> {
        schema::migrate(&self.migrations).await
    }

    /// Looks whether the schema is the one this version needs, and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotMigrated`] if it is older, [`StoreError::Schema`] if it is newer.
    pub async fn check_schema(&self) -> Result<()> {
        schema::check(self).await
    }

    /// The permissions there are.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    fn is_postgres(&self) -> bool {
        matches!(self.db, Db::Postgres(_))
    }

    /// Asks the database for a sign of life. A server that may only be read gives none.
    pub async fn ping(&self) -> Result<()> {
        if !self.is_postgres() {
            return on!(self, read, connection => connection.ping().await);
        }
        on!(self, read, connection => {
            must_be_writable(sqlx::query_scalar(IS_WRITABLE_ON_POSTGRES).fetch_one(&mut *connection).await?)
        })
    }

    /// The same database for requests that are refused, with [`StoreError::Overloaded`], rather than kept waiting for long.
    #[must_use]
    pub fn for_requests(&self) -> Self {
        self.with_queue(Queue::Common)
    }

    /// The same for those which have a place of their own where the others have taken all. Until their keys have been judged it is
    /// another one, for strangers may make any number of them.
    #[must_use]
    pub fn for_reserved_requests(&self, are_judged: bool) -> Self {
        self.with_queue(if are_judged { Queue::Reserved } else { Queue::Knocking })
    }

    fn with_queue(&self, queue: Queue) -> Self {
        let db = match &self.db {
            Db::Postgres(pool) => Db::Postgres(pool.with_queue(queue)),
            Db::Sqlite { read, write } => Db::Sqlite { read: read.with_queue(queue), write: write.with_queue(queue) },
        };
        Self { db, ..self.clone() }
    }

    /// Connections to the database, and those who wait for one.
    pub fn connections(&self) -> Connections {
        match &self.db {
            Db::Postgres(pool) => pool.usage(),
            Db::Sqlite { read, write } => read.usage() + write.usage(),
        }
    }

    /// Runs `work` in a task of its own, so that it ends even if whoever waits for it goes away. Who goes away before it has begun
    /// takes it along.
    async fn to_its_end<T, W>(&self, work: impl FnOnce(Self) -> W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let begin = async {
            let place = match &self.db {
                Db::Postgres(pool) => pool.place().await?,
                Db::Sqlite { write: pool, .. } => pool.place().await?,
            };
            let work = work(self.with_queue(Queue::None));
            let task = tokio::spawn(async move {
                let outcome = work.await;
                drop(place);
                outcome
            });
            task.await.map_err(|error| StoreError::Unexpected(error.into()))?
        };
        pool::within_bound(begin).await
    }

    /// Closes every connection; methods called afterwards answer [`StoreError::Unavailable`].
    pub fn close(&self) {
        match &self.db {
            Db::Postgres(pool) => pool.close(),
            Db::Sqlite { read, write } => {
                read.close();
                write.close();
            }
        }
    }
}

fn postgres_options(options: &PgConnectOptions) -> PgConnectOptions {
    options
        .clone()
        .application_name("momail-api-keys")
        .options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", "5000"),
            // Every frequent statement has its index. A plan that was made while a table was small must not read all of it later.
            ("enable_seqscan", "off"),
            // Compiling a statement takes a hundred times as long as running any of ours.
            ("jit", "off"),
            // sqlx cannot set keepalive on its sockets, so the server is asked to probe; our own side is covered by BOUND.
            ("tcp_keepalives_idle", "30"),
            ("tcp_keepalives_interval", "10"),
            ("tcp_keepalives_count", "3"),
        ])
        .disable_statement_logging()
}

fn sqlite_options(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .clone()
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        // With WAL, anything less than FULL may lose an acknowledged key when the power fails.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
}
