//! A database for each test, and a PostgreSQL server for tests that maltreat one.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use momail_api_keys::permission::Catalogue;
use momail_api_keys::store::{Store, StoreUrl};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Relay, is_long, leaks, setting};

/// Permissions as the operator of MoMail may choose them.
pub(crate) const OTHER_PERMISSIONS: [&str; 3] = ["domains:read", "domains:write", "emails:read"];

fn catalogue() -> Arc<Catalogue> {
    Arc::new(Catalogue::new(OTHER_PERMISSIONS.map(str::to_owned).into()).unwrap())
}

/// An empty database with the current schema. It goes when it is dropped, or with its server.
pub(crate) struct Database {
    pub(crate) url: String,
    directory: Option<TempDir>,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("momail.db").display());
        Self { url, directory: Some(directory) }
    }

    /// Copied from a template that is migrated once: a NOTIFY reaches a whole database, so a schema each would not do.
    pub(crate) async fn postgres() -> Self {
        static TEMPLATE: OnceCell<String> = OnceCell::const_new();
        let template = TEMPLATE.get_or_init(async || {
            let template = Self::empty_postgres().await;
            template.open().migrate().await.unwrap();
            template.url.rsplit_once('/').unwrap().1.to_owned()
        });
        let template = template.await;
        Self::create(&format!(" template {template}")).await
    }

    /// A PostgreSQL database without any table.
    pub(crate) async fn empty_postgres() -> Self {
        Self::create("").await
    }

    async fn create(suffix: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = setting("TEST_DATABASE_URL");
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let options: PgConnectOptions = server.parse().unwrap();
        let mut connection = options.disable_statement_logging().connect().await.unwrap();
        let create = format!("create database {name}{suffix}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        Self { url, directory: None }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.directory.is_none()
    }

    /// The SQLite file.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.as_ref().unwrap().path().join("momail.db")
    }

    /// A store of its own on this database, not migrated.
    pub(crate) fn open(&self) -> Store {
        let url: StoreUrl = self.url.parse().unwrap();
        Store::open(&url, 10, catalogue()).unwrap()
    }

    /// Runs SQL as an operator would, in its own session.
    pub(crate) async fn sql(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.is_postgres() {
            let mut connection = self.postgres_session().await;
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        } else {
            let options = self.sqlite_options();
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
    }

    /// The complaint about SQL that the database must refuse.
    pub(crate) async fn refused(&self, sql: &str) -> String {
        let sql = AssertSqlSafe(sql.to_owned());
        let outcome = if self.is_postgres() {
            sqlx::raw_sql(sql).execute(&mut self.postgres_session().await).await.map(drop)
        } else {
            let options = self.sqlite_options();
            sqlx::raw_sql(sql).execute(&mut options.connect().await.unwrap()).await.map(drop)
        };
        outcome.unwrap_err().to_string()
    }

    /// The one number that a query of the operator's yields.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        if self.is_postgres() {
            query.fetch_one(&mut self.postgres_session().await).await.unwrap()
        } else {
            let options = self.sqlite_options();
            let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
            query.fetch_one(&mut options.connect().await.unwrap()).await.unwrap()
        }
    }

    /// Makes every statement of a service at the URL given back take longer, for as long as the strain lives: PostgreSQL is far
    /// away, and into a SQLite file somebody else writes as well.
    pub(crate) async fn strained(&self, by: Duration) -> (String, Strain) {
        if self.is_postgres() {
            let port = self.url.parse::<PgConnectOptions>().unwrap().get_port();
            let relay = Relay::to(port).await;
            relay.delay(by, 1);
            let url = self.url.replace(&format!(":{port}/"), &format!(":{}/", relay.port));
            return (url, Strain::Far(relay));
        }
        let options: sqlx::sqlite::SqliteConnectOptions = self.url.parse().unwrap();
        let mut connection = options.busy_timeout(Duration::from_secs(20)).connect().await.unwrap();
        let writer = tokio::spawn(async move {
            loop {
                sqlx::raw_sql("begin immediate").execute(&mut connection).await.unwrap();
                sleep(by).await;
                sqlx::raw_sql("commit").execute(&mut connection).await.unwrap();
                // Whoever finds a file busy looks again and again, ever more seldom.
                sleep(by).await;
            }
        });
        (self.url.clone(), Strain::Busy(writer.abort_handle()))
    }

    /// What an operator's backup of a PostgreSQL database holds, as text.
    pub(crate) fn dump(&self) -> Vec<u8> {
        self.try_dump().unwrap()
    }

    /// `None` if its server is gone.
    fn try_dump(&self) -> Option<Vec<u8>> {
        let program = Path::new(&setting("TEST_POSTGRES_BIN")).join("pg_dump");
        let dumped = Command::new(program).arg(&self.url).stderr(Stdio::null()).output().unwrap();
        dumped.status.success().then_some(dumped.stdout)
    }

    fn sqlite_options(&self) -> SqliteConnectOptions {
        self.url.parse::<SqliteConnectOptions>().unwrap().disable_statement_logging()
    }

    pub(crate) async fn postgres_session(&self) -> PgConnection {
        // Not logged, since a test may ask for what nobody must find.
        self.url.parse::<PgConnectOptions>().unwrap().disable_statement_logging().connect().await.unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(directory) = &self.directory {
            for file in fs::read_dir(directory.path()).unwrap() {
                // The last connection to close removes the files beside the database's own.
                let bytes = file.and_then(|file| fs::read(file.path())).unwrap_or_default();
                leaks::assert_none("the database", &bytes);
            }
        } else if is_long()
            && let Some(dumped) = self.try_dump()
        {
            leaks::assert_none("the database", &dumped);
        }
    }
}

/// What makes a database slow, until it is dropped.
pub(crate) enum Strain {
    Far(#[expect(dead_code, reason = "it lives as long as the strain")] Relay),
    Busy(AbortHandle),
}

impl Drop for Strain {
    fn drop(&mut self) {
        if let Self::Busy(writer) = self {
            writer.abort();
        }
    }
}

/// A PostgreSQL server of the test's own, to be frozen, killed and restarted.
pub(crate) struct PrivatePostgres {
    directory: TempDir,
    port: u16,
    max_connections: u32,
    server: Option<Child>,
}

impl PrivatePostgres {
    pub(crate) async fn start() -> Self {
        Self::start_for(100).await
    }

    /// For so many connections, three of which are kept for superusers.
    pub(crate) async fn start_for(max_connections: u32) -> Self {
        let mut initdb = as_postgres("initdb");
        initdb.args(["--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]);
        Self::made_by(initdb, max_connections).await
    }

    /// Another server that follows this one, and may only be read until it is promoted.
    pub(crate) async fn standby(&self) -> Self {
        let mut copy = as_postgres("pg_basebackup");
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--dbname", &self.url()]);
        Self::made_by(copy, self.max_connections).await
    }

    /// Runs a server on the data that a command makes.
    async fn made_by(mut command: Command, max_connections: u32) -> Self {
        // Not in $TMPDIR, which the server's user may not reach; and a socket's path must be short.
        let directory = tempfile::Builder::new().prefix("momail-pg.").tempdir_in("/tmp").unwrap();
        give_to_postgres(directory.path());
        command.args(["--no-sync", "--pgdata"]).arg(directory.path().join("data"));
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{command:?} failed");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut postgres = Self { directory, port, max_connections, server: None };
        postgres.run().await;
        postgres
    }

    /// Starts the server, again after [`PrivatePostgres::stop`], on the same port, and waits until it answers.
    pub(crate) async fn run(&mut self) {
        let server = as_postgres("postgres")
            .arg("-D")
            .arg(self.directory.path().join("data"))
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .arg("-c")
            .arg(format!("max_connections={}", self.max_connections))
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.directory.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(server);
        let options: PgConnectOptions = self.url().parse().unwrap();
        for _ in 0..300 {
            if let Ok(connection) = options.connect().await {
                connection.close().await.unwrap();
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("PostgreSQL does not answer");
    }

    /// Immediate shutdown, as after a crash: SIGQUIT.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            signal("QUIT", &[server.id()]);
            server.wait().unwrap();
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn database(&self) -> Database {
        Database { url: self.url(), directory: None }
    }

    /// A database of a user who is no superuser.
    pub(crate) async fn users_database(&self) -> Database {
        self.database().sql("create user keys").await;
        self.database().sql("create database keys owner keys").await;
        Database { url: format!("postgres://keys@127.0.0.1:{}/keys", self.port), directory: None }
    }

    /// Stops the server and all its backends in the middle of whatever they do, without closing anything.
    pub(crate) fn freeze(&self) {
        signal("STOP", &self.processes());
    }

    pub(crate) fn thaw(&self) {
        signal("CONT", &self.processes());
    }

    fn processes(&self) -> Vec<u32> {
        let postmaster = self.server.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        std::iter::once(postmaster).chain(children).collect()
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.thaw();
            self.stop();
        }
    }
}

/// Sends a signal to processes that this test started.
pub(crate) fn signal(name: &str, pids: &[u32]) {
    // A backend may have ended meanwhile, so the outcome says nothing.
    let told = Command::new("kill")
        .arg(format!("-{name}"))
        .args(pids.iter().map(u32::to_string))
        .stderr(Stdio::null())
        .status();
    told.expect("there is a program kill");
}

/// PostgreSQL refuses to run as root, so root runs it as its own user.
fn as_postgres(program: &str) -> Command {
    let mut command = Command::new(Path::new(&setting("TEST_POSTGRES_BIN")).join(program));
    as_its_user(&mut command);
    command
}

/// The same for what belongs to PostgreSQL.
pub(super) fn as_its_user(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = postgres_user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/tmp")
}

pub(super) fn give_to_postgres(directory: &Path) {
    if let Some((uid, gid)) = postgres_user() {
        std::os::unix::fs::chown(directory, Some(uid), Some(gid)).unwrap();
    }
}

/// The user and group to change to; `None` if this process is not root.
fn postgres_user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("there is a user postgres");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}
