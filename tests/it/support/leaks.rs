//! Finds keys where none may be: in logs, answers, files and databases. It knows a key by its form and checksum, which it
//! reckons for itself, and the 32 characters of each key that was ever shown to a test wherever they stand alone.

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const PREFIX: usize = 8;
const SECRET: usize = 32;
const CHECKSUM: usize = 6;

/// The 32 characters of each key that was shown.
static SHOWN: Mutex<Option<HashSet<[u8; SECRET]>>> = Mutex::new(None);
/// What this process has logged and must not have.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CRC-32 of a key's first characters, modulo 36⁶ and in base 36.
pub(crate) fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let rest = u64::from(crc32fast::hash(body));
    std::array::from_fn(|n| {
        let place = 36u64.pow(u32::try_from(CHECKSUM - 1 - n).unwrap());
        ALPHABET[usize::try_from(rest / place % 36).unwrap()]
    })
}

/// Remembers a key that a test was shown.
pub(crate) fn remember(key: &str) {
    if let Ok(secret) = key.as_bytes()[key.len().saturating_sub(SECRET)..].try_into() {
        lock(&SHOWN).get_or_insert_default().insert(secret);
    }
}

/// Remembers each key in an answer, and asserts that it is nowhere else in it.
pub(crate) fn watch_answer(bytes: &[u8], body: &Value) {
    let mut bytes = bytes.to_vec();
    if let Some(key) = body["data"]["apiKey"].as_str() {
        remember(key);
        let at = find(&bytes, key.as_bytes()).unwrap();
        bytes.splice(at..at + key.len(), *b"-");
    }
    assert_none("an answer", &bytes);
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// # Panics
/// If the bytes hold a key, or the 32 characters of one that was shown.
pub(crate) fn assert_none(what: &str, bytes: &[u8]) {
    if let Some(leak) = leak_in(bytes) {
        panic!("{what} holds a key: {leak}");
    }
}

/// What surrounds the first key in these bytes.
pub(crate) fn leak_in(bytes: &[u8]) -> Option<String> {
    let (from, to) = whole_key_in(bytes).or_else(|| shown_secret_in(bytes))?;
    let surroundings = &bytes[from.saturating_sub(300)..bytes.len().min(to + 100)];
    Some(String::from_utf8_lossy(surroundings).into_owned())
}

/// 8 characters, an underscore and 32 characters with a right checksum, whatever stands before them.
fn whole_key_in(bytes: &[u8]) -> Option<(usize, usize)> {
    let underscores = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'_').map(|(at, _)| at);
    underscores.filter(|at| *at >= PREFIX).find_map(|at| {
        let text = bytes.get(at - PREFIX..=at + SECRET)?;
        let is_form = text.iter().enumerate().all(|(n, byte)| n == PREFIX || is_character(*byte));
        let (body, found) = text.split_at(text.len() - CHECKSUM);
        let is_key = is_form && checksum(&[b"mk_", body].concat()) == found;
        is_key.then_some((at - PREFIX, at + SECRET))
    })
}

fn shown_secret_in(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut start = 0;
    let mut shown = None;
    for end in 0..=bytes.len() {
        if bytes.get(end).is_some_and(|byte| is_character(*byte)) {
            continue;
        }
        if end - start >= SECRET {
            let known = shown.get_or_insert_with(|| lock(&SHOWN)).get_or_insert_default();
            let windows = bytes[start..end].windows(SECRET);
            if let Some(at) = windows.into_iter().position(|window| known.contains(window)) {
                return Some((start + at, start + at + SECRET));
            }
        }
        start = end + 1;
    }
    None
}

/// The ways in which a program may write a secret without meaning to.
fn spellings(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let decimal = bytes.iter().map(u8::to_string).collect::<Vec<_>>();
    let hexadecimal = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let mut spellings = vec![
        secret.to_owned(),
        secret.to_ascii_uppercase(),
        secret.chars().rev().collect(),
        decimal.join(", "),
        decimal.join(","),
        hexadecimal.to_ascii_uppercase(),
        hexadecimal,
    ];
    // Wherever in a longer text it stands, one of three groupings is the encoder's.
    spellings.extend((0..3).map(|from| STANDARD.encode(&bytes[from..from + 27])));
    spellings
}

/// # Panics
/// If the bytes hold one of these secrets of at least 30 characters, in whatever spelling.
pub(crate) fn assert_none_of(secrets: &[String], what: &str, bytes: &[u8]) {
    assert_none(what, bytes);
    for spelling in secrets.iter().flat_map(|secret| spellings(secret)) {
        assert!(find(bytes, spelling.as_bytes()).is_none(), "{what} holds a secret as {spelling}");
    }
}

fn is_character(byte: u8) -> bool {
    byte.is_ascii_digit() || byte.is_ascii_lowercase()
}

#[test]
fn a_key_is_found_wherever_and_however_it_is_written() {
    let key = super::unknown_key();
    for text in [key.clone(), format!("x{key}x"), format!("\u{e9}_{}", &key[3..]), format!("{}_{key}", "a".repeat(50))]
    {
        assert!(leak_in(text.as_bytes()).is_some(), "{text}");
    }
    let other = super::with_wrong_checksum(&key);
    for text in ["", "_", &other, &other[..43], "mk_a1b2c3d4_e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0"] {
        assert_eq!(leak_in(text.as_bytes()), None, "{text}");
    }
    let alone = format!("id={}{}", "0".repeat(40), &key[12..]);
    assert_eq!(leak_in(alone.as_bytes()), None, "nobody was shown it yet");
    remember(&key);
    assert!(leak_in(alone.as_bytes()).is_some());
    let secret = [key[12..].to_owned()];
    let debug = format!("{:?}", key.as_bytes());
    let base64 = (0..3).map(|n| STANDARD.encode(format!("{}{key}", "a".repeat(n))));
    for text in base64.chain([debug, key.to_uppercase()]) {
        assert!(std::panic::catch_unwind(|| assert_none_of(&secret, "a test", text.as_bytes())).is_err(), "{text}");
    }
}

/// From now on all that this process logs is looked at, at the finest level there is.
pub(crate) fn watch_own_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let events = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(OwnLog);
        events.json().try_init().unwrap();
    });
}

/// # Panics
/// If this process has logged a key since [`watch_own_log`].
pub(crate) fn assert_own_log_is_clean() {
    let logged = lock(&LOGGED);
    assert!(logged.is_empty(), "the log holds a key: {}", logged[0]);
}

/// Takes events, each of which comes whole, and keeps those that hold a key.
struct OwnLog;

impl io::Write for OwnLog {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if let Some(leak) = leak_in(event) {
            lock(&LOGGED).push(leak);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for OwnLog {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
