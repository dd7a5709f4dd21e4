//! Public ids: a UUIDv7 written as `key_…` or `acc_…` in the TypeID base32 form (<https://github.com/jetify-com/typeid>).

use std::fmt;

use uuid::Uuid;

/// Crockford's alphabet, lower case.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 characters of 5 bits hold 130 bits, of which a UUID uses the lower 128.
const ENCODED_LEN: usize = 26;

/// The length of every public form: a mark of four characters before the rest.
pub(crate) const PUBLIC_LEN: usize = 4 + ENCODED_LEN;

macro_rules! public_id {
    ($(#[$doc:meta])* $name:ident, $mark:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, later than all that this process made before.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The public form, in ASCII.
            pub(crate) fn bytes(self) -> [u8; PUBLIC_LEN] {
                let mut bytes = [0; PUBLIC_LEN];
                let (mark, encoded) = bytes.split_at_mut($mark.len());
                mark.copy_from_slice($mark.as_bytes());
                encoded.copy_from_slice(&encode(self.0));
                bytes
            }

            /// Reads the public form or the plain UUID with its hyphens.
            pub fn parse(text: &str) -> Option<Self> {
                match text.strip_prefix($mark) {
                    Some(encoded) => decode(encoded),
                    None if text.len() == uuid::fmt::Hyphenated::LENGTH => text.parse().ok(),
                    None => None,
                }
                .map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(std::str::from_utf8(&self.bytes()).expect("every character comes from the alphabet"))
            }
        }
    };
}

public_id!(
    /// Identifies an API key for good, whatever secrets it has had.
    KeyId,
    "key_"
);
public_id!(
    /// Identifies the account that owns keys.
    AccountId,
    "acc_"
);

fn encode(id: Uuid) -> [u8; ENCODED_LEN] {
    let mut rest = id.as_u128();
    let mut encoded = [0; ENCODED_LEN];
    for character in encoded.iter_mut().rev() {
        *character = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    encoded
}

fn decode(encoded: &str) -> Option<Uuid> {
    // A first character above 7 would need more than 128 bits.
    if encoded.len() != ENCODED_LEN || encoded.as_bytes()[0] > b'7' {
        return None;
    }
    let mut value = 0u128;
    for character in encoded.bytes() {
        let digit = ALPHABET.iter().position(|c| *c == character)?;
        value = value << 5 | digit as u128;
    }
    Some(Uuid::from_u128(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_forms_are_read_back(bits in any::<u128>()) {
            let id = KeyId(Uuid::from_u128(bits));
            prop_assert_eq!(KeyId::parse(&id.to_string()), Some(id));
            prop_assert_eq!(KeyId::parse(&id.0.to_string()), Some(id));
        }

        #[test]
        fn any_text_is_an_id_or_refused(text in "\\PC{0,40}") {
            let _ = KeyId::parse(&text);
            let _ = KeyId::parse(&format!("key_{text}"));
        }
    }

    #[test]
    fn the_encoding_is_that_of_the_typeid_specification() {
        let id = KeyId(Uuid::from_u128(0x0110_c853_1d09_52d8_d73e_1194_e95b_5f19));
        assert_eq!(id.to_string(), "key_0123456789abcdefghjkmnpqrs");
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        let id = KeyId::new().to_string();
        for wrong in [
            "",
            "key_",
            "key_abc123",
            "0",
            &id[4..],
            &id.to_uppercase(),
            "key_80000000000000000000000000",
            "key_0000000000000000000000000u",
            "acc_00000000000000000000000000",
            "{00000000-0000-0000-0000-000000000000}",
        ] {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
    }
}
