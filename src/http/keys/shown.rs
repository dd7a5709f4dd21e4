//! How keys are written in answers.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::account::Plan;
use crate::http::wire::timestamp;
use crate::key::{ApiKey, NewKey};
use crate::permission::{Catalogue, PermissionNames, Permissions};
use crate::secret::Secret;

/// What every answer that shows a key's text says beside it.
pub const SHOWN_ONCE: &str = "This API key will only be shown once. Please store it securely.";

/// A key as its account sees it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Stable for the key's whole life.
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub key_id: String,
    #[schema(min_length = 1, max_length = 100, example = "Production API")]
    pub name: String,
    /// The first 6 characters of the key, and four asterisks.
    #[schema(example = "mk_a1b****")]
    pub key_prefix: String,
    #[schema(value_type = PlanName)]
    pub plan: &'static str,
    /// Requests per minute; `null` if the plan has no such limit.
    #[schema(required = true, example = 100)]
    pub rate_limit: Option<u32>,
    #[schema(format = DateTime, required = true)]
    pub last_used: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime, required = true)]
    pub expiration_ts: Option<String>,
    /// What the key may do: `resource:action`.
    #[schema(value_type = Vec<String>, example = json!(["api-keys:read", "domains:read"]))]
    pub permissions: PermissionNames,
    /// Whether the key was left enabled. A disabled one opens nothing until it is enabled again.
    pub enabled: bool,
    #[schema(value_type = StatusName)]
    pub status: &'static str,
    /// The secret that still works beside the current one, after a rotation.
    #[schema(required = true)]
    pub previous_secret: Option<ShownSecret>,
}

/// A secret that another one has replaced.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownSecret {
    #[schema(example = "mk_a1b****")]
    pub key_prefix: String,
    /// Its own last use: once everybody uses the new one, this stands still.
    #[schema(format = DateTime, required = true)]
    pub last_used: Option<String>,
    /// From this instant on it opens nothing.
    #[schema(format = DateTime)]
    pub retires_ts: String,
}

/// A key with a secret just made: besides the answer to its creation the only one that shows `apiKey`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotatedKey {
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub key_id: String,
    #[schema(min_length = 1, max_length = 100, example = "Production API")]
    pub name: String,
    #[schema(pattern = "^mk_[0-9a-z]{8}_[0-9a-z]{32}$")]
    pub api_key: String,
    #[schema(example = "mk_a1b****")]
    pub key_prefix: String,
    #[schema(value_type = PlanName)]
    pub plan: &'static str,
    #[schema(required = true, example = 20)]
    pub rate_limit: Option<u32>,
    #[schema(format = DateTime, required = true)]
    pub expiration_ts: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(value_type = Vec<String>, example = json!(["api-keys:read", "domains:read"]))]
    pub permissions: PermissionNames,
    /// The secret before, while it still works.
    #[schema(required = true)]
    pub previous_secret: Option<ShownSecret>,
}

/// A key just made, with its text; only a rotation shows one again.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedKey {
    #[schema(example = "key_01hm5cqv1kf3w9zq2n8x7t4b6d")]
    pub key_id: String,
    #[schema(min_length = 1, max_length = 100, example = "Production API")]
    pub name: String,
    #[schema(pattern = "^mk_[0-9a-z]{8}_[0-9a-z]{32}$")]
    pub api_key: String,
    #[schema(example = "mk_a1b****")]
    pub key_prefix: String,
    #[schema(value_type = PlanName)]
    pub plan: &'static str,
    #[schema(required = true, example = 20)]
    pub rate_limit: Option<u32>,
    #[schema(format = DateTime, required = true)]
    pub expiration_ts: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    /// What the key may do: `resource:action`.
    #[schema(value_type = Vec<String>, example = json!(["api-keys:read", "domains:read"]))]
    pub permissions: PermissionNames,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it stands for the plan's name in the document")]
pub(crate) enum PlanName {
    Free,
    Pro,
    Enterprise,
}

/// `active` if the key opens something now.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it stands for the status in the document")]
pub(crate) enum StatusName {
    Active,
    Expired,
    Disabled,
}

/// What answers say of a key that is not the key's own.
pub struct View<'a> {
    pub plan: Plan,
    /// Requests per minute; `None` if the plan has no such limit.
    pub rate_limit: Option<u32>,
    pub catalogue: &'a Arc<Catalogue>,
    pub now: DateTime<Utc>,
}

impl View<'_> {
    pub fn key(&self, key: ApiKey) -> Key {
        let status = key.status(self.now).as_str();
        let previous_secret = self.previous(&key);
        Key {
            key_id: key.id.to_string(),
            name: key.name,
            key_prefix: key.prefix.masked(),
            plan: self.plan.as_str(),
            rate_limit: self.rate_limit,
            last_used: key.last_used_at.max(key.earlier_used_at).map(timestamp),
            created_at: timestamp(key.created_at),
            expiration_ts: key.expires_at.map(timestamp),
            permissions: self.names(key.permissions),
            enabled: key.disabled_at.is_none(),
            status,
            previous_secret,
        }
    }

    fn previous(&self, key: &ApiKey) -> Option<ShownSecret> {
        key.live_previous(self.now).map(|previous| ShownSecret {
            key_prefix: previous.prefix.masked(),
            last_used: previous.last_used_at.map(timestamp),
            retires_ts: timestamp(previous.retires_at),
        })
    }

    /// What a client, or the operator, is shown of a key with a new secret, once.
    pub fn rotated(&self, key: ApiKey, secret: &Secret) -> RotatedKey {
        let previous_secret = self.previous(&key);
        RotatedKey {
            key_id: key.id.to_string(),
            name: key.name,
            api_key: secret.expose().to_owned(),
            key_prefix: secret.prefix().masked(),
            plan: self.plan.as_str(),
            rate_limit: self.rate_limit,
            expiration_ts: key.expires_at.map(timestamp),
            created_at: timestamp(key.created_at),
            permissions: self.names(key.permissions),
            previous_secret,
        }
    }

    /// What a client, or the operator, is shown of a new key, once.
    pub fn created(&self, key: &NewKey, secret: &Secret) -> CreatedKey {
        CreatedKey {
            key_id: key.id.to_string(),
            name: key.name.as_str().to_owned(),
            api_key: secret.expose().to_owned(),
            key_prefix: secret.prefix().masked(),
            plan: self.plan.as_str(),
            rate_limit: self.rate_limit,
            expiration_ts: key.expires_at.map(timestamp),
            created_at: timestamp(key.created_at),
            permissions: self.names(key.permissions),
        }
    }

    fn names(&self, set: Permissions) -> PermissionNames {
        PermissionNames { catalogue: Arc::clone(self.catalogue), set }
    }
}
