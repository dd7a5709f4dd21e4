//! One line for each request, formatted by hand into a buffer that a thread of its own writes.
//!
//! A line that went through the log's general machinery would cost more than the rest of a request answered from memory.

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike, Timelike, Utc};
use tokio_util::sync::CancellationToken;

use crate::digits::push_decimal;
use crate::secret::Prefix;

/// How long a line may wait in memory. A process that is killed loses as much.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// Whoever reads the log may be slow; requests are not held up for it, and lines beyond this are counted instead of kept.
const MAX_BUFFERED: usize = 4 << 20;
/// The end of the process waits for so long at the most until somebody reads the last lines.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);
/// Refusals that are written in a second. With the line that says how many were left out, a flood of bad keys costs a hundred.
const MAX_REFUSALS: u32 = 99;
const REFUSALS_ARE_COUNTED_FOR: Duration = Duration::from_secs(1);

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
    /// Whose key it was, or seemed to be.
    pub(crate) key: Option<Prefix>,
    pub(crate) refused: Option<Refused>,
}

/// Why a key did not open anything, and where it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) why: &'static str,
    pub(crate) client: IpAddr,
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
    /// Whether the lines shall be written at once.
    is_urgent: bool,
    is_closed: bool,
    refusals: Refusals,
}

/// How many refusals there were lately.
#[derive(Default)]
struct Refusals {
    since: Option<Instant>,
    count: u32,
    /// The last of those that were not written.
    left_out_at: DateTime<Utc>,
}

/// The log that a serving process writes, which takes all other events as well.
static EVENTS: RwLock<Option<Arc<AccessLog>>> = RwLock::new(None);

/// Takes events to standard error; while the process serves, behind its lines. Whoever has something to say must not wait for whoever
/// reads it.
pub(crate) struct Events;

impl Write for Events {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match &*EVENTS.read().unwrap_or_else(PoisonError::into_inner) {
            Some(log) => log.event(event),
            None => io::stderr().write_all(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes to standard error. Dropped, it writes what is left, if somebody reads it.
pub struct Writer {
    log: Arc<AccessLog>,
    thread: Option<JoinHandle<()>>,
    ended: CancellationToken,
}

/// Dropped at the end of that thread, be it by a panic.
struct Thread(CancellationToken);

impl Drop for Thread {
    fn drop(&mut self) {
        take_no_events();
        self.0.cancel();
    }
}

fn take_no_events() {
    *EVENTS.write().unwrap_or_else(PoisonError::into_inner) = None;
}

impl AccessLog {
    pub fn new(form: Form) -> Self {
        Self { form, buffer: Mutex::default(), wake: Condvar::new(), dropped: AtomicU64::new(0) }
    }

    /// Begins to write.
    pub fn write(self: &Arc<Self>) -> io::Result<Writer> {
        let (log, ended) = (Arc::clone(self), CancellationToken::new());
        let end = Thread(ended.clone());
        let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let _end = end;
            log.run();
        })?;
        *EVENTS.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(self));
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
        if line.is_refusal() && !self.may_be_written(&mut buffer, line.at) {
            return;
        }
        if buffer.lines.len() > MAX_BUFFERED {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.form {
            Form::Json => line.push_json(&mut buffer.lines),
            Form::Human | Form::Off => line.push_human(&mut buffer.lines),
        }
    }

    /// Counts a refusal, and says whether there is room for it.
    fn may_be_written(&self, buffer: &mut Buffer, at: DateTime<Utc>) -> bool {
        self.end_count(buffer, false);
        let refusals = &mut buffer.refusals;
        refusals.since.get_or_insert_with(Instant::now);
        refusals.count += 1;
        refusals.left_out_at = at;
        refusals.count <= MAX_REFUSALS
    }

    /// Says at the end of a second, or of all, how many refusals were left out of it.
    fn end_count(&self, buffer: &mut Buffer, is_last: bool) {
        if !is_last && buffer.refusals.since.is_none_or(|since| since.elapsed() < REFUSALS_ARE_COUNTED_FOR) {
            return;
        }
        let refusals = std::mem::take(&mut buffer.refusals);
        let left_out = refusals.count.saturating_sub(MAX_REFUSALS);
        if left_out > 0 {
            push_left_out(&mut buffer.lines, self.form, refusals.left_out_at, left_out);
        }
    }

    fn event(&self, event: &[u8]) {
        let mut buffer = self.buffer();
        if buffer.lines.len() > MAX_BUFFERED {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            buffer.lines.extend_from_slice(event);
            // There are few of these, and somebody may be waiting to see them.
            buffer.is_urgent = true;
            self.wake.notify_one();
        }
    }

    fn run(&self) {
        let mut lines = Vec::new();
        let mut buffer = self.buffer();
        loop {
            #[cfg(feature = "flawed")]
            crate::tasks::flaw::panic_if_told(crate::tasks::Part::AccessLog);
            let is_closed = buffer.is_closed;
            buffer.is_urgent = false;
            self.end_count(&mut buffer, is_closed);
            std::mem::swap(&mut lines, &mut buffer.lines);
            drop(buffer);
            // There is nobody left to tell that the log cannot be written.
            let _ = io::stderr().write_all(&lines);
            lines.clear();
            if is_closed {
                return;
            }
            let waited = self
                .wake
                .wait_timeout_while(self.buffer(), WRITE_EVERY, |buffer| !buffer.is_closed && !buffer.is_urgent);
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
        let Some(thread) = self.thread.take() else { return };
        let began = Instant::now();
        while !thread.is_finished() && began.elapsed() < LAST_LINES_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Line<'_> {
    /// Whether anybody could bring about any number of these.
    fn is_refusal(&self) -> bool {
        self.refused.is_some() || (self.key.is_none() && (400..500).contains(&self.status))
    }

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
        if let Some(Refused { why, client }) = self.refused {
            let _ = write!(text, "\",\"refused\":\"{why}\",\"client\":\"{client}");
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
        if let Some(Refused { why, client }) = self.refused {
            let _ = write!(text, " refused={why} client={client}");
        }
        text.push(b'\n');
    }
}

fn push_left_out(text: &mut Vec<u8>, form: Form, at: DateTime<Utc>, count: u32) {
    const WORDS: &str = "refusals left out";
    if form == Form::Json {
        text.extend_from_slice(b"{\"timestamp\":\"");
        push_timestamp(text, at);
        let _ = writeln!(text, "\",\"level\":\"WARN\",\"message\":\"{WORDS}\",\"count\":{count}}}");
    } else {
        push_timestamp(text, at);
        let _ = writeln!(text, "  WARN {WORDS} count={count}");
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
            refused: None,
        }
    }

    fn refusal() -> Line<'static> {
        Line {
            status: 401,
            refused: Some(Refused { why: "wrong_secret", client: "192.0.2.1".parse().unwrap() }),
            ..line()
        }
    }

    fn lines(log: &AccessLog) -> Vec<String> {
        std::str::from_utf8(&log.buffer().lines).unwrap().lines().map(str::to_owned).collect()
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
    fn a_refusal_says_why_and_to_whom() {
        let mut text = Vec::new();
        refusal().push_json(&mut text);
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let said = ["status", "key_prefix", "refused", "client"].map(|member| json[member].to_string());
        assert_eq!(said, ["401", "\"a1b2c3d4\"", "\"wrong_secret\"", "\"192.0.2.1\""]);
        text.clear();
        Line { key: None, ..refusal() }.push_human(&mut text);
        let expected =
            "2024-01-05T03:07:09.042Z  INFO 401 GET /v1/api-keys 1234µs id=abc refused=wrong_secret client=192.0.2.1\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn of_a_flood_of_refusals_a_hundred_lines_are_written_each_second() {
        let log = AccessLog::new(Form::Json);
        for _ in 0..1_000 {
            log.line(&refusal());
        }
        log.line(&line());
        assert_eq!(lines(&log).len(), 100, "whoever is let in is written all the same");
        let earlier = Instant::now().checked_sub(REFUSALS_ARE_COUNTED_FOR);
        log.buffer().refusals.since = earlier;
        log.line(&refusal());
        let said = [100, 101].map(|n| serde_json::from_str::<serde_json::Value>(&lines(&log)[n]).unwrap());
        assert_eq!((&said[0]["message"], &said[0]["count"]), (&"refusals left out".into(), &901.into()));
        assert_eq!(said[1]["refused"], "wrong_secret", "a new second has room again");
        assert_eq!(lines(&log).len(), 102);

        let log = AccessLog::new(Form::Human);
        for _ in 0..101 {
            log.line(&Line { key: None, status: 404, refused: None, ..line() });
        }
        log.end_count(&mut log.buffer(), true);
        assert_eq!(lines(&log)[99], "2024-01-05T03:07:09.042Z  WARN refusals left out count=2");
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
