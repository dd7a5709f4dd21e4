//! A database as an earlier release left it: with its schema, and with rows that were made under it.

use std::fmt::Write;
use std::path::Path;

use momail_api_keys::secret::Secret;
use rand::rngs::SysRng;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqlSafeStr};
use uuid::Uuid;

use super::Database;

/// What the earlier release's clients hold.
pub(crate) struct Earlier {
    pub(crate) live: [String; 2],
    pub(crate) revoked: String,
}

/// The text of every migration, by its number.
fn migrations(engine: &str) -> Vec<Migration> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine);
    let read = |path: &Path| {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let (number, name) = name.split_once('_').unwrap();
        let text = AssertSqlSafe(std::fs::read_to_string(path).unwrap()).into_sql_str();
        Migration::new(number.parse().unwrap(), name.to_owned().into(), MigrationType::Simple, text, false)
    };
    std::fs::read_dir(folder).unwrap().map(|entry| read(&entry.unwrap().path())).collect()
}

/// The number of the newest migration.
pub(crate) fn latest() -> i64 {
    i64::try_from(migrations("sqlite").len()).unwrap()
}

impl Database {
    /// Brings an empty database to the schema `version`, and makes an account with two live keys and a revoked one.
    pub(crate) async fn of_release(&self, version: i64) -> Earlier {
        let engine = if self.is_postgres() { "postgres" } else { "sqlite" };
        let migrator = Migrator::with_migrations(migrations(engine));
        if self.is_postgres() {
            let mut connection = self.postgres_session().await;
            migrator.run_direct(Some(version), &mut connection, false).await.unwrap();
            connection.close().await.unwrap();
        } else {
            drop(self.open());
            let mut connection = self.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
            migrator.run_direct(Some(version), &mut connection, false).await.unwrap();
            connection.close().await.unwrap();
        }
        self.add_rows().await
    }

    async fn add_rows(&self) -> Earlier {
        let bytes = |bytes: &[u8]| {
            let digits = bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
            if self.is_postgres() { format!("decode('{digits}', 'hex')") } else { format!("x'{digits}'") }
        };
        let id = |id: Uuid| if self.is_postgres() { format!("'{id}'") } else { bytes(id.as_bytes()) };
        let (account, at) = (Uuid::now_v7(), "'2024-01-15T10:30:00+00:00'");
        let mut rows = format!(
            "insert into accounts (id, name, plan, created_at) values ({}, 'Of old', 'pro', {at});",
            id(account)
        );
        let keys = ["live", "live as well", "revoked"].map(|name| {
            let (key, secret) = (Uuid::now_v7(), Secret::generate(&mut SysRng).unwrap());
            let revoked = if name == "revoked" { at } else { "null" };
            writeln!(
                rows,
                "insert into api_keys (id, account_id, name, created_at, revoked_at)
                     values ({}, {}, '{name}', {at}, {revoked});
                 insert into key_secrets (prefix, key_id, hash, created_at) values ('{}', {}, {}, {at});",
                id(key),
                id(account),
                secret.prefix(),
                id(key),
                bytes(secret.hash().as_bytes()),
            )
            .unwrap();
            secret.expose().to_owned()
        });
        self.sql(&rows).await;
        let [one, other, revoked] = keys;
        Earlier { live: [one, other], revoked }
    }

    /// Holds what every later migration needs, until it is given back.
    pub(crate) async fn hold_up_migrations(&self) -> Hold {
        if self.is_postgres() {
            let mut session = self.url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
            let lock = "begin; lock table api_keys in access exclusive mode";
            sqlx::raw_sql(lock).execute(&mut session).await.unwrap();
            Hold::Postgres(session)
        } else {
            let mut session = self.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
            sqlx::raw_sql("begin immediate").execute(&mut session).await.unwrap();
            Hold::Sqlite(session)
        }
    }
}

pub(crate) enum Hold {
    Postgres(sqlx::PgConnection),
    Sqlite(sqlx::SqliteConnection),
}

impl Hold {
    pub(crate) async fn give_back(self) {
        match self {
            Self::Postgres(session) => session.close().await.unwrap(),
            Self::Sqlite(session) => session.close().await.unwrap(),
        }
    }
}
