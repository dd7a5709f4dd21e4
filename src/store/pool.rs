//! Connections that are lent out, judged when they come back, and never waited for longer than [`BOUND`].
//!
//! It is not sqlx's own pool, because that one asks each returning connection for a sign of life without any time limit: a
//! server that freezes at that moment keeps the connection's place for as long as TCP retransmits.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{Manager, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult, Timeouts};
use sqlx::{Connection, Database};
use tokio::time::timeout;

use super::line::{Line, Place};
use super::{BOUND, Connections, Result, StoreError};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// One connection of so many is never given to those who stand in line.
const RESERVED_OF: usize = 5;
/// A connection used less than this long ago is taken to be alive.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How long an idle connection, or one left in the middle of a statement, has to show that it works.
const PROOF_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections are renewed after this time, so that a change of the server's address is noticed.
const MAX_AGE: Duration = Duration::from_mins(30);

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

pub(super) struct Pool<DB: Database> {
    connections: deadpool::managed::Pool<Connector<DB>>,
    line: Arc<Line>,
    /// Whether whoever asks for a connection stands in line first.
    is_queued: bool,
}

/// Derived, it would ask that `DB` itself can be cloned.
impl<DB: Database> Clone for Pool<DB> {
    fn clone(&self) -> Self {
        Self { connections: self.connections.clone(), line: Arc::clone(&self.line), is_queued: self.is_queued }
    }
}

pub(super) struct Connector<DB: Database> {
    options: Options<DB>,
    /// When a connection was last found dead or of no more use. Those not used since are so as well, most likely: to find out
    /// for each of them would cost a request per connection.
    found_dead: Mutex<Option<Instant>>,
}

/// A connection in use. Dropped without [`Lease::end`], it was cut short in the middle of a statement.
pub(super) struct Lease<DB: Database> {
    connection: Option<Object<Connector<DB>>>,
    place: Option<Place>,
    close_if_cut_short: bool,
}

impl<DB: Database> Pool<DB> {
    pub(super) fn new(options: Options<DB>, max_connections: usize) -> Self {
        let timeouts = Timeouts { wait: Some(ACQUIRE_TIMEOUT), create: Some(ACQUIRE_TIMEOUT), recycle: None };
        let connections = deadpool::managed::Pool::builder(Connector { options, found_dead: Mutex::default() })
            .max_size(max_connections)
            .timeouts(timeouts)
            // The most recently used connection is the likeliest to be alive, and the others may age out.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with time limits was given a runtime");
        let line = Arc::new(Line::new(max_connections - max_connections / RESERVED_OF));
        Self { connections, line, is_queued: false }
    }

    /// The same connections for those who stand in line for them.
    pub(super) fn queued(&self, is_queued: bool) -> Self {
        Self { is_queued, ..self.clone() }
    }

    /// A place in front of the line, where one is needed.
    pub(super) async fn place(&self) -> Result<Option<Place>> {
        if self.is_queued { self.line.enter().await.map(Some) } else { Ok(None) }
    }

    pub(super) async fn lease(&self) -> Result<Lease<DB>> {
        let place = self.place().await?;
        let connection = timeout(ACQUIRE_TIMEOUT, self.connections.get()).await.map_err(|_| no_connection())??;
        Ok(Lease { connection: Some(connection), place, close_if_cut_short: false })
    }

    pub(super) fn options(&self) -> &Options<DB> {
        &self.connections.manager().options
    }

    pub(super) fn usage(&self) -> Connections {
        let status = self.connections.status();
        let (waiting, refused) = self.line.usage();
        Connections { open: status.size, idle: status.available, waiting: status.waiting + waiting as usize, refused }
    }

    pub(super) fn close(&self) {
        self.connections.close();
    }
}

impl<DB: Database> Manager for Connector<DB> {
    type Type = DB::Connection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<DB::Connection, sqlx::Error> {
        // It is rare and large; in the future of each statement it would be copied around for nothing.
        Box::pin(DB::Connection::connect_with(&self.options)).await
    }

    async fn recycle(&self, connection: &mut DB::Connection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() > MAX_AGE {
            return Err(RecycleError::message("the connection is due to be renewed"));
        }
        let last_used = metrics.recycled.unwrap_or(metrics.created);
        if self.found_dead().is_some_and(|found| found > last_used) {
            return Err(RecycleError::message("another of its age is dead"));
        }
        if last_used.elapsed() <= TRUSTED_FOR || self.works(connection).await {
            Ok(())
        } else {
            Err(RecycleError::message("the connection is dead"))
        }
    }
}

impl<DB: Database> Connector<DB> {
    fn found_dead(&self) -> MutexGuard<'_, Option<Instant>> {
        self.found_dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection answers, and in time.
    async fn works(&self, connection: &mut DB::Connection) -> bool {
        let works = matches!(timeout(PROOF_TIMEOUT, connection.ping()).await, Ok(Ok(())));
        if !works {
            self.note_death();
        }
        works
    }

    fn note_death(&self) {
        *self.found_dead() = Some(Instant::now());
    }
}

impl<DB: Database> Lease<DB> {
    pub(super) fn closed_if_cut_short(mut self) -> Self {
        self.close_if_cut_short = true;
        self
    }

    /// Gives the connection back, or closes it if the outcome says that it is of no more use.
    pub(super) fn end<T>(mut self, outcome: Result<T, sqlx::Error>) -> Result<T> {
        let connection = self.connection.take();
        if outcome.as_ref().is_err_and(spoils_connection) {
            if let Some(pool) = connection.as_ref().and_then(Object::pool) {
                pool.manager().note_death();
            }
            drop(connection.map(Object::take));
        }
        outcome.map_err(StoreError::from)
    }

    /// Like [`Lease::end`], but `None` if the same may well succeed on another connection: this one had been idle and was dead.
    pub(super) fn end_or_retry<T>(self, outcome: Result<T, sqlx::Error>) -> Option<Result<T>> {
        let reused = self.connection.as_ref().is_some_and(|c| Object::metrics(c).recycle_count > 0);
        let died = outcome.as_ref().is_err_and(spoils_connection);
        let outcome = self.end(outcome);
        (!(reused && died)).then_some(outcome)
    }
}

impl<DB: Database> Deref for Lease<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.connection.as_ref().expect("a lease has its connection until it ends")
    }
}

impl<DB: Database> DerefMut for Lease<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect("a lease has its connection until it ends")
    }
}

impl<DB: Database> Drop for Lease<DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let place = self.place.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.close_if_cut_short => {
                runtime.spawn(async move {
                    let pool = Object::pool(&connection);
                    let works = match &pool {
                        Some(pool) => pool.manager().works(&mut connection).await,
                        None => false,
                    };
                    if !works {
                        drop(Object::take(connection));
                    }
                    drop(place);
                });
            }
            _ => drop(Object::take(connection)),
        }
    }
}

/// Ends `work` after [`BOUND`] at the latest.
pub(super) async fn within_bound<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(BOUND, work).await.unwrap_or_else(|_| Err(StoreError::Unavailable("it did not answer in time".to_owned())))
}

fn no_connection() -> StoreError {
    StoreError::Unavailable("no connection became free in time".to_owned())
}

impl From<PoolError<sqlx::Error>> for StoreError {
    fn from(error: PoolError<sqlx::Error>) -> Self {
        match error {
            PoolError::Backend(error) => Self::Unavailable(describe(&error)),
            PoolError::Timeout(_) => no_connection(),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(db) if db.is_unique_violation() => Self::Taken,
            sqlx::Error::Database(db) if !is_passing(db.code().as_deref().unwrap_or_default()) => {
                Self::Unexpected(error.into())
            }
            sqlx::Error::Database(_)
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => Self::Unavailable(describe(&error)),
            _ => Self::Unexpected(error.into()),
        }
    }
}

/// The driver's words without the address or the credentials of the server.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(db) => format!("{} ({})", db.message(), db.code().unwrap_or_default()),
        sqlx::Error::Configuration(_) => "the connection's settings were refused".to_owned(),
        error => error.to_string(),
    }
}

/// Whether a database's error code speaks of its state rather than of our statement.
///
/// PostgreSQL: SQLSTATE classes 08 (connection), 25006 (read-only), 28 and 3D (no such user or database yet), 40 (rolled back),
/// 53 (resources), 55P03 and 57014 (given up), 57P (going away), 58 (system). SQLite: busy, locked, read-only, I/O error, full, cannot open, by their primary result codes.
fn is_passing(code: &str) -> bool {
    const SQLITE_PASSING: [u32; 6] = [5, 6, 8, 10, 13, 14];
    match code.parse::<u32>() {
        Ok(result) if code.len() < 5 => SQLITE_PASSING.contains(&(result & 0xff)),
        _ => {
            matches!(code, "25006" | "55P03" | "57014")
                || ["08", "28", "3D", "40", "53", "57P", "58"].iter().any(|class| code.starts_with(class))
        }
    }
}

/// A connection is of no more use when the wire broke, the server is going away, or it may no longer write (a former primary).
fn spoils_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(db) => {
            let code = db.code().unwrap_or_default();
            code == "25006" || code.starts_with("57P") || code.starts_with("08")
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}
