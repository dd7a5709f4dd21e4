//! The schema: the same on both stores, and brought up to date by any number of processes at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sqlx::{AssertSqlSafe, Row};

use crate::support::{Database, Service};

const ROUNDS: usize = 3;

fn names(engine: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine);
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn both_folders_hold_the_same_numbers_and_names() {
    assert!(!names("postgres").is_empty());
    assert_eq!(names("postgres"), names("sqlite"));
}

#[tokio::test]
async fn both_schemas_have_the_same_columns() {
    let sqlite = Database::sqlite();
    sqlite.open().migrate().await.unwrap();
    let postgres = Database::postgres().await;
    let mut session = postgres.postgres_session().await;
    let sql = "select table_name || '.' || column_name as name from information_schema.columns
               where table_schema = 'public' and table_name not like '\\_sqlx%'";
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut session).await.unwrap();
    let of_postgres: BTreeSet<String> = rows.iter().map(|row| row.get("name")).collect();
    assert!(of_postgres.len() > 20, "{of_postgres:?}");
    for column in &of_postgres {
        let (table, column) = column.split_once('.').unwrap();
        let sql = format!("select count(*) from pragma_table_info('{table}') where name = '{column}'");
        assert_eq!(sqlite.number(&sql).await, 1, "{table}.{column}");
    }
    let sql = "select count(*) from sqlite_schema s, pragma_table_info(s.name)
               where s.type in ('table', 'view') and s.name not like '\\_sqlx%' escape '\\' and s.name not like 'sqlite%'
                 and s.name <> 'announced'"; // which stands for a function that SQLite has not
    assert_eq!(usize::try_from(sqlite.number(sql).await).unwrap(), of_postgres.len());
}

#[tokio::test]
async fn eight_replicas_start_together_on_an_empty_postgres() {
    for _ in 0..ROUNDS {
        let database = Database::empty_postgres().await;
        let url = database.url.as_str();
        let replicas: Vec<_> = (0..8).map(|_| Service::spawn(&[("DATABASE_URL", url)])).collect();
        for mut replica in replicas {
            replica.wait_until_it_listens();
            replica.wait_until_ready_is(200).await;
            assert!(!replica.stdout().contains("first key"), "PostgreSQL may be shared, so no key is made there");
        }
        assert_eq!(database.number("select count(*) - count(distinct version) from _sqlx_migrations").await, 0);
    }
}

#[tokio::test]
async fn of_processes_that_start_together_on_a_new_file_one_prints_the_first_key() {
    for _ in 0..ROUNDS {
        let database = Database::sqlite();
        let settings = [("DATABASE_URL", database.url.as_str())];
        let processes: Vec<_> = (0..4).map(|_| Service::spawn(&settings)).collect();
        let mut printed = 0;
        for mut process in processes {
            process.wait_until_it_listens();
            process.wait_until_ready_is(200).await;
            printed += process.stdout().matches("first key: ").count();
        }
        assert_eq!(printed, 1);
        assert_eq!(database.number("select count(*) from accounts").await, 1);
        let again = Service::start(&settings);
        assert!(!again.stdout().contains("first key"));
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_the_reason() {
    for database in [Database::sqlite(), Database::postgres().await] {
        database.open().migrate().await.unwrap();
        let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                     values (9999, 'newer', true, 'x', 0)";
        database.sql(newer).await;
        let mut replica = Service::spawn(&[("DATABASE_URL", &database.url)]);
        assert_eq!(replica.wait().code(), Some(1));
        let logs = replica.logs();
        assert!(logs.contains("it already has migration 9999, which this version does not know"), "{logs}");
        assert!(!replica.stdout().contains("listening"));
    }
}

#[tokio::test]
async fn without_migrating_at_start_a_replica_waits_until_somebody_has() {
    for database in [Database::sqlite(), Database::empty_postgres().await] {
        let settings = [("DATABASE_URL", database.url.as_str()), ("MOMAIL_STORE__MIGRATE_ON_START", "false")];
        let replica = Service::start(&settings);
        assert_eq!(replica.get_internal("/readyz").await.status, 503);
        assert_eq!(replica.get("/v1/api-keys", "mk_x").await.status, 503);
        assert_eq!(replica.get_internal("/livez").await.status, 200);
        let migrated = Service::command().arg("migrate").envs(settings).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        replica.wait_until_ready_is(200).await;
    }
}
