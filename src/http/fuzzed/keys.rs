//! The texts of keys and of ids.

use uuid::Uuid;

use crate::id::{AccountId, KeyId};
use crate::secret::{self, Malformed, Prefix, Secret};

const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const ID_ALPHABET: &[u8] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// What a stranger sends as a key, and as an id.
///
/// # Panics
/// If what is read differs from what the simpler reading says.
pub fn key(bytes: &[u8]) {
    check_secret(bytes);
    // No fuzzer guesses a checksum.
    let (made, wrong) = with_checksum(bytes);
    assert!(check_secret(&made));
    assert!(!check_secret(&wrong));
    let appears = (0..bytes.len()).any(|at| looks_like_a_key(bytes.get(at..at + 44).unwrap_or_default()));
    assert_eq!(secret::appears_in(bytes), appears);
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_prefix(text);
        check_ids(text);
        check_ids(&format!("key_{text}"));
    }
}

/// Whether the text is a key.
fn check_secret(text: &[u8]) -> bool {
    match Secret::parse(text) {
        Ok(parsed) => {
            assert!(looks_like_a_key(text) && checksum(&text[..38]) == text[38..]);
            assert_eq!(parsed.expose().as_bytes(), text);
            assert_eq!(parsed.prefix().as_str().as_bytes(), &text[3..11]);
            assert_eq!(parsed.prefix().masked().as_bytes()[..6], text[..6]);
            let shown = format!("{parsed:?}");
            assert!(!shown.contains(&parsed.expose()[12..]));
            true
        }
        Err(Malformed::Shape) => {
            assert!(!looks_like_a_key(text));
            false
        }
        Err(Malformed::Checksum) => {
            assert!(looks_like_a_key(text) && checksum(&text[..38]) != text[38..]);
            false
        }
    }
}

/// `mk_`, 8 characters, `_`, 32 characters.
pub(super) fn looks_like_a_key(text: &[u8]) -> bool {
    let parts: Vec<_> = text.split(|c| *c == b'_').collect();
    let [mark, prefix, rest] = parts[..] else { return false };
    let are_ours = |part: &[u8]| part.iter().all(|c| ALPHABET.contains(c));
    mark == b"mk" && prefix.len() == 8 && rest.len() == 32 && are_ours(prefix) && are_ours(rest)
}

/// CRC-32, bit by bit, as six digits of base 36.
fn checksum(body: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in body {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let mut rest = !crc;
    let mut digits: Vec<u8> = Vec::new();
    for _ in 0..6 {
        digits.insert(0, ALPHABET[(rest % 36) as usize]);
        rest /= 36;
    }
    digits
}

/// A key made of these bytes, and the same with one character changed.
fn with_checksum(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut characters = bytes.iter().map(|byte| ALPHABET[usize::from(byte % 36)]).chain(std::iter::repeat(b'0'));
    let mut made = b"mk_".to_vec();
    made.extend(characters.by_ref().take(8));
    made.push(b'_');
    made.extend(characters.by_ref().take(26));
    made.extend(checksum(&made));
    let mut wrong = made.clone();
    let at = bytes.len() % made.len();
    wrong[at] = if wrong[at] == b'7' { b'8' } else { b'7' };
    (made, wrong)
}

fn check_prefix(text: &str) {
    let is_prefix = text.len() == 8 && text.bytes().all(|c| ALPHABET.contains(&c));
    assert_eq!(Prefix::parse(text).map(|prefix| prefix.to_string()), is_prefix.then(|| text.to_owned()));
}

fn check_ids(text: &str) {
    let key_id = KeyId::parse(text);
    assert_eq!(key_id.map(|id| id.0), id_of(text, "key_"));
    assert_eq!(AccountId::parse(text).map(|id| id.0), id_of(text, "acc_"));
    if let Some(id) = key_id {
        let written = if text.starts_with("key_") { id.to_string() } else { id.0.to_string() };
        assert_eq!(written, text.to_ascii_lowercase());
        assert_eq!(KeyId::parse(&id.to_string()), Some(id));
    }
}

fn id_of(text: &str, mark: &str) -> Option<Uuid> {
    if let Some(digits) = text.strip_prefix(mark) {
        let has_length = digits.len() == 26;
        let places: Option<Vec<_>> = digits.bytes().map(|c| ID_ALPHABET.iter().position(|known| *known == c)).collect();
        let value = places
            .filter(|_| has_length)?
            .into_iter()
            .try_fold(0u128, |value, place| value.checked_mul(32)?.checked_add(u128::try_from(place).ok()?));
        return value.map(Uuid::from_u128);
    }
    let groups: Vec<_> = text.split('-').collect();
    let has_form = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    let is_hexadecimal = text.bytes().all(|c| c == b'-' || c.is_ascii_hexdigit());
    if !has_form || !is_hexadecimal {
        return None;
    }
    u128::from_str_radix(&groups.concat(), 16).ok().map(Uuid::from_u128)
}
