//! What a key is, what a good name and life time are, and when a key is live. No I/O, and no clock: it is given `now`.

use chrono::{DateTime, TimeDelta, Utc};

use crate::account::Plan;
use crate::event::Origin;
use crate::id::{AccountId, KeyId};
use crate::permission::Permissions;
use crate::secret::{self, Prefix, SecretHash};

/// A key as its account's list shows it.
#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: KeyId,
    pub name: String,
    pub prefix: Prefix,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub permissions: Permissions,
    pub disabled_at: Option<DateTime<Utc>>,
    /// The last use of its current secret.
    pub last_used_at: Option<DateTime<Utc>>,
    /// The last use of all secrets before.
    pub earlier_used_at: Option<DateTime<Utc>>,
    /// The secret that was replaced last, if any ever was.
    pub previous: Option<PreviousSecret>,
}

/// A secret that another one has replaced.
#[derive(Clone, Debug)]
pub struct PreviousSecret {
    pub prefix: Prefix,
    pub last_used_at: Option<DateTime<Utc>>,
    /// From this instant on it opens nothing.
    pub retires_at: DateTime<Utc>,
}

/// When a secret retires that shall open nothing from now on. Not "now": another replica's clock may be a little behind, and
/// an answered end holds everywhere.
pub fn at_once() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

/// Whether a key that is not revoked opens anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Active,
    Expired,
    /// Until it is enabled again, whether it has expired or not.
    Disabled,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Disabled => "disabled",
        }
    }
}

/// A text that names no status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be active, expired or disabled")]
pub struct UnknownStatus;

impl TryFrom<&str> for Status {
    type Error = UnknownStatus;

    fn try_from(text: &str) -> Result<Self, UnknownStatus> {
        [Self::Active, Self::Expired, Self::Disabled].into_iter().find(|s| s.as_str() == text).ok_or(UnknownStatus)
    }
}

impl ApiKey {
    pub fn status(&self, now: DateTime<Utc>) -> Status {
        match self.expires_at {
            _ if self.disabled_at.is_some() => Status::Disabled,
            Some(end) if end <= now => Status::Expired,
            _ => Status::Active,
        }
    }

    /// Carries out an edit, or says which permissions whoever asks would need for it.
    ///
    /// Nobody gives what they have not: neither by a permission, nor by more time or another chance for a key that has it. What
    /// only takes away, or renames, is allowed towards every key of the account.
    pub fn edit(&mut self, edit: &Edit, now: DateTime<Utc>) -> Result<(), Permissions> {
        let gives = edit.permissions.is_some() || edit.expiry.is_some() || edit.enabled == Some(true);
        let needed = if gives { self.permissions } else { Permissions::NOTHING };
        let needed = needed.with(edit.permissions.unwrap_or(Permissions::NOTHING));
        if !edit.by.contains(needed) {
            return Err(needed);
        }
        if let Some(name) = &edit.name {
            name.as_str().clone_into(&mut self.name);
        }
        self.permissions = edit.permissions.unwrap_or(self.permissions);
        match edit.expiry {
            Some(Expiry::Never) => self.expires_at = None,
            Some(Expiry::After(lifetime)) => self.expires_at = Some(lifetime.end(now)),
            None => (),
        }
        if let Some(previous) = self.previous.as_mut().filter(|_| edit.retire_now) {
            previous.retires_at = previous.retires_at.min(at_once());
        }
        match edit.enabled {
            Some(true) => self.disabled_at = None,
            Some(false) => self.disabled_at = self.disabled_at.or(Some(now)),
            None => (),
        }
        Ok(())
    }

    /// The secret that still works beside the current one.
    pub fn live_previous(&self, now: DateTime<Utc>) -> Option<&PreviousSecret> {
        self.previous.as_ref().filter(|previous| previous.retires_at > now)
    }

    /// Makes `prefix` name the current secret, and says when the one before it retires.
    pub fn rotate(&mut self, rotation: &Rotation, prefix: Prefix) -> Result<DateTime<Utc>, Refusal> {
        if !rotation.by.contains(self.permissions) {
            return Err(Refusal::Needs(self.permissions));
        }
        if let Some(previous) = self.live_previous(rotation.now) {
            return Err(Refusal::StillLive(previous.retires_at));
        }
        let retires_at = rotation.grace.end(rotation.now);
        let last_used_at = self.last_used_at.take();
        self.earlier_used_at = self.earlier_used_at.max(last_used_at);
        self.previous = Some(PreviousSecret { prefix: self.prefix, last_used_at, retires_at });
        self.prefix = prefix;
        Ok(retires_at)
    }
}

/// How a key gets another secret.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub account_id: AccountId,
    pub id: KeyId,
    /// How long the one before it still works.
    pub grace: Grace,
    /// What the one may do who asks for it: whoever is shown a key's secret may do what the key may.
    pub by: Permissions,
    pub now: DateTime<Utc>,
    pub origin: Origin,
}

/// Why a key gets no other secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Whoever asks would need these permissions.
    Needs(Permissions),
    /// It has two already, one of them until this instant.
    StillLive(DateTime<Utc>),
}

/// What shall be different about a key; what is `None` stays.
#[derive(Clone, Debug)]
pub struct Edit {
    pub name: Option<KeyName>,
    pub permissions: Option<Permissions>,
    pub expiry: Option<Expiry>,
    pub enabled: Option<bool>,
    /// Whether the secret before the current one shall open nothing any more.
    pub retire_now: bool,
    /// What the one may do who asks for it.
    pub by: Permissions,
    pub origin: Origin,
}

impl Edit {
    /// The members that are given, as the API names them.
    pub fn given(&self) -> String {
        let members = [
            ("name", self.name.is_some()),
            ("permissions", self.permissions.is_some()),
            ("expirationDays", self.expiry.is_some()),
            ("enabled", self.enabled.is_some()),
        ];
        members.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Never,
    /// Counted from the edit.
    After(Lifetime),
}

/// A key about to be stored; its secret is drawn by the store's caller.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub id: KeyId,
    pub account_id: AccountId,
    pub name: KeyName,
    pub permissions: Permissions,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    /// The operator, unless somebody else is named.
    pub origin: Origin,
}

impl NewKey {
    pub fn new(
        account_id: AccountId,
        name: KeyName,
        permissions: Permissions,
        lifetime: Option<Lifetime>,
        now: DateTime<Utc>,
    ) -> Self {
        let expires_at = lifetime.map(|lifetime| lifetime.end(now));
        let origin = Origin::operator();
        Self { id: KeyId::new(), account_id, name, permissions, created_at: now, expires_at, origin }
    }

    /// The same key, made by somebody else than the operator.
    #[must_use]
    pub fn by(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }
}

/// What the store knows of a secret that was presented: whose it is, and what judges it.
#[derive(Clone, Debug)]
pub struct Credential {
    pub prefix: Prefix,
    pub hash: SecretHash,
    pub key_id: KeyId,
    pub account_id: AccountId,
    pub plan: Plan,
    pub permissions: Permissions,
    pub expires_at: Option<DateTime<Utc>>,
    /// From when on it opens nothing, because another secret has replaced it.
    pub retires_at: Option<DateTime<Utc>>,
    pub revoked: bool,
    pub disabled: bool,
    pub never_used: bool,
    /// The number of the last change when this was read, in the same snapshot.
    pub as_of: i64,
}

/// Whether a credential opens anything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Live,
    /// With its key, or because its grace after a rotation is over.
    Revoked,
    Disabled,
    /// From the given instant on.
    Expired(DateTime<Utc>),
}

impl Credential {
    pub fn standing(&self, now: DateTime<Utc>) -> Standing {
        let is_retired = self.retires_at.is_some_and(|end| end <= now);
        match self.expires_at {
            _ if self.revoked || is_retired => Standing::Revoked,
            _ if self.disabled => Standing::Disabled,
            Some(end) if end <= now => Standing::Expired(end),
            _ => Standing::Live,
        }
    }
}

/// A key's name: 1 to 100 characters (Unicode scalar values) after trimming, none of them a control character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("must not be empty")]
    Empty,
    #[error("must have at most {} characters", KeyName::MAX_CHARS)]
    TooLong,
    #[error("must not contain control characters")]
    ControlCharacter,
    /// A name is stored and shown; a key pasted into the wrong field must not be.
    #[error("must not contain an API key")]
    HoldsKey,
}

impl KeyName {
    pub const MAX_CHARS: usize = 100;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for KeyName {
    type Error = InvalidName;

    fn try_from(text: &str) -> Result<Self, InvalidName> {
        // Before trimming, which would hide a line break at either end.
        if text.chars().any(char::is_control) {
            return Err(InvalidName::ControlCharacter);
        }
        if secret::appears_in(text.as_bytes()) {
            return Err(InvalidName::HoldsKey);
        }
        let name = text.trim();
        match name.chars().count() {
            0 => Err(InvalidName::Empty),
            1..=Self::MAX_CHARS => Ok(Self(name.to_owned())),
            _ => Err(InvalidName::TooLong),
        }
    }
}

/// How long a key shall live: 1 to 365 times 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a whole number from {} to {}", Lifetime::MIN_DAYS, Lifetime::MAX_DAYS)]
pub struct InvalidLifetime;

impl Lifetime {
    pub const MIN_DAYS: u16 = 1;
    pub const MAX_DAYS: u16 = 365;

    fn end(self, start: DateTime<Utc>) -> DateTime<Utc> {
        start + TimeDelta::days(self.0.into())
    }
}

impl TryFrom<i64> for Lifetime {
    type Error = InvalidLifetime;

    fn try_from(days: i64) -> Result<Self, InvalidLifetime> {
        match u16::try_from(days) {
            Ok(days @ Self::MIN_DAYS..=Self::MAX_DAYS) => Ok(Self(days)),
            _ => Err(InvalidLifetime),
        }
    }
}

/// How long the secret before the current one still works: 0 to 168 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace(u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a whole number from 0 to {}", Grace::MAX_HOURS)]
pub struct InvalidGrace;

impl Grace {
    pub const MAX_HOURS: u8 = 168;

    fn end(self, start: DateTime<Utc>) -> DateTime<Utc> {
        if self.0 == 0 { at_once() } else { start + TimeDelta::hours(self.0.into()) }
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self(24)
    }
}

impl TryFrom<i64> for Grace {
    type Error = InvalidGrace;

    fn try_from(hours: i64) -> Result<Self, InvalidGrace> {
        match u8::try_from(hours) {
            Ok(hours @ 0..=Self::MAX_HOURS) => Ok(Self(hours)),
            _ => Err(InvalidGrace),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_accepted_name_is_the_trimmed_text_and_fits(text in any::<String>()) {
            if let Ok(name) = KeyName::try_from(text.as_str()) {
                prop_assert_eq!(name.as_str(), text.trim());
                prop_assert!((1..=KeyName::MAX_CHARS).contains(&name.as_str().chars().count()));
                prop_assert!(!text.chars().any(char::is_control));
            }
        }

        #[test]
        fn a_lifetime_is_accepted_exactly_from_1_to_365(days in -1000i64..1000) {
            prop_assert_eq!(Lifetime::try_from(days).is_ok(), (1..=365).contains(&days));
        }
    }

    #[test]
    fn a_name_is_refused_for_the_right_reason() {
        assert_eq!(KeyName::try_from(""), Err(InvalidName::Empty));
        assert_eq!(KeyName::try_from("  "), Err(InvalidName::Empty));
        assert_eq!(KeyName::try_from("a\nb"), Err(InvalidName::ControlCharacter));
        assert_eq!(KeyName::try_from("\0"), Err(InvalidName::ControlCharacter));
        let pasted = "my mk_a1b2c3d4_e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0";
        assert_eq!(KeyName::try_from(pasted), Err(InvalidName::HoldsKey));
        assert_eq!(KeyName::try_from("𝄞".repeat(101).as_str()), Err(InvalidName::TooLong));
        assert!(KeyName::try_from("𝄞".repeat(100).as_str()).is_ok());
    }

    #[test]
    fn a_key_is_refused_from_its_last_instant_on() {
        let now = DateTime::from_timestamp_millis(1_700_000_000_000).unwrap();
        let secret = crate::secret::Secret::generate(&mut rand::rngs::SysRng).unwrap();
        let mut credential = Credential {
            prefix: secret.prefix(),
            hash: secret.hash(),
            key_id: KeyId::new(),
            account_id: AccountId::new(),
            plan: Plan::Free,
            permissions: Permissions::EVERYTHING,
            expires_at: Some(now),
            retires_at: None,
            revoked: false,
            disabled: false,
            never_used: true,
            as_of: 0,
        };
        assert_eq!(credential.standing(now - TimeDelta::milliseconds(1)), Standing::Live);
        assert_eq!(credential.standing(now), Standing::Expired(now));
        credential.expires_at = None;
        credential.retires_at = Some(now);
        assert_eq!(credential.standing(now - TimeDelta::milliseconds(1)), Standing::Live);
        assert_eq!(credential.standing(now), Standing::Revoked);
        credential.retires_at = None;
        credential.disabled = true;
        assert_eq!(credential.standing(now), Standing::Disabled);
        credential.revoked = true;
        assert_eq!(credential.standing(now), Standing::Revoked);
    }
}
