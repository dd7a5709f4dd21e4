//! How connections are opened, which cannot be seen from outside.

use std::os::unix::fs::PermissionsExt;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::Sqlite;

use super::pool::Lease;
use super::{Db, Store};
use crate::permission::Catalogue;

/// What every connection to SQLite must say; 2 is FULL.
const PRAGMAS: [(&str, i64); 4] = [
    ("select count(*) from pragma_journal_mode where journal_mode = 'wal'", 1),
    ("select synchronous from pragma_synchronous", 2),
    ("select foreign_keys from pragma_foreign_keys", 1),
    ("select timeout >= 5000 from pragma_busy_timeout", 1),
];

async fn assert_durable(lease: &mut Lease<Sqlite>) {
    for (query, expected) in PRAGMAS {
        let found: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut **lease).await.unwrap();
        assert_eq!(found, expected, "{query}");
    }
}

#[tokio::test]
async fn every_connection_to_sqlite_is_durable_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("momail.db");
    let catalogue = Catalogue::new(Vec::new()).unwrap().into();
    let store = Store::open(&format!("sqlite://{}", path.display()).parse().unwrap(), 4, catalogue).unwrap();
    store.migrate().await.unwrap();
    let Db::Sqlite { read, write } = &store.db else { panic!("the URL names SQLite") };
    // Held all at once, so that each is another one.
    let mut leases = vec![write.lease().await.unwrap()];
    for _ in 0..4 {
        leases.push(read.lease().await.unwrap());
    }
    for lease in &mut leases {
        assert_durable(lease).await;
    }
    for suffix in ["", "-wal", "-shm"] {
        let path = format!("{}{suffix}", path.display());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path}");
    }
}
