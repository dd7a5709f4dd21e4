//! What a run stands on: the measured processes, their databases, and requests to them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use sqlx::PgConnection;
use tempfile::TempDir;

use super::accounts::{self, Account, Accounts, KEYS_IN_LIST};
use super::baseline::X_ACCOUNT;
use super::load::{Load, ask};
use super::postgres::Postgres;
use super::process::{Process, memory_of};
use super::progress;
use super::rows::{Row, Server, Work};

const NEW_KEY: &str = r#"{"name":"Production API"}"#;

pub(crate) struct World<'a> {
    pub(crate) postgres: &'a Postgres,
    session: PgConnection,
    on_postgres: Accounts,
    on_sqlite: Accounts,
    product: Process,
    product_on_sqlite: Process,
    baseline: Process,
    directory: TempDir,
}

impl<'a> World<'a> {
    pub(crate) async fn prepare(postgres: &'a Postgres, count: usize) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("momail-bench.").tempdir()?;
        let folder = |name: &str| {
            let folder = directory.path().join(name);
            fs::create_dir(&folder).map(|()| folder)
        };
        progress(&format!("filling both databases with {count} accounts of {KEYS_IN_LIST} keys"));
        let (session, on_postgres) = accounts::fill_postgres(&postgres.url, postgres.session().await?, count)
            .await
            .context("filling PostgreSQL")?;
        let sqlite = sqlite_url(&sqlite_file(directory.path()));
        let on_sqlite = accounts::fill_sqlite(&sqlite, count).await.context("filling SQLite")?;
        // Starts are measured on a file that nobody has open.
        fs::copy(sqlite_file(directory.path()), existing_file(directory.path()))?;

        progress("starting the service and the bare programs");
        let product = Process::product(&folder("service")?, &postgres.url)?;
        let product_on_sqlite = Process::product(&folder("service-on-sqlite")?, &sqlite)?;
        let key = &on_postgres.readers.first().context("there is no account")?.key;
        let bodies = [("list", "GET", "/v1/api-keys"), ("not-found", "DELETE", "/v1/api-keys/none")];
        let mut arguments = vec![postgres.url.clone()];
        for (name, method, path) in bodies {
            let (_, body) = ask(&product.address, &request(method, path, key, "")).await?;
            let file = directory.path().join(name);
            fs::write(&file, body)?;
            arguments.push(file.to_string_lossy().into_owned());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let baseline = Process::baseline(&folder("baseline")?, &arguments)?;
        let world = Self { postgres, session, on_postgres, on_sqlite, product, product_on_sqlite, baseline, directory };
        world.compare_lists().await?;
        Ok(world)
    }

    /// A comparison of programs that answer different things would be none.
    async fn compare_lists(&self) -> anyhow::Result<()> {
        for account in self.on_postgres.readers.iter().take(10) {
            let mut lists = Vec::new();
            for (process, path) in [(&self.product, "/v1/api-keys"), (&self.baseline, "/sqlx/list")] {
                let (_, body) = ask(&process.address, &request("GET", path, &account.key, "")).await?;
                lists.push(without_uses(&body)?);
            }
            if lists[0] != lists[1] || lists[0]["meta"]["total"] != KEYS_IN_LIST {
                bail!("the service's list and the bare program's differ:\n{}\n{}", lists[0], lists[1]);
            }
        }
        Ok(())
    }

    pub(crate) fn process(&self, server: Server) -> &Process {
        match server {
            Server::Product => &self.product,
            Server::ProductOnSqlite => &self.product_on_sqlite,
            Server::Baseline => &self.baseline,
        }
    }

    /// The requests of a row, no fewer than `spare_keys` if each revokes one.
    pub(crate) async fn load(&mut self, row: &Row, spare_keys: usize) -> anyhow::Result<Load> {
        let accounts = if row.server == Server::ProductOnSqlite { &self.on_sqlite } else { &self.on_postgres };
        let to_each = |accounts: &[Account], method, body| -> Vec<Vec<u8>> {
            accounts.iter().map(|account| request_of(account, method, row.path, body)).collect()
        };
        let requests = match row.work {
            Work::Get => to_each(&accounts.readers, "GET", ""),
            Work::Delete => to_each(&accounts.readers, "DELETE", ""),
            Work::Create => to_each(&accounts.writers, "POST", NEW_KEY),
            Work::Revoke => {
                let writers = &self.on_postgres.writers;
                let ids = accounts::add_spare_keys(&mut self.session, writers, spare_keys).await?;
                let owned = writers.iter().cycle().zip(ids);
                owned.map(|(owner, id)| request_of(owner, "DELETE", &format!("{}/{id}", row.path), "")).collect()
            }
        };
        let address = self.process(row.server).address.clone();
        Ok(Load { address, requests, once: row.work == Work::Revoke, status: row.status })
    }

    /// A database file with keys that no process has open.
    pub(crate) fn existing_file(&self) -> PathBuf {
        existing_file(self.directory.path())
    }

    /// Resident memory of the service on PostgreSQL, in bytes.
    pub(crate) fn product_memory(&self) -> anyhow::Result<u64> {
        memory_of(self.product.pid())
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

fn request_of(account: &Account, method: &str, path: &str, body: &str) -> Vec<u8> {
    let account_id = account.id.0;
    let key = format!("{}\r\n{X_ACCOUNT}: {account_id}", account.key);
    request(method, path, &key, body)
}

/// A request as a plain client sends it. Every server is sent the same headers, whether it needs them or not.
fn request(method: &str, path: &str, key: &str, body: &str) -> Vec<u8> {
    let about_body = match body.len() {
        0 => String::new(),
        length => format!("content-type: application/json\r\ncontent-length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {key}\r\n{about_body}\r\n{body}").into_bytes()
}
