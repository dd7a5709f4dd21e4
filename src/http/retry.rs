//! `Idempotency-Key`: a request that may be sent again after a lost answer, and is carried out once.
//!
//! The answer holds a secret. It is kept encrypted under a key that is derived from the caller's own API key, which nobody but
//! the caller has: whoever reads the database cannot read the answer, and neither can another key of the same account.

use axum::extract::OptionalFromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;
use rand::TryRng;
use rand::rngs::SysRng;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use sha2::{Digest, Sha256};

use super::App;
use super::body::Members;
use super::error::ApiError;
use super::guard::presented;
use crate::auth::Caller;
use crate::store::{Carried, Once, StoreError};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_LEN: usize = 255;
/// Another use of the same secret would have another salt.
const SALT: &[u8] = b"momail-api-keys idempotent answer 1";

/// What a client says with `Idempotency-Key`.
pub(super) struct Retry {
    key_hash: [u8; 32],
    /// Of the method and the path; the body's is added when it has been read.
    target: Sha256,
    seal: LessSafeKey,
}

impl OptionalFromRequestParts<App> for Retry {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Option<Self>, ApiError> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let text = value.as_bytes();
        let is_good = (1..=MAX_LEN).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
        if !is_good || values.next().is_some() {
            let problem = format!("must be given once, as 1 to {MAX_LEN} visible ASCII characters");
            return Err(ApiError::invalid("Idempotency-Key", problem));
        }
        let secret = presented(parts).map_err(|_| ApiError::Unauthorized)?;
        let target = Sha256::new_with_prefix(parts.method.as_str()).chain_update(b"\n").chain_update(parts.uri.path());
        Ok(Some(Self { key_hash: Sha256::digest(text).into(), target, seal: derive(secret, text) }))
    }
}

impl Retry {
    /// What carries the request out once: known to the store by its account, this header, and all that it asks for.
    pub(super) fn sealer(self, app: &App, caller: &Caller, body: &Members) -> Result<Sealer, ApiError> {
        let Self { key_hash, target, seal } = self;
        let request_hash = target.chain_update(b"\n").chain_update(body.digest()).finalize().into();
        let once = Once { account_id: caller.account_id(), key_hash, request_hash, now: app.clock.now() };
        let mut nonce = [0; NONCE_LEN];
        SysRng.try_fill_bytes(&mut nonce).map_err(StoreError::from)?;
        Ok(Sealer { once, nonce, seal })
    }
}

/// Encrypts the answer to one request, and decrypts that to an earlier one.
pub(super) struct Sealer {
    pub(super) once: Once,
    /// At most one of what is sealed with it is kept.
    nonce: [u8; NONCE_LEN],
    seal: LessSafeKey,
}

impl Sealer {
    /// The nonce, and the answer encrypted.
    pub(super) fn seal(&self, answer: &[u8]) -> Vec<u8> {
        let mut sealed = answer.to_vec();
        self.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(self.nonce), self.bound_to(), &mut sealed)
            .expect("an answer is far shorter than what may be encrypted");
        sealed.splice(0..0, self.nonce);
        sealed
    }

    /// `None` if it was sealed by another key of the account.
    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut answer = sealed.to_vec();
        let len = self.seal.open_in_place(nonce, self.bound_to(), &mut answer).ok()?.len();
        answer.truncate(len);
        Some(answer)
    }

    /// An answer that was moved to another request's row is not opened there.
    fn bound_to(&self) -> Aad<[u8; 32]> {
        Aad::from(self.once.request_hash)
    }

    /// What was done now, or the answer that was given before.
    pub(super) fn judge<T>(sealer: Option<&Self>, carried: Carried<T>) -> Result<Result<T, Vec<u8>>, ApiError> {
        match carried {
            Carried::Out(done) => Ok(Ok(done)),
            Carried::Before(kept) => {
                sealer.and_then(|sealer| sealer.open(&kept)).map(Err).ok_or(ApiError::OtherRequest)
            }
            Carried::OutOtherwise => Err(ApiError::OtherRequest),
            Carried::Still => Err(ApiError::StillRunning),
        }
    }
}

fn derive(secret: &[u8], idempotency_key: &[u8]) -> LessSafeKey {
    let extracted = Salt::new(HKDF_SHA256, SALT).extract(secret);
    let info = [idempotency_key];
    let expanded = extracted.expand(&info, &CHACHA20_POLY1305).expect("a key is far shorter than what may be derived");
    LessSafeKey::new(UnboundKey::from(expanded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(secret: &[u8], idempotency_key: &[u8], nonce: u8) -> Sealer {
        let hash = Sha256::digest(idempotency_key).into();
        let now = chrono::DateTime::UNIX_EPOCH;
        let once = Once { account_id: crate::id::AccountId::new(), key_hash: hash, request_hash: hash, now };
        Sealer { once, nonce: [nonce; NONCE_LEN], seal: derive(secret, idempotency_key) }
    }

    #[test]
    fn an_answer_is_read_by_whoever_has_both_keys_and_by_nobody_else() {
        let sealed = sealer(b"secret", b"key", 1).seal(b"the answer");
        assert!(!sealed.windows(6).any(|part| part == b"answer"));
        assert_eq!(sealer(b"secret", b"key", 2).open(&sealed).unwrap(), b"the answer");
        assert_eq!(sealer(b"secreT", b"key", 1).open(&sealed), None);
        assert_eq!(sealer(b"secret", b"keY", 1).open(&sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(sealer(b"secret", b"key", 1).open(&changed), None, "{at}");
        }
        assert_eq!(sealer(b"secret", b"key", 1).open(&sealed[..5]), None);
    }
}
