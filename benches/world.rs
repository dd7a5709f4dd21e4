//! What a run stands on: the databases with their keys, Redis, the bare programs, and the service whenever it is measured.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use tempfile::TempDir;

use super::accounts::{self, Accounts, KEYS_IN_LIST};
use super::load::ask;
use super::postgres::Postgres;
use super::process::Process;
use super::redis::Redis;
use super::requests::{request, to_revoke};
use super::rows::{COLLECTION, Setup};
use super::service::{Fleet, Needs};
use super::{Plan, progress};

/// Accounts on SQLite whose keys are in the file that the service is started on.
const KEYS_ON_SQLITE: usize = 100_000;

pub(crate) struct World<'a> {
    pub(crate) postgres: &'a Postgres,
    pub(crate) session: PgConnection,
    pub(crate) on_postgres: Accounts,
    pub(crate) on_sqlite: Accounts,
    pub(crate) bare: Fleet,
    redis: Option<&'a Redis>,
    /// Folders of processes are numbered.
    started: usize,
    directory: TempDir,
}

impl<'a> World<'a> {
    pub(crate) async fn prepare(postgres: &'a Postgres, redis: Option<&'a Redis>, plan: Plan) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("momail-bench.").tempdir()?;
        let counts = (plan.keys / KEYS_IN_LIST, plan.writers);
        progress(&format!("filling PostgreSQL with {} keys", plan.keys));
        let mut session = postgres.session().await?;
        let on_postgres =
            accounts::fill_postgres(&postgres.url, &mut session, counts).await.context("filling PostgreSQL")?;
        let counts = (plan.keys.min(KEYS_ON_SQLITE) / KEYS_IN_LIST, plan.writers);
        progress(&format!("filling SQLite with {} keys", counts.0 * KEYS_IN_LIST));
        let sqlite = sqlite_url(&sqlite_file(directory.path()));
        let on_sqlite = accounts::fill_sqlite(&sqlite, counts).await.context("filling SQLite")?;
        // Starts are measured on a file that nobody has open.
        fs::copy(sqlite_file(directory.path()), existing_file(directory.path()))?;

        let bare = Fleet(Vec::new());
        let mut world = Self { postgres, session, on_postgres, on_sqlite, bare, redis, started: 0, directory };
        world.start_bare_programs().await.context("starting the bare programs")?;
        Ok(world)
    }

    /// Their constants are the service's own answers.
    async fn start_bare_programs(&mut self) -> anyhow::Result<()> {
        let service = self.start(Setup::USUAL).await?;
        let service = service.0.first().context("there is no replica")?;
        let (_, key) = self.on_postgres.keys().next().context("there is no key")?;
        let mut arguments = vec![self.postgres.url.clone()];
        for (name, method, path) in [("list", "GET", "/v1/api-keys"), ("not-found", "DELETE", "/v1/api-keys/none")] {
            let (_, body) = ask(&service.public, &request(method, path, key.expose(), "")).await?;
            let file = self.directory.path().join(name);
            fs::write(&file, body)?;
            arguments.push(file.to_string_lossy().into_owned());
        }
        if let Some(redis) = self.redis {
            arguments.extend(["--redis".to_owned(), redis.url()]);
        }
        self.bare.0.push(Process::baseline(&self.directory.path().join("bare"), &arguments)?);
        self.compare_lists(&service.public).await
    }

    /// A comparison of programs that answer different things would be none.
    async fn compare_lists(&self, service: &str) -> anyhow::Result<()> {
        let bare = &self.bare.0.first().context("there are no bare programs")?.public;
        for (_, key) in self.on_postgres.keys().take(10) {
            let mut lists = Vec::new();
            for (address, path) in [(service, "/v1/api-keys"), (bare, "/sqlx/look-up-and-list")] {
                let (_, body) = ask(address, &request("GET", path, key.expose(), "")).await?;
                lists.push(without_uses(&body)?);
            }
            if lists[0] != lists[1] || lists[0]["meta"]["total"] != KEYS_IN_LIST {
                bail!("the service's list and the bare program's differ:\n{}\n{}", lists[0], lists[1]);
            }
        }
        Ok(())
    }

    /// Starts the service, which then is the only one on its database.
    pub(crate) async fn start(&mut self, setup: Setup) -> anyhow::Result<Fleet> {
        // Replicas of before were killed, and would be waited for until they are known to be gone.
        sqlx::query("delete from replicas").execute(&mut self.session).await?;
        self.started += 1;
        let directory = self.directory.path().join(format!("service-{}", self.started));
        fs::create_dir(&directory)?;
        let sqlite = self.sqlite();
        let database = if setup.on_sqlite { &sqlite } else { &self.postgres.url };
        let redis = self.redis.filter(|_| setup.shares_limits).map(Redis::url);
        Fleet::start(setup, &Needs { database, redis: redis.as_deref() }, &directory)
    }

    /// So many keys are made, and as many requests to revoke them.
    pub(crate) async fn revocations(&mut self, on_sqlite: bool, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
        let ids = if on_sqlite {
            accounts::add_spare_keys_to_sqlite(&self.sqlite(), &self.on_sqlite.writers, count).await?
        } else {
            accounts::add_spare_keys(&mut self.session, &self.on_postgres.writers, count).await?
        };
        Ok(to_revoke(COLLECTION, &self.accounts(on_sqlite).writers, ids))
    }

    /// How many keys there are and have been.
    pub(crate) async fn count_keys(&mut self, on_sqlite: bool) -> anyhow::Result<i64> {
        const COUNT: &str = "select count(*) from api_keys";
        Ok(if on_sqlite {
            let mut session = accounts::sqlite(&self.sqlite()).await?;
            sqlx::query_scalar(COUNT).fetch_one(&mut session).await?
        } else {
            sqlx::query_scalar(COUNT).fetch_one(&mut self.session).await?
        })
    }

    pub(crate) fn accounts(&self, on_sqlite: bool) -> &Accounts {
        if on_sqlite { &self.on_sqlite } else { &self.on_postgres }
    }

    fn sqlite(&self) -> String {
        sqlite_url(&sqlite_file(self.directory.path()))
    }

    /// Clears away what rows have left behind, which PostgreSQL would do in the middle of another.
    pub(crate) async fn tidy(&mut self) -> anyhow::Result<()> {
        let tables = ["accounts", "api_keys", "key_secrets", "changed", "change_feed", "replicas", "replica_progress"];
        let vacuum = AssertSqlSafe(format!("vacuum {}", tables.join(", ")));
        sqlx::query(vacuum).execute(&mut self.session).await?;
        Ok(())
    }

    /// A database file with keys that no process has open.
    pub(crate) fn existing_file(&self) -> PathBuf {
        existing_file(self.directory.path())
    }
}

fn sqlite_file(directory: &Path) -> PathBuf {
    directory.join("momail.db")
}

fn existing_file(directory: &Path) -> PathBuf {
    directory.join("existing.db")
}

pub(crate) fn sqlite_url(file: &Path) -> String {
    format!("sqlite://{}", file.display())
}

/// A list without what changes from request to request.
fn without_uses(body: &[u8]) -> anyhow::Result<Value> {
    let mut list: Value = serde_json::from_slice(body).with_context(|| String::from_utf8_lossy(body).into_owned())?;
    for key in list["data"].as_array_mut().into_iter().flatten() {
        key["lastUsed"] = Value::Null;
    }
    Ok(list)
}
