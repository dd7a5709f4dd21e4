//! The PostgreSQL server: the one that is given, or one of the benchmark's own, as its packages set it up, with `fsync` on.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{process, progress};

const MISSING: &str = "PostgreSQL is missing: set DATABASE_URL to a server where a database may be made, or install one \
                       (Debian and Ubuntu: apt install postgresql)";

/// A database of the benchmark's own.
pub(crate) struct Postgres {
    /// Version and settings that matter.
    pub(crate) description: String,
    pub(crate) url: String,
    server_url: String,
    /// The server's first process, if it runs on this machine.
    postmaster: Option<u32>,
    _private: Option<Private>,
}

impl Postgres {
    pub(crate) async fn prepare() -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a setting of the benchmark, not of the service")]
        let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        let (server_url, private) = if let Some(url) = given {
            (url, None)
        } else {
            progress("starting PostgreSQL");
            let private = Private::start().await?;
            (private.url(), Some(private))
        };
        let mut session = connect(&server_url).await?;
        let name = database_name();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut session).await.context("no database can be made")?;
        let postmaster = postmaster(&mut session).await?;
        let description = describe(&mut session).await?;
        session.close().await?;
        let url = with_database(&server_url, &name)?;
        Ok(Self { description, url, server_url, postmaster, _private: private })
    }

    pub(crate) async fn session(&self) -> anyhow::Result<PgConnection> {
        connect(&self.url).await
    }

    /// CPU time of the whole server until now; `None` if it is on another machine.
    pub(crate) fn cpu(&self) -> anyhow::Result<Option<Duration>> {
        self.postmaster.map(process::cpu_of_family).transpose()
    }

    pub(crate) async fn remove(&self) {
        let drop = AssertSqlSafe(format!("drop database if exists {} with (force)", database_name()));
        if let Ok(mut session) = connect(&self.server_url).await {
            let _ = sqlx::raw_sql(drop).execute(&mut session).await;
        }
    }
}

fn database_name() -> String {
    format!("momail_bench_{}", std::process::id())
}

/// The same URL with another database.
fn with_database(url: &str, name: &str) -> anyhow::Result<String> {
    let (url, parameters) = url.split_once('?').map_or((url, String::new()), |(url, rest)| (url, format!("?{rest}")));
    let (scheme, rest) = url.split_once("://").context("DATABASE_URL is not postgres://…")?;
    let host = rest.split('/').next().unwrap_or_default();
    Ok(format!("{scheme}://{host}/{name}{parameters}"))
}

async fn connect(url: &str) -> anyhow::Result<PgConnection> {
    let options: PgConnectOptions = url.parse().ok().context("DATABASE_URL is not postgres://…")?;
    options.disable_statement_logging().connect().await.context("PostgreSQL does not answer")
}

/// The parent of the process that serves this session, if that is here: its title names our end of the connection.
async fn postmaster(session: &mut PgConnection) -> anyhow::Result<Option<u32>> {
    let row = sqlx::query("select pg_backend_pid(), inet_client_port()").fetch_one(session).await?;
    let (pid, port): (i32, Option<i32>) = (row.try_get(0)?, row.try_get(1)?);
    let Some(port) = port else { return Ok(None) };
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if !String::from_utf8_lossy(&title).contains(&format!("({port})")) {
        return Ok(None);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("/proc/PID/status has no PPid")?;
    Ok(Some(parent.trim().parse()?))
}

async fn describe(session: &mut PgConnection) -> anyhow::Result<String> {
    const SETTINGS: &str = "
        select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
               current_setting('shared_buffers')";
    let row = sqlx::query(SETTINGS).fetch_one(session).await?;
    let [version, fsync, commit, buffers] =
        [0, 1, 2, 3].map(|column| row.try_get::<String, _>(column).unwrap_or_default());
    Ok(format!("PostgreSQL {version}, fsync {fsync}, synchronous_commit {commit}, shared_buffers {buffers}"))
}

/// A server that goes with this value.
struct Private {
    directory: TempDir,
    port: u16,
    server: Child,
}

impl Private {
    async fn start() -> anyhow::Result<Self> {
        let programs = programs().context(MISSING)?;
        // Not in $TMPDIR, which the server's user may not reach; and a socket's path must be short.
        let directory = tempfile::Builder::new().prefix("momail-bench-pg.").tempdir_in("/tmp")?;
        let owner = owner()?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group))?;
        }
        let command = |program: &str| {
            let mut command = Command::new(programs.join(program));
            if let Some((user, group)) = owner {
                command.uid(user).gid(group);
            }
            command.current_dir("/tmp").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let data = directory.path().join("data");
        let options = ["--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--pgdata"];
        if !command("initdb").args(options).arg(&data).status()?.success() {
            bail!("initdb failed in {}", directory.path().display());
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = command("postgres");
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c"]);
        server.arg(format!("unix_socket_directories={}", directory.path().display()));
        // Signals of the terminal are for the benchmark, which then stops the server itself.
        let private = Self { directory, port, server: server.process_group(0).spawn()? };
        for _ in 0..300 {
            if let Ok(session) = connect(&private.url()).await {
                session.close().await?;
                return Ok(private);
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("the PostgreSQL in {} does not answer", private.directory.path().display())
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SIGQUIT: at once, and its children with it.
        let _ = Command::new("kill").args(["-QUIT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}

/// The folder with the newest `initdb` and `postgres` of those that packages install, or that on the path.
fn programs() -> Option<PathBuf> {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let packaged = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = packaged.filter(|path| is_complete(&path.join("bin"))).max_by_key(version);
    let path = std::env::var_os("PATH").unwrap_or_default();
    newest.map(|path| path.join("bin")).or_else(|| std::env::split_paths(&path).find(|path| is_complete(path)))
}

fn is_complete(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
}

/// The user and group to run the server as; `None` if it can be this process's own. PostgreSQL refuses to run as root.
fn owner() -> anyhow::Result<Option<(u32, u32)>> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:")).context("root needs a user `postgres`")?;
    let numbers: Vec<u32> = line.split(':').skip(2).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, group] = numbers[..] else { bail!("the user `postgres` has no number") };
    Ok(Some((user, group)))
}
