//! Backups made under load and restored, by the README's own commands.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::support::{
    Connection, Database, Ledger, Load, Promises, Section, Service, accounts, is_long, opens, type_in, type_well,
    unlimited,
};

const WRITERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(15);

fn rounds() -> usize {
    if is_long() { 10 } else { 2 }
}

/// What was promised before a backup began, and in all.
struct Told {
    before: Promises,
    all: Promises,
}

/// Makes a backup in the middle of a load, and stops the service some time later.
async fn back_up_under_load(database: &Database, folder: &Path, commands: &str) -> Told {
    let keys = accounts(database, WRITERS).await;
    let ledger = Arc::new(Ledger::new());
    let mut service = Service::start(&unlimited(&database.url));
    service.wait_until_ready_is(200).await;
    let load = Load::on_record(&ledger, &service.public, &keys, PAUSE);
    wait_for_revoked(&ledger, 2 * WRITERS).await;
    let before = ledger.promises();
    block_in_place(|| type_well(folder, database, commands));
    let then = ledger.promises().revoked.len();
    wait_for_revoked(&ledger, then + 2 * WRITERS).await;
    load.end().await;
    block_in_place(|| service.terminate());
    Told { before, all: ledger.promises() }
}

async fn wait_for_revoked(ledger: &Ledger, number: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while ledger.promises().revoked.len() < number {
        assert!(Instant::now() < deadline, "nobody revokes");
        sleep(Duration::from_millis(20)).await;
    }
}

fn is_private(path: &Path) -> bool {
    path.metadata().unwrap().permissions().mode() & 0o777 == 0o600
}

/// What was promised before the backup holds, but for what was revoked since, which stays revoked.
async fn assert_restored(database: &Database, told: &Told) {
    let service = Service::start(&unlimited(&database.url));
    service.wait_until_ready_is(200).await;
    let mut connection = Connection::open(&service.public).await.unwrap();
    let still: HashSet<_> = told.all.created.iter().map(|made| &made.id).collect();
    let (mut kept, mut revived) = (0, 0);
    for made in told.before.created.iter().filter(|made| still.contains(&made.id)) {
        assert!(opens(&mut connection, &made.key).await, "{} was acknowledged before the backup", made.id);
        kept += 1;
    }
    let known: HashSet<_> = told.before.created.iter().map(|made| &made.id).collect();
    for made in &told.all.revoked {
        assert!(!opens(&mut connection, &made.key).await, "{} was revoked", made.id);
        revived += usize::from(known.contains(&made.id));
    }
    eprintln!("{kept} keys kept, {} revoked, {revived} of them since the backup", told.all.revoked.len());
    assert!(kept > 0 && revived > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readmes_commands_back_sqlite_up_and_restore_it() {
    let section = Section::named("Backup and restore: SQLite");
    let [back_up, restore, revoke_again] = section.blocks();
    let lines: Vec<_> = back_up.lines().collect();
    let [umask, first, second] = lines[..] else { panic!("{lines:?}") };
    for round in 0..rounds() {
        let database = Database::sqlite();
        let file = database.path();
        let folder = file.parent().unwrap();
        let either = [first, second][round % 2];
        let told = back_up_under_load(&database, folder, &format!("{umask}\n{either}")).await;
        assert!(is_private(&folder.join("backup.db")));
        let check = section.command("sqlite3 backup.db");
        assert_eq!(type_well(folder, &database, check), "ok\n");
        assert_eq!(type_well(folder, &database, restore), "");
        assert!(is_private(&file));
        assert_eq!(type_well(folder, &database, revoke_again), "");
        assert_restored(&database, &told).await;
        database.assert_sound().await;
        database.assert_private();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readmes_commands_back_postgresql_up_and_restore_it() {
    let section = Section::named("Backup and restore: PostgreSQL");
    let [back_up, restore, revoke_again] = section.blocks();
    for _ in 0..rounds() {
        let database = Database::postgres().await;
        let folder = TempDir::new().unwrap();
        let told = back_up_under_load(&database, folder.path(), back_up).await;
        assert!(is_private(&folder.path().join("momail.dump")));
        assert_eq!(type_well(folder.path(), &database, restore), "");
        // It complains of those that need it no more, as the README says.
        let (printed, _) = type_in(folder.path(), &database, revoke_again);
        assert!(printed.contains("revoked"), "{printed}");
        assert_restored(&database, &told).await;
    }
}
