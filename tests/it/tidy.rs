//! Who may name what: the direction of dependence, which a compiler does not check inside one crate.

use std::fs;
use std::path::{Path, PathBuf};

const LONGEST_FILE: usize = 300;

/// A word, and the only places under `src/` that may say it.
const KEPT_TO: [(&str, &[&str]); 13] = [
    ("sqlx", &["store/"]),
    ("deadpool", &["store/"]),
    ("governor", &["limit/", "clock.rs"]),
    ("redis::", &["limit/"]),
    ("axum", &["http/", "server/"]),
    ("hyper", &["server/", "cli/"]),
    ("tower", &["http/mod.rs", "server/connection.rs"]),
    ("clap", &["cli/", "main.rs"]),
    ("toml", &["config/"]),
    ("Utc::now", &["clock.rs"]),
    ("std::env", &["config/"]),
    ("StatusCode", &["http/"]),
    ("println", &["cli/"]),
];

/// What the pieces below must not know of those above.
const LOOKS_DOWN: [(&str, &[&str]); 6] = [
    ("secret.rs", &["crate::", "serde", "tracing", "Display for Secret"]),
    ("key.rs", &["crate::store", "crate::auth", "crate::http", "crate::clock", "crate::config"]),
    ("store/", &["crate::auth", "crate::http", "crate::limit", "crate::config", "crate::clock"]),
    ("limit/", &["crate::http", "crate::store", "crate::auth", "crate::config"]),
    ("auth/", &["crate::http", "crate::limit", "crate::config", "crate::server"]),
    ("http/", &["crate::telemetry", "crate::config", "crate::server", "crate::serve", "crate::cli"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Path below its folder, and text without comments and tests.
fn code(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let relative = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
    let read = |path: &PathBuf| (relative(path), fs::read_to_string(path).unwrap());
    paths.iter().map(read).filter(|(path, _)| !path.ends_with("tests.rs")).collect()
}

fn without_comments(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn says(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && (word.ends_with(':') || !after.is_some_and(is_name))
    })
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    for (path, text) in code("src").into_iter().chain(code("tests")) {
        assert!(text.starts_with("//! ") || path.ends_with("tests.rs"), "{path} has no module comment");
    }
}

#[test]
fn what_belongs_to_one_room_stays_there() {
    for (path, text) in code("src") {
        let text = without_comments(&text);
        for (word, rooms) in KEPT_TO {
            let at_home = rooms.iter().any(|room| path.starts_with(room));
            assert!(at_home || !says(&text, word), "src/{path} says `{word}`, which is kept to {rooms:?}");
        }
    }
}

#[test]
fn the_lower_pieces_do_not_know_the_upper_ones() {
    for (path, text) in code("src") {
        let text = without_comments(&text);
        for (room, above) in LOOKS_DOWN.iter().filter(|(room, _)| path.starts_with(room)) {
            for name in *above {
                assert!(!says(&text, name), "src/{path} is in {room} and says `{name}`");
            }
        }
    }
}

/// `forbid` cannot be lifted by code of ours, only where it is said.
#[test]
fn no_code_of_ours_is_unsafe_and_nothing_lifts_that() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let lints = manifest.split("[lints.rust]").nth(1).unwrap().split("\n[").next().unwrap();
    assert!(lints.lines().any(|line| line == "unsafe_code = \"forbid\""));
    for (path, text) in code("src").into_iter().chain(code("tests")).chain(code("benches")) {
        let is_said = text.contains("unsafe_code") || says(&without_comments(&text), "unsafe");
        assert!(path == "it/tidy.rs" || !is_said, "{path} says `unsafe`");
    }
}

#[test]
fn files_are_short_and_finished() {
    for (path, text) in code("src").into_iter().chain(code("tests")) {
        let lines = without_comments(&text).lines().filter(|line| !line.trim().is_empty()).count();
        assert!(lines <= LONGEST_FILE, "{path} has {lines} lines of code");
        for unfinished in ["todo!(", "unimplemented!(", "FIXME", concat!("#[", "ignore"), concat!("#[", "allow")] {
            assert!(path == "it/tidy.rs" || !text.contains(unfinished), "{path} says {unfinished}");
        }
    }
}
