//! One line for each request, formatted by hand into a buffer that a thread of its own writes.
//!
//! A line that went through the log's general machinery would cost more than the rest of a request answered from memory.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, Datelike, Timelike, Utc};
use tokio_util::sync::CancellationToken;

use crate::digits::push_decimal;
use crate::secret::Prefix;

/// How long a line may wait in memory. A process that is killed loses as much.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// Whoever reads the log may be slow; requests are not held up for it, and lines beyond this are counted instead of kept.
const MAX_BUFFERED: usize = 4 << 20;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Human,
    Off,
}

/// What a line says. Nothing in it can hold a key: routes and methods are ours, ids are checked.
pub(crate) struct Line<'a> {
    pub(crate) at: DateTime<Utc>,
    pub(crate) method: &'static str,
    pub(crate) route: &'static str,
    pub(crate) status: u16,
    pub(crate) took: Duration,
    pub(crate) request_id: &'a [u8],
    pub(crate) key: Option<Prefix>,
}

/// The lines that are to be written.
pub struct AccessLog {
    form: Form,
    buffer: Mutex<Buffer>,
    wake: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    is_closed: bool,
}

/// The thread that writes to standard error. Dropped, it writes what is left.
pub struct Writer {
    log: Arc<AccessLog>,
    thread: Option<JoinHandle<()>>,
    ended: CancellationToken,
}

impl AccessLog {
    pub fn new(form: Form) -> Self {
        Self { form, buffer: Mutex::default(), wake: Condvar::new(), dropped: AtomicU64::new(0) }
    }

    /// Begins to write.
    pub fn write(self: &Arc<Self>) -> io::Result<Writer> {
        let (log, ended) = (Arc::clone(self), CancellationToken::new());
        let end = ended.clone().drop_guard();
        let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            // A panic ends it as well.
            let _end = end;
            log.run();
        })?;
        Ok(Writer { log: Arc::clone(self), thread: Some(thread), ended })
    }

    /// Lines that were lost because the log was not read fast enough.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn line(&self, line: &Line<'_>) {
        if self.form == Form::Off {
            return;
        }
        let mut buffer = self.buffer();
        if buffer.lines.len() > MAX_BUFFERED {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.form {
            Form::Json => line.push_json(&mut buffer.lines),
            Form::Human | Form::Off => line.push_human(&mut buffer.lines),
        }
    }

    fn run(&self) {
        let mut lines = Vec::new();
        let mut buffer = self.buffer();
        loop {
            #[cfg(feature = "flawed")]
            crate::tasks::flaw::panic_if_told(crate::tasks::Part::AccessLog);
            let is_closed = buffer.is_closed;
            std::mem::swap(&mut lines, &mut buffer.lines);
            drop(buffer);
            // There is nobody left to tell that the log cannot be written.
            let _ = io::stderr().write_all(&lines);
            lines.clear();
            if is_closed {
                return;
            }
            let waited = self.wake.wait_timeout_while(self.buffer(), WRITE_EVERY, |buffer| !buffer.is_closed);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Waits until nothing is written any more, which is not meant to happen before it is dropped.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.log.buffer().is_closed = true;
        self.log.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Line<'_> {
    fn push_json(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"{\"timestamp\":\"");
        push_timestamp(text, self.at);
        text.extend_from_slice(b"\",\"level\":\"INFO\",\"message\":\"request\",\"method\":\"");
        text.extend_from_slice(self.method.as_bytes());
        text.extend_from_slice(b"\",\"route\":\"");
        text.extend_from_slice(self.route.as_bytes());
        text.extend_from_slice(b"\",\"status\":");
        push_decimal(text, self.status.into(), 1);
        text.extend_from_slice(b",\"micros\":");
        push_decimal(text, micros(self.took), 1);
        text.extend_from_slice(b",\"request_id\":\"");
        text.extend_from_slice(self.request_id);
        if let Some(prefix) = self.key {
            text.extend_from_slice(b"\",\"key_prefix\":\"");
            text.extend_from_slice(prefix.as_str().as_bytes());
        }
        text.extend_from_slice(b"\"}\n");
    }

    fn push_human(&self, text: &mut Vec<u8>) {
        push_timestamp(text, self.at);
        text.extend_from_slice(b"  INFO ");
        push_decimal(text, self.status.into(), 3);
        for part in [self.method, self.route] {
            text.push(b' ');
            text.extend_from_slice(part.as_bytes());
        }
        text.push(b' ');
        push_decimal(text, micros(self.took), 1);
        text.extend_from_slice("µs id=".as_bytes());
        text.extend_from_slice(self.request_id);
        if let Some(prefix) = self.key {
            text.extend_from_slice(b" key_prefix=");
            text.extend_from_slice(prefix.as_str().as_bytes());
        }
        text.push(b'\n');
    }
}

/// ISO 8601 in UTC with milliseconds.
fn push_timestamp(text: &mut Vec<u8>, at: DateTime<Utc>) {
    let (date, time) = (at.date_naive(), at.time());
    let parts = [
        (u64::from(date.year().unsigned_abs()), 4, b'-'),
        (date.month().into(), 2, b'-'),
        (date.day().into(), 2, b'T'),
        (time.hour().into(), 2, b':'),
        (time.minute().into(), 2, b':'),
        (time.second().into(), 2, b'.'),
        (u64::from(time.nanosecond() / 1_000_000), 3, b'Z'),
    ];
    for (number, digits, end) in parts {
        push_decimal(text, number, digits);
        text.push(end);
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn line() -> Line<'static> {
        Line {
            at: Utc.with_ymd_and_hms(2024, 1, 5, 3, 7, 9).unwrap() + Duration::from_millis(42),
            method: "GET",
            route: "/v1/api-keys",
            status: 200,
            took: Duration::from_micros(1_234),
            request_id: b"abc",
            key: Prefix::parse("a1b2c3d4"),
        }
    }

    #[test]
    fn a_json_line_is_one_json_object() {
        let mut text = Vec::new();
        line().push_json(&mut text);
        let expected = serde_json::json!({
            "timestamp": "2024-01-05T03:07:09.042Z", "level": "INFO", "message": "request", "method": "GET",
            "route": "/v1/api-keys", "status": 200, "micros": 1234, "request_id": "abc", "key_prefix": "a1b2c3d4",
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap(), expected);
        assert_eq!(text.iter().position(|byte| *byte == b'\n'), Some(text.len() - 1), "one line, and it ends");
    }

    #[test]
    fn a_line_for_people_says_the_same() {
        let mut text = Vec::new();
        let line = Line { key: None, took: Duration::ZERO, ..line() };
        line.push_human(&mut text);
        let expected = "2024-01-05T03:07:09.042Z  INFO 200 GET /v1/api-keys 0µs id=abc\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn lines_that_nobody_reads_are_counted_and_not_kept() {
        let log = AccessLog::new(Form::Json);
        while log.dropped() < 10 {
            log.line(&line());
        }
        assert!(log.buffer().lines.len() < MAX_BUFFERED + 1_000);
    }
}
