//! Pools of connections for the bare programs.

use std::ops::{Deref, DerefMut};

use anyhow::anyhow;
use deadpool::managed::{Manager, Metrics, Object, QueueMode, RecycleResult};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres};

/// As many as in the service's pool by default, and in sqlx's.
const MAX_CONNECTIONS: usize = 10;

#[derive(Clone)]
pub(crate) enum Pool {
    Sqlx(PgPool),
    Unasked(deadpool::managed::Pool<Unasked>),
}

impl Pool {
    /// sqlx's own, as it comes: a connection is asked for a sign of life when it is taken and when it is given back.
    pub(crate) fn usual(options: PgConnectOptions) -> Self {
        Self::Sqlx(PgPool::connect_lazy_with(options))
    }

    /// sqlx's own, where a connection is asked only when it is given back.
    pub(crate) fn without_test(options: PgConnectOptions) -> Self {
        Self::Sqlx(PgPoolOptions::new().test_before_acquire(false).connect_lazy_with(options))
    }

    /// The cheapest there is: no connection is ever asked, and no time is limited.
    pub(crate) fn unasked(options: PgConnectOptions) -> anyhow::Result<Self> {
        let pool = deadpool::managed::Pool::builder(Unasked(options)).max_size(MAX_CONNECTIONS);
        Ok(Self::Unasked(pool.queue_mode(QueueMode::Lifo).build()?))
    }

    pub(crate) async fn lease(&self) -> anyhow::Result<Lease> {
        match self {
            Self::Sqlx(pool) => Ok(Lease::Sqlx(pool.acquire().await?)),
            Self::Unasked(pool) => pool.get().await.map(Lease::Unasked).map_err(|error| anyhow!("{error}")),
        }
    }
}

pub(crate) struct Unasked(PgConnectOptions);

impl Manager for Unasked {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        Box::pin(PgConnection::connect_with(&self.0)).await
    }

    async fn recycle(&self, _: &mut PgConnection, _: &Metrics) -> RecycleResult<sqlx::Error> {
        Ok(())
    }
}

pub(crate) enum Lease {
    Sqlx(PoolConnection<Postgres>),
    Unasked(Object<Unasked>),
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Sqlx(connection) => connection,
            Self::Unasked(connection) => connection,
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Sqlx(connection) => connection,
            Self::Unasked(connection) => connection,
        }
    }
}
