//! `POST /v1/api-keys/{id}/rotate`: gives a key another secret, beside which the one before works for a while.

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::response::IntoResponse;
use rand::rngs::SysRng;
use utoipa::ToSchema;

use super::create::Warning;
use super::{IDEMPOTENCY_KEY, ROTATE, RotatedKey, SHOWN_ONCE};
use crate::account::Plan;
use crate::auth::Caller;
use crate::event::Origin;
use crate::http::App;
use crate::http::body::Members;
use crate::http::error::ApiError;
use crate::http::query::NoQuery;
use crate::http::retry::{Retry, Sealer};
use crate::http::wire::{JsonText, SuccessWithMeta};
use crate::id::KeyId;
use crate::key::{ApiKey, Grace, Refusal, Rotation};
use crate::secret::Secret;
use crate::store::{Kept, Rotated, SealRotated};

/// How a client wants a key rotated. The whole body may be left out.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(crate) struct RotateKey {
    /// Hours for which the secret before still works; absent or `null` for 24.
    #[schema(value_type = Option<u8>, minimum = 0, maximum = 168, default = 24, example = 24)]
    grace_period_hours: Option<Grace>,
}

impl RotateKey {
    fn read(mut members: Members) -> Result<Self, ApiError> {
        let grace_period_hours = members.optional_integer("gracePeriodHours");
        members.end()?;
        Ok(Self { grace_period_hours })
    }
}

/// Gives a key another secret, whose text is in this answer and nowhere else. Everything else about the key stays.
#[utoipa::path(post, path = ROTATE, operation_id = "rotateKey", tag = "keys", request_body = Option<RotateKey>,
    params(("id" = String, Path, description = "The key's `keyId`, or its plain UUID"),
        ("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY_KEY)),
    responses((status = 200, description = "The key with its new secret", body = SuccessWithMeta<RotatedKey, Warning>)))]
pub(crate) async fn rotate(
    caller: Caller,
    State(app): State<App>,
    (id, origin, NoQuery): (KeyId, Origin, NoQuery),
    retry: Option<Retry>,
    members: Option<Members>,
) -> Result<impl IntoResponse, ApiError> {
    let caller = app.judge_again(&caller).await?;
    let members = members.unwrap_or_else(Members::none);
    let retry = retry.map(|retry| retry.sealer(&app, &caller, &members)).transpose()?.map(Arc::new);
    let grace = RotateKey::read(members)?.grace_period_hours.unwrap_or_default();
    let (account_id, by, now) = (caller.account_id(), caller.permissions(), app.clock.now());
    let rotation = Rotation { account_id, id, grace, by, now, origin };
    let answer = Arc::new(Answer { app: app.clone(), plan: caller.plan(), shown: OnceLock::new() });
    let kept = retry.as_ref().map(|sealer| Kept { once: sealer.once, seal: seal(sealer, &answer) });
    let carried = app.store_for(&caller).rotate_key(rotation, kept, &mut SysRng).await?;
    let answer = match Sealer::judge(retry.as_deref(), carried)? {
        Ok(Rotated::Done(key, secret)) => answer.of(&key, &secret),
        Ok(Rotated::NotFound) => return Err(ApiError::NotFound),
        Ok(Rotated::Refused(Refusal::Needs(needed))) => return Err(app.lacks(&caller, needed)),
        Ok(Rotated::Refused(Refusal::StillLive(until))) => return Err(ApiError::TwoSecrets(until)),
        Err(before) => before,
    };
    // Also before an answer that is given again: the first one may have been cut off here.
    app.auth.settle_surely().await;
    Ok(JsonText(answer))
}

/// The answer to a rotation: made once, so that what is kept of it is what is sent.
struct Answer {
    app: App,
    plan: Plan,
    shown: OnceLock<Vec<u8>>,
}

impl Answer {
    fn of(&self, key: &ApiKey, secret: &Secret) -> Vec<u8> {
        let make = || {
            let mut key = key.clone();
            self.app.add_uses(&mut key);
            let rotated = self.app.view(self.plan).rotated(key, secret);
            SuccessWithMeta::new(rotated, Warning { warning: SHOWN_ONCE }).to_bytes()
        };
        self.shown.get_or_init(make).clone()
    }
}

fn seal(sealer: &Arc<Sealer>, answer: &Arc<Answer>) -> SealRotated {
    let (sealer, answer) = (Arc::clone(sealer), Arc::clone(answer));
    Arc::new(move |key, secret| sealer.seal(&answer.of(key, secret)))
}
