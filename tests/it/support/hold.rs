//! Somebody else who holds the database's lock: readers go on, and whoever wants to write waits.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::Database;

pub(crate) enum Hold {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Hold {
    pub(crate) async fn on(database: &Database) -> Self {
        if database.is_postgres() {
            let mut session = database.postgres_session().await;
            let lock = "begin; lock table api_keys in exclusive mode";
            sqlx::raw_sql(lock).execute(&mut session).await.unwrap();
            return Self::Postgres(session);
        }
        let mut session = database.url.parse::<SqliteConnectOptions>().unwrap().connect().await.unwrap();
        sqlx::raw_sql("begin immediate").execute(&mut session).await.unwrap();
        Self::Sqlite(session)
    }

    pub(crate) async fn release(self) {
        match self {
            Self::Postgres(session) => session.close().await.unwrap(),
            Self::Sqlite(session) => session.close().await.unwrap(),
        }
    }
}
