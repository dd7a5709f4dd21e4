//! The migrations, compiled in, and how any number of processes bring a database up to date at once.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, SqlSafeStr};
use tokio::time::{sleep, timeout};

use super::pool::is_busy;
use super::{BOUND, Result, Store, StoreError, on};

/// Version, description and text; a file's name is its version in four digits and its description, the same in both folders of
/// `migrations/`.
type Migrations = &'static [(i64, &'static str, &'static str)];

macro_rules! migrations {
    ($engine:literal: $(($version:literal, $digits:literal, $name:literal)),+ $(,)?) => {
        &[$((
            $version,
            $name,
            include_str!(concat!("../../migrations/", $engine, "/", $digits, "_", $name, ".sql")),
        )),+]
    };
}

macro_rules! both_engines {
    ($($migration:tt),+ $(,)?) => {
        const POSTGRES: Migrations = migrations!("postgres": $($migration),+);
        const SQLITE: Migrations = migrations!("sqlite": $($migration),+);
    };
}

both_engines!(
    (1, "0001", "accounts_and_keys"),
    (2, "0002", "change_feed"),
    (3, "0003", "permissions"),
    (4, "0004", "disabled_keys"),
    (5, "0005", "names_by_bytes"),
    (6, "0006", "idempotent_answers"),
    (7, "0007", "events"),
    (8, "0008", "usage"),
    (9, "0009", "expiry"),
    (10, "0010", "changes_by_commit")
);

/// Where sqlx notes what it has applied.
const TABLE: &str = "_sqlx_migrations";
const LATEST_APPLIED: &str = "select coalesce(max(version), 0) from _sqlx_migrations";
/// The advisory lock under which PostgreSQL is migrated: "momail" in ASCII.
const LOCK: i64 = 0x6d6f_6d61_696c;
/// Waiting inside the database would block another's `create index concurrently`, so the lock is tried again and again.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// A server that waits for somebody else's lock does not see that we have gone, and would keep ours: it is asked to look, where it
/// knows how (from PostgreSQL 14 on).
const LOOK_FOR_US: &str =
    "select set_config(name, '1s', false) from pg_settings where name = 'client_connection_check_interval'";

/// Where migrations run: on a connection of their own, since they may take longer than any statement of a request.
#[derive(Clone)]
pub(super) enum Source {
    Postgres(Arc<PgConnectOptions>),
    Sqlite(Arc<SqliteConnectOptions>),
}

/// What a migration found to do.
#[derive(Clone, Copy, Debug)]
pub struct Migrated {
    /// The schema's version now.
    pub version: i64,
    /// How many steps this run carried out.
    pub applied: usize,
}

pub(super) async fn migrate(source: &Source) -> Result<Migrated> {
    match source {
        Source::Postgres(options) => migrate_postgres(options).await,
        Source::Sqlite(options) => {
            let mut is_told = false;
            loop {
                if let Some(migrated) = migrate_sqlite(options).await? {
                    return Ok(migrated);
                }
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!("waiting for another process that holds the lock of the database file");
                }
                sleep(LOCK_RETRY).await;
            }
        }
    }
}

/// All migrations or none, under the one lock that SQLite has; `None` if another process holds it.
async fn migrate_sqlite(options: &SqliteConnectOptions) -> Result<Option<Migrated>> {
    let mut connection = match SqliteConnection::connect_with(options).await {
        Err(error) if is_busy(&error) => return Ok(None),
        connection => connection?,
    };
    // Begun without the lock, the first statement that writes would fail rather than wait for it.
    let mut tx = match connection.begin_with("begin immediate").await {
        Err(error) if is_busy(&error) => return Ok(None),
        tx => tx?,
    };
    let migrated = run(SQLITE, &mut *tx).await?;
    tx.commit().await?;
    connection.close().await?;
    Ok(Some(migrated))
}

async fn migrate_postgres(options: &PgConnectOptions) -> Result<Migrated> {
    let options = options.clone().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
    let mut connection = timeout(BOUND, PgConnection::connect_with(&options))
        .await
        .map_err(|_| StoreError::Unavailable("it did not answer in time".to_owned()))??;
    sqlx::query(LOOK_FOR_US).execute(&mut connection).await?;
    loop {
        let locked =
            sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut connection).await?;
        if locked {
            break;
        }
        sleep(LOCK_RETRY).await;
    }
    // The lock goes with the connection, whatever happens in between.
    let outcome = run(POSTGRES, &mut connection).await;
    connection.close().await?;
    outcome
}

async fn run<C: Migrate>(migrations: Migrations, connection: &mut C) -> Result<Migrated> {
    let mut migrator = Migrator::with_migrations(
        migrations
            .iter()
            .map(|&(version, name, sql)| {
                Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
            })
            .collect(),
    );
    migrator.set_locking(false);
    connection.ensure_migrations_table(TABLE).await.map_err(from_migrate)?;
    let before = connection.list_applied_migrations(TABLE).await.map_err(from_migrate)?.len();
    migrator.run_direct(None, connection, false).await.map_err(from_migrate)?;
    Ok(Migrated { version: latest(migrations), applied: migrations.len() - before })
}

pub(super) async fn check(store: &Store) -> Result<()> {
    let found = on!(store, read, connection => {
        sqlx::query_scalar(LATEST_APPLIED).fetch_one(&mut *connection).await.or_else(|error| match &error {
            // No table of migrations yet: none was ever applied.
            sqlx::Error::Database(db) if matches!(db.code().as_deref(), Some("42P01" | "1")) => Ok(0),
            _ => Err(error),
        })
    })?;
    let needed = latest(POSTGRES);
    match found.cmp(&needed) {
        Ordering::Less => Err(StoreError::NotMigrated { found, needed }),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(too_new(found)),
    }
}

fn latest(migrations: Migrations) -> i64 {
    migrations.iter().map(|&(version, ..)| version).max().unwrap_or_default()
}

fn too_new(version: i64) -> StoreError {
    let message =
        format!("it already has migration {version}, which this version does not know; run the newer version");
    StoreError::Schema(message)
}

fn from_migrate(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => StoreError::from(error),
        MigrateError::VersionMissing(version) => too_new(version),
        error => StoreError::Schema(error.to_string()),
    }
}
