//! What must be true of a database at every moment, whoever was killed in the middle of what.

use std::os::unix::fs::PermissionsExt;

use super::Database;

/// Each counts what must not be there.
const FAULTS: [&str; 6] = [
    // A key that was not acknowledged is there with its one secret, once, and counted, or it is not there.
    "select count(*) from api_keys k where (select count(*) from key_secrets s where s.key_id = k.id) <> 1",
    "select count(*) - count(distinct name) from api_keys where name <> 'first key'",
    "select count(*) from accounts a
     where live_keys <> (select count(*) from api_keys k where k.account_id = a.id and k.revoked_at is null)",
    // Each change has its event, and each event its change.
    "select count(*) from (
         select k.id from api_keys k left join events e on e.key_id = k.id and e.event = 'created'
         group by k.id having count(e.id) <> 1) as faults",
    "select count(*) from (
         select k.id from api_keys k left join events e on e.key_id = k.id and e.event = 'revoked'
         group by k.id, k.revoked_at having count(e.id) <> case when k.revoked_at is null then 0 else 1 end) as faults",
    "select count(*) from events e left join api_keys k on k.id = e.key_id where e.key_id is not null and k.id is null",
];

impl Database {
    /// There is no half of anything, and nobody else may read the files.
    pub(crate) async fn assert_whole(&self) {
        for fault in FAULTS {
            assert_eq!(self.number(fault).await, 0, "{fault}");
        }
        if !self.is_postgres() {
            self.assert_sound().await;
            self.assert_private();
        }
    }

    /// The file is as SQLite wants it to be.
    pub(crate) async fn assert_sound(&self) {
        let fault = "select count(*) from pragma_integrity_check where integrity_check <> 'ok'";
        assert_eq!(self.number(fault).await, 0);
        assert_eq!(self.number("select count(*) from pragma_foreign_key_check").await, 0);
    }

    /// Nobody but its owner may read the file of a database in use, or those that SQLite keeps beside it.
    pub(crate) fn assert_private(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let path = format!("{}{suffix}", self.path().display());
            // SQLite takes the other two away when nobody uses the file any more.
            let Ok(file) = std::fs::metadata(&path) else { continue };
            assert_eq!(file.permissions().mode() & 0o777, 0o600, "{path}");
        }
    }
}
