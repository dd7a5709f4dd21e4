//! A program that asks forward auth in process, for tools that count what a request costs: no socket, no other thread at work.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use chrono::DateTime;
use momail_api_keys::access_log::{AccessLog, Form};
use momail_api_keys::account::{Account, Allowance, Plan, Plans};
use momail_api_keys::auth::{CacheSettings, LastUsed, MAX_LEASE};
use momail_api_keys::clock::Clock;
use momail_api_keys::http::{self, App, Parts};
use momail_api_keys::id::AccountId;
use momail_api_keys::key::{KeyName, NewKey};
use momail_api_keys::permission::{Catalogue, Permissions};
use momail_api_keys::store::{Store, StoreUrl};
use rand::rngs::SysRng;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::accounts::LIMIT;
use super::rows::FORWARD_AUTH;
use super::world::sqlite_url;

const CONNECTIONS: usize = 2;
const ATTEMPTS: u32 = 1_000;
const PAUSE: Duration = Duration::from_millis(10);

/// What is asked how often; the access log goes to standard error.
#[derive(Debug, clap::Args)]
pub(crate) struct Drive {
    /// A file that does not exist yet
    database: PathBuf,
    requests: u32,
}

pub(crate) fn run(drive: &Drive) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(
            &sqlite_url(&drive.database).parse::<StoreUrl>()?,
            CONNECTIONS,
            Arc::new(Catalogue::new(Vec::new())?),
        )?;
        store.migrate().await?;
        // Held, because the system's own cannot be read under valgrind, which hides where Linux keeps it.
        let clock = Clock::held(DateTime::from(SystemTime::now()));
        let now = clock.now();
        let account =
            Account { id: AccountId::new(), name: "bench".to_owned(), plan: Plan::Pro, live_keys: 0, created_at: now };
        let key = NewKey::new(account.id, KeyName::try_from("bench")?, Permissions::EVERYTHING, None, now);
        let secret = store.create_account(account, key, &mut SysRng).await?.secret;

        let access_log = Arc::new(AccessLog::new(Form::Json));
        let app = build(store, clock, Arc::clone(&access_log));
        let writer = access_log.write()?;
        let stop = CancellationToken::new();
        let follower = tokio::spawn(app.auth.follower().context("keys are kept in memory")?.run(stop.clone()));
        app.readiness.serve();
        wait_for_lease(&app).await?;
        ask(&http::internal(&app), secret.expose(), drive.requests).await?;
        stop.cancel();
        follower.await?;
        drop(writer);
        Ok(())
    })
}

fn build(store: Store, clock: Clock, access_log: Arc<AccessLog>) -> App {
    let unmet = Allowance { per_minute: LIMIT, per_hour: LIMIT, per_day: LIMIT, max_keys: LIMIT };
    // A lease that is seldom renewed keeps the renewals out of the count.
    let cache = CacheSettings { max_keys: 1_000, lease: MAX_LEASE, renew: MAX_LEASE / 2, stale_grace: Duration::ZERO };
    App::new(Parts {
        store,
        cache: Some(cache),
        last_used: LastUsed::default(),
        clock,
        plans: Plans { free: unmet, pro: unmet, enterprise: unmet },
        max_tracked_keys: 1_000,
        redis: None,
        failed_per_minute: 60,
        allowed_origins: vec!["*".to_owned()],
        trusted_proxies: Vec::new(),
        body_timeout: Duration::from_secs(10),
        access_log,
        allow_options: true,
    })
}

async fn wait_for_lease(app: &App) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        if app.auth.cache().is_some_and(momail_api_keys::auth::Cache::is_leased) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("there is never a lease")
}

async fn ask(routes: &Router, key: &str, count: u32) -> anyhow::Result<()> {
    for _ in 0..count {
        let request = Request::get(FORWARD_AUTH).header("host", "bench").header("x-api-key", key);
        let response = routes.clone().oneshot(request.body(Body::empty())?).await?;
        if response.status() != StatusCode::OK {
            bail!("forward auth answers {}", response.status());
        }
    }
    Ok(())
}
