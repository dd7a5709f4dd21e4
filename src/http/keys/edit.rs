//! `PATCH /v1/api-keys/{id}`: changes what is said of a key, and what it may do.

use axum::extract::State;
use axum::response::IntoResponse;
use utoipa::ToSchema;

use super::{ITEM, Key};
use crate::auth::Caller;
use crate::event::Origin;
use crate::http::App;
use crate::http::body::Members;
use crate::http::error::ApiError;
use crate::http::query::NoQuery;
use crate::http::wire::Success;
use crate::id::KeyId;
use crate::key::{Edit, Expiry, KeyName, Lifetime};
use crate::permission::{Catalogue, Permissions};
use crate::store::Edited;

/// What a client wants to be different; what is absent stays as it is.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "it stands for the body in the document; what is read of it is an `Edit`")]
pub(crate) struct EditKey {
    /// 1 to 100 characters after trimming, none of them a control character.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 100, nullable = false, example = "Production API")]
    name: Option<KeyName>,
    /// What the key may do from now on, at most what its editor may; `null` for just as much.
    #[schema(value_type = Option<Vec<String>>, example = json!(["domains:read"]))]
    permissions: Option<Permissions>,
    /// Days of 24 hours from now until the key expires; `null` if it never shall.
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 365, example = 30)]
    expiration_days: Option<Lifetime>,
    /// Whether the key opens anything; `true` brings a disabled key back.
    #[schema(nullable = false)]
    enabled: Option<bool>,
    /// `true` ends the secret that a rotation has replaced, before its grace is over.
    #[schema(nullable = false)]
    retire_now: Option<bool>,
}

/// The members that there are, for a body that has none of them.
const NOTHING_GIVEN: &str = "must say what to change: name, permissions, expirationDays, enabled or retireNow";

fn read(mut members: Members, catalogue: &Catalogue, by: Permissions) -> Result<Edit, ApiError> {
    if members.is_empty() {
        return Err(ApiError::invalid("body", NOTHING_GIVEN));
    }
    let name = members.given_text("name");
    let has_permissions = members.has("permissions");
    let permissions = members.optional_permissions("permissions", catalogue);
    let has_expiry = members.has("expirationDays");
    let lifetime = members.optional_integer("expirationDays");
    let enabled = members.given_boolean("enabled");
    let retire_now = members.given_boolean("retireNow").unwrap_or(false);
    members.end()?;
    Ok(Edit {
        name,
        permissions: has_permissions.then(|| permissions.unwrap_or(by)),
        expiry: has_expiry.then(|| lifetime.map_or(Expiry::Never, Expiry::After)),
        enabled,
        retire_now,
        by,
        origin: Origin::operator(),
    })
}

/// Changes a key of the caller's account. A key that may do more than the caller can be renamed, disabled, deprived of
/// its previous secret and revoked by it, and no more.
#[utoipa::path(patch, path = ITEM, operation_id = "editKey", tag = "keys", request_body = EditKey,
    params(("id" = String, Path, description = "The key's `keyId`, or its plain UUID")),
    responses((status = 200, description = "The key as it is now, on every replica", body = Success<Key>)))]
pub(crate) async fn edit(
    caller: Caller,
    State(app): State<App>,
    (id, origin, NoQuery): (KeyId, Origin, NoQuery),
    members: Members,
) -> Result<impl IntoResponse, ApiError> {
    let caller = app.judge_again(&caller).await?;
    let edit = Edit { origin, ..read(members, app.store.catalogue(), caller.permissions())? };
    match app.store_for(&caller).edit_key(caller.account_id(), id, edit, app.clock.now()).await? {
        Edited::Done(key) => {
            app.auth.settle().await?;
            Ok(Success::new(app.show(*key, &app.view(caller.plan()))))
        }
        Edited::NotFound => Err(ApiError::NotFound),
        Edited::Needs(needed) => Err(app.lacks(&caller, needed)),
    }
}
