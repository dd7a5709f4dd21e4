//! The text a key's holder has, `mk_<8>_<32>`: generate, parse, checksum, hash, mask.
//!
//! It must not know of databases, accounts or HTTP. Nothing here prints the 32 characters after the prefix.

use std::borrow::Cow;
use std::fmt;

use rand::TryRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Changing the mark would revoke every key ever issued.
const MARK: &[u8; 3] = b"mk_";
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const PREFIX_LEN: usize = 8;
const RANDOM_LEN: usize = 26;
const CHECKSUM_LEN: usize = 6;
const PREFIX_AT: usize = MARK.len();
const SEPARATOR_AT: usize = PREFIX_AT + PREFIX_LEN;
const RANDOM_AT: usize = SEPARATOR_AT + 1;
const CHECKSUM_AT: usize = RANDOM_AT + RANDOM_LEN;

/// The length of what is shown of a key.
pub(crate) const MASKED_LEN: usize = 10;

/// The length of every key, in characters (all of them ASCII).
pub const LEN: usize = CHECKSUM_AT + CHECKSUM_LEN;

/// A whole key in clear: well formed, with a right checksum. It is shown once, at creation, and never stored.
pub struct Secret(Zeroizing<[u8; LEN]>);

/// Why a text cannot be a key. Neither case needs a look at the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not of the form mk_<8>_<32>")]
    Shape,
    #[error("the checksum is wrong")]
    Checksum,
}

/// The 8 characters that identify a secret; they are public and stored in clear.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix([u8; PREFIX_LEN]);

/// SHA-256 of a whole key. The key's 134 random bits need neither salt nor a slow hash.
#[derive(Clone, Copy, Debug)]
pub struct SecretHash([u8; 32]);

impl Secret {
    /// Draws a new key from `rng`, for which production passes the operating system's generator.
    ///
    /// # Errors
    /// The generator's own.
    pub fn generate<R: TryRng>(rng: &mut R) -> Result<Self, R::Error> {
        let mut text = Zeroizing::new([0; LEN]);
        text[..PREFIX_AT].copy_from_slice(MARK);
        fill_random(rng, &mut text[PREFIX_AT..SEPARATOR_AT])?;
        text[SEPARATOR_AT] = b'_';
        fill_random(rng, &mut text[RANDOM_AT..CHECKSUM_AT])?;
        let checksum = checksum(&text[..CHECKSUM_AT]);
        text[CHECKSUM_AT..].copy_from_slice(&checksum);
        Ok(Self(text))
    }

    /// Checks the form first, then the checksum.
    ///
    /// # Errors
    /// [`Malformed`], which says what was wrong but repeats nothing of the text.
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        if !has_shape(text) {
            return Err(Malformed::Shape);
        }
        if checksum(&text[..CHECKSUM_AT]) != text[CHECKSUM_AT..] {
            return Err(Malformed::Checksum);
        }
        let mut secret = Zeroizing::new([0; LEN]);
        secret.copy_from_slice(text);
        Ok(Self(secret))
    }

    pub fn prefix(&self) -> Prefix {
        let mut prefix = [0; PREFIX_LEN];
        prefix.copy_from_slice(&self.0[PREFIX_AT..SEPARATOR_AT]);
        Prefix(prefix)
    }

    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0.as_slice()).into())
    }

    /// The only way out, named so that a review can search for it.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.0.as_slice()).expect("every character comes from the alphabet")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(mk_{}_***)", self.prefix())
    }
}

/// Whether a text has a key's length and alphabet, whatever its checksum.
pub fn has_shape(text: &[u8]) -> bool {
    text.starts_with(MARK)
        && text.len() == LEN
        && text[SEPARATOR_AT] == b'_'
        && text[PREFIX_AT..SEPARATOR_AT].iter().chain(&text[RANDOM_AT..]).all(|c| is_in_alphabet(*c))
}

/// Whether a text that is about to be logged, stored or answered holds what looks like a key.
pub fn appears_in(text: &[u8]) -> bool {
    text.windows(LEN).any(has_shape)
}

/// The same text with each key in it masked, for whoever must repeat what was typed.
pub fn mask_in(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    while let Some(at) = text.as_bytes().windows(LEN).position(has_shape) {
        let prefix = Prefix::parse(&text[at + PREFIX_AT..at + SEPARATOR_AT]).expect("it has a key's shape");
        text.to_mut().replace_range(at..at + LEN, &prefix.masked());
    }
    text
}

impl Prefix {
    /// Reads a stored prefix; `None` if it is not 8 characters of the alphabet.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; PREFIX_LEN] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(|c| is_in_alphabet(*c)).then_some(Self(bytes))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("every character comes from the alphabet")
    }

    /// What lists show of a key: its first 6 characters and four asterisks.
    pub fn masked(&self) -> String {
        String::from_utf8(self.masked_bytes().to_vec()).expect("every character comes from the alphabet")
    }

    pub(crate) fn masked_bytes(self) -> [u8; MASKED_LEN] {
        let mut masked = *b"mk_???****";
        masked[MARK.len()..MARK.len() + 3].copy_from_slice(&self.0[..3]);
        masked
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({self})")
    }
}

impl SecretHash {
    /// `None` if a stored hash has not 32 bytes.
    pub fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The alphabet in the form that is looked at for each character of each key.
fn is_in_alphabet(character: u8) -> bool {
    character.is_ascii_digit() || character.is_ascii_lowercase()
}

/// Fills `characters` from the alphabet. A byte of 252 or more is thrown away, so that all 36 are equally likely.
fn fill_random<R: TryRng>(rng: &mut R, characters: &mut [u8]) -> Result<(), R::Error> {
    const FAIR: u8 = 252;
    let mut filled = 0;
    while filled < characters.len() {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(bytes.as_mut_slice())?;
        for byte in bytes.iter().filter(|byte| **byte < FAIR).take(characters.len() - filled) {
            characters[filled] = ALPHABET[usize::from(byte % 36)];
            filled += 1;
        }
    }
    Ok(())
}

/// CRC-32 (ISO-HDLC) modulo 36⁶, in base 36, the most significant digit first.
fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(body);
    let mut digits = [0; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 36) as usize];
        rest /= 36;
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use proptest::prelude::*;
    use rand::rngs::SysRng;

    use super::*;

    /// Plays back given bytes for ever, so that proptest can choose the key.
    struct Playback(Vec<u8>, usize);

    impl TryRng for Playback {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            let mut bytes = [0; 4];
            self.try_fill_bytes(&mut bytes)?;
            Ok(u32::from_le_bytes(bytes))
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            let mut bytes = [0; 8];
            self.try_fill_bytes(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            for byte in bytes {
                *byte = self.0[self.1 % self.0.len()];
                self.1 += 1;
            }
            Ok(())
        }
    }

    fn secret_from(mut bytes: Vec<u8>) -> Secret {
        bytes.push(7); // At least one byte that is not thrown away.
        let Ok(secret) = Secret::generate(&mut Playback(bytes, 0));
        secret
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_generated_parses_and_hashes_to_the_same(bytes in prop::collection::vec(any::<u8>(), 34..64)) {
            let secret = secret_from(bytes);
            let parsed = Secret::parse(secret.expose().as_bytes()).unwrap();
            prop_assert_eq!(parsed.expose(), secret.expose());
            prop_assert_eq!(parsed.prefix(), secret.prefix());
            prop_assert!(parsed.hash().matches(&secret.hash()));
        }

        #[test]
        fn any_one_changed_character_is_refused(
            bytes in prop::collection::vec(any::<u8>(), 34..64), at in 0..LEN, to in any::<u8>(),
        ) {
            let mut text = secret_from(bytes).expose().as_bytes().to_vec();
            prop_assume!(text[at] != to);
            text[at] = to;
            prop_assert!(Secret::parse(&text).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = Secret::parse(&bytes);
        }
    }

    #[test]
    fn every_change_within_the_alphabet_is_refused() {
        let secret = Secret::generate(&mut SysRng).unwrap();
        for at in 0..LEN {
            for &to in ALPHABET {
                let mut text = secret.expose().as_bytes().to_vec();
                if text[at] != to {
                    text[at] = to;
                    assert!(Secret::parse(&text).is_err());
                }
            }
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let secret = Secret::generate(&mut SysRng).unwrap();
        let text = secret.expose();
        for wrong in ["", "mk_", &text[..LEN - 1], &format!("{text}0"), &format!(" {text}")] {
            assert_eq!(Secret::parse(wrong.as_bytes()).unwrap_err(), Malformed::Shape);
        }
    }

    #[test]
    fn a_hundred_thousand_keys_are_distinct_and_evenly_spread() {
        const DRAWS: u32 = 100_000;
        let mut seen = HashSet::new();
        let mut counts = vec![[0u32; 36]; PREFIX_LEN + RANDOM_LEN];
        for _ in 0..DRAWS {
            let secret = Secret::generate(&mut SysRng).unwrap();
            let text = secret.expose().as_bytes();
            let random = text[PREFIX_AT..SEPARATOR_AT].iter().chain(&text[RANDOM_AT..CHECKSUM_AT]);
            for (count, character) in counts.iter_mut().zip(random) {
                let place = ALPHABET.iter().position(|c| c == character).unwrap();
                count[place] += 1;
            }
            assert!(seen.insert(secret.expose().to_owned()), "the same key twice");
        }
        let expected = f64::from(DRAWS) / 36.0;
        for (position, count) in counts.iter().enumerate() {
            let chi_square: f64 = count.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
            // 35 degrees of freedom: a fair generator passes 110 once in 10⁹ tests.
            assert!(chi_square < 110.0, "position {position}: chi-square {chi_square}");
        }
    }

    #[test]
    fn debug_shows_the_public_part_only() {
        let secret = Secret::generate(&mut SysRng).unwrap();
        let shown = format!("{secret:?}");
        assert_eq!(shown, format!("Secret(mk_{}_***)", secret.prefix()));
        assert!(!shown.contains(&secret.expose()[RANDOM_AT..]));
    }

    #[test]
    fn what_is_repeated_shows_no_more_than_a_list_does() {
        let one = Secret::generate(&mut SysRng).unwrap();
        let (text, masked) = (one.expose(), one.prefix().masked());
        for (typed, expected) in [
            ("é --name x".to_owned(), "é --name x".to_owned()),
            (text.to_owned(), masked.clone()),
            (format!("é '{text}'{text}é"), format!("é '{masked}'{masked}é")),
            (format!("mk_mk_{text}00"), format!("mk_mk_{masked}00")),
            (text[..LEN - 1].to_owned(), text[..LEN - 1].to_owned()),
        ] {
            assert_eq!(mask_in(&typed), expected);
        }
    }

    #[test]
    fn the_pages_example_has_the_right_shape_and_mask() {
        let example = b"mk_a1b2c3d4_e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0";
        assert!(has_shape(example));
        assert_eq!(Secret::parse(example).unwrap_err(), Malformed::Checksum);
        assert!(appears_in(b"key=mk_a1b2c3d4_e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0&x"));
        assert!(!appears_in(b"mk_a1b2c3d4_e5f6g7h8"));
        assert_eq!(Prefix::parse("a1b2c3d4").unwrap().masked(), "mk_a1b****");
    }
}
