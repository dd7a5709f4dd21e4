//! Keys that nobody was given.

use momail_api_keys::secret::Secret;
use rand::rngs::SysRng;

use super::leaks::checksum;

/// A well-formed key with a prefix that nothing has.
pub(crate) fn unknown_key() -> String {
    Secret::generate(&mut SysRng).unwrap().expose().to_owned()
}

/// A key with the prefix of another and a right checksum: known, but with the wrong secret.
pub(crate) fn with_wrong_secret(key: &str) -> String {
    // The checksum covers the prefix, so it has to be found anew.
    let body = format!("{}{}", &key[..12], &unknown_key()[12..38]);
    let checksum = checksum(body.as_bytes());
    body + std::str::from_utf8(&checksum).unwrap()
}

/// The same key with a wrong checksum.
pub(crate) fn with_wrong_checksum(key: &str) -> String {
    format!("{}{}", &key[..43], if key.ends_with('0') { '1' } else { '0' })
}
