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
use tokio::time::{sleep, timeout};

use super::file::OwnFile;
use super::line::{Lines, Place, Queue};
use super::trouble::Trouble;
use super::{BOUND, Connections, Result, StoreError};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection used less than this long ago is taken to be alive.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// A server that has no place for another connection is not asked for one again before this time.
const FULL_FOR: Duration = Duration::from_millis(500);
/// How often whoever waits looks meanwhile whether one of ours is free.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long an idle connection, or one left in the middle of a statement, has to show that it works.
const PROOF_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections are renewed after this time, so that a change of the server's address is noticed.
const MAX_AGE: Duration = Duration::from_mins(30);

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

pub(super) struct Pool<DB: Database> {
    connections: deadpool::managed::Pool<Connector<DB>>,
    lines: Arc<Lines>,
    /// Where whoever asks for a connection stands first.
    queue: Queue,
}

/// Derived, it would ask that `DB` itself can be cloned.
impl<DB: Database> Clone for Pool<DB> {
    fn clone(&self) -> Self {
        Self { connections: self.connections.clone(), lines: Arc::clone(&self.lines), queue: self.queue }
    }
}

pub(super) struct Connector<DB: Database> {
    options: Options<DB>,
    /// When a connection was last found dead or of no more use. Those not used since are so as well, most likely: to find out
    /// for each of them would cost a request per connection.
    found_dead: Mutex<Option<Instant>>,
    /// When the server last had no place for another connection.
    found_full: Mutex<Option<Instant>>,
    trouble: Trouble,
    /// Of an embedded database.
    file: Option<OwnFile>,
}

/// A connection in use. Dropped without [`Lease::end`], it was cut short in the middle of a statement.
pub(super) struct Lease<DB: Database> {
    connection: Option<Object<Connector<DB>>>,
    place: Option<Place>,
    close_if_cut_short: bool,
}

impl<DB: Database> Pool<DB> {
    pub(super) fn new(options: Options<DB>, max_connections: usize, trouble: Trouble, file: Option<OwnFile>) -> Self {
        let timeouts = Timeouts { wait: Some(ACQUIRE_TIMEOUT), create: Some(ACQUIRE_TIMEOUT), recycle: None };
        let (found_dead, found_full) = Default::default();
        let connector = Connector { options, found_dead, found_full, trouble, file };
        let connections = deadpool::managed::Pool::builder(connector)
            .max_size(max_connections)
            .timeouts(timeouts)
            // The most recently used connection is the likeliest to be alive, and the others may age out.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with time limits was given a runtime");
        let lines = Lines::over(max_connections);
        Self { connections, lines: Arc::new(lines), queue: Queue::None }
    }

    /// The same connections for those who stand in this queue.
    pub(super) fn with_queue(&self, queue: Queue) -> Self {
        Self { queue, ..self.clone() }
    }

    /// A place in front of the line, where one is needed.
    pub(super) async fn place(&self) -> Result<Option<Place>> {
        self.lines.place(self.queue).await
    }

    pub(super) async fn lease(&self) -> Result<Lease<DB>> {
        let place = self.place().await?;
        let connection = timeout(ACQUIRE_TIMEOUT, self.get()).await.map_err(|_| no_connection())??;
        Ok(Lease { connection: Some(connection), place, close_if_cut_short: false })
    }

    /// Where the server has no place for as many connections as the pool may have, those that there are have to do.
    async fn get(&self) -> Result<Object<Connector<DB>>, PoolError<sqlx::Error>> {
        loop {
            match self.connections.get().await {
                Err(PoolError::Backend(error)) if is_full(&error) => sleep(LOOK_EVERY).await,
                outcome => return outcome,
            }
        }
    }

    /// Whether the file of an embedded database is still where it was.
    pub(super) fn check_file(&self) -> Result<()> {
        self.connections.manager().file.as_ref().map_or(Ok(()), OwnFile::check)
    }

    /// Believes an outcome only if the file it was reached on is still there, and has the log tell of what is wrong.
    ///
    /// It takes the outcome rather than the work, whose future would be copied once more.
    pub(super) fn judge<T>(&self, outcome: Result<T>) -> Result<T> {
        let outcome = outcome.and_then(|value| self.check_file().map(|()| value));
        self.connections.manager().trouble.note(&outcome);
        outcome
    }

    pub(super) fn options(&self) -> &Options<DB> {
        &self.connections.manager().options
    }

    pub(super) fn usage(&self) -> Connections {
        let status = self.connections.status();
        let (waiting, refused) = self.lines.usage();
        Connections { open: status.size, idle: status.available, waiting: status.waiting + waiting, refused }
    }

    pub(super) fn close(&self) {
        self.connections.close();
    }
}

impl<DB: Database> Manager for Connector<DB> {
    type Type = DB::Connection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<DB::Connection, sqlx::Error> {
        if self.found_full().is_some_and(|found| found.elapsed() < FULL_FOR) {
            return Err(sqlx::Error::PoolTimedOut);
        }
        // It is rare and large; in the future of each statement it would be copied around for nothing.
        let outcome = Box::pin(DB::Connection::connect_with(&self.options)).await;
        if outcome.as_ref().is_err_and(is_full) {
            *self.found_full() = Some(Instant::now());
        }
        outcome
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

    fn found_full(&self) -> MutexGuard<'_, Option<Instant>> {
        self.found_full.lock().unwrap_or_else(PoisonError::into_inner)
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
    match sqlite_result(code) {
        Some(result) => SQLITE_PASSING.contains(&result),
        None => {
            matches!(code, "25006" | "55P03" | "57014")
                || ["08", "28", "3D", "40", "53", "57P", "58"].iter().any(|class| code.starts_with(class))
        }
    }
}

/// Whether a connection was refused only because there are so many already: by the server, or by us in its place.
fn is_full(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(db) => db.code().as_deref() == Some("53300"),
        error => matches!(error, sqlx::Error::PoolTimedOut),
    }
}

/// Whether another process holds the lock of a file in SQLite.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(db) if sqlite_result(&db.code().unwrap_or_default()) == Some(5))
}

/// The primary result code of SQLite, if the code is one of its; those of PostgreSQL have five characters.
fn sqlite_result(code: &str) -> Option<u32> {
    let result = code.parse::<u32>().ok()?;
    (code.len() < 5).then_some(result & 0xff)
}

/// A connection is of no more use when the wire broke, the server is going away, or it may no longer write (a former primary).
///
/// The same when SQLite may have rolled back by itself, as it does when memory or the disk fails it: sqlx would believe for ever
/// that there still is a transaction.
fn spoils_connection(error: &sqlx::Error) -> bool {
    const SQLITE_ROLLS_BACK: [u32; 5] = [5, 7, 9, 10, 13];
    match error {
        sqlx::Error::Database(db) => {
            let code = db.code().unwrap_or_default();
            match sqlite_result(&code) {
                Some(result) => SQLITE_ROLLS_BACK.contains(&result),
                None => code == "25006" || code.starts_with("57P") || code.starts_with("08"),
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::InvalidSavePointStatement
        | sqlx::Error::BeginFailed => true,
        _ => false,
    }
}
