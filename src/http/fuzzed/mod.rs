//! What fuzzers call: each function reads bytes as strangers send them, and holds what our parser makes of them against a
//! simpler one of its own. The fuzzers are in `tests/fuzz`; their seeds are read by the tests here as well.

mod bodies;
mod clients;
mod keys;
mod queries;

pub use self::bodies::body;
pub use self::clients::forwarded_for;
pub use self::keys::key;
pub use self::queries::query;
use super::error::ApiError;
use crate::secret;

/// A refusal names what is wrong, and repeats no key.
fn check_refusal(refusal: &ApiError) {
    let ApiError::Invalid(fields) = refusal else { panic!("{refusal:?}") };
    assert!(!fields.is_empty());
    for text in fields.iter().flat_map(|(name, problem)| [name, problem]) {
        assert!(!secret::appears_in(text.as_bytes()), "{text}");
        assert!(text.len() < 4_000, "{} bytes", text.len());
    }
}

/// What may be the name of a key, or a part of one.
fn name_of(text: &str) -> Option<&str> {
    let holds_key =
        (0..text.len()).any(|at| keys::looks_like_a_key(text.as_bytes().get(at..at + 44).unwrap_or_default()));
    let has_controls = text.chars().any(|c| matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}'));
    let name = text.trim_matches(char::is_whitespace);
    let has_length = (1..=100).contains(&name.chars().count());
    (!holds_key && !has_controls && has_length).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// So that a seed which shows a fault is noticed where no fuzzer runs.
    #[test]
    fn every_seed_of_the_fuzzers_is_read_as_it_should_be() {
        type Check = fn(&[u8]);
        let targets: [(&str, Check); 4] = [
            ("key", super::key),
            ("forwarded_for", super::forwarded_for),
            ("body", super::body),
            ("query", super::query),
        ];
        for (target, check) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
            let mut seeds = 0;
            for seed in fs::read_dir(&folder).unwrap() {
                check(&fs::read(seed.unwrap().path()).unwrap());
                seeds += 1;
            }
            assert!(seeds >= 5, "{} has {seeds} seeds", folder.display());
        }
    }
}
