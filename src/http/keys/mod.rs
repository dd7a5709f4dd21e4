//! The key endpoints, one file each, and how they show keys.

mod create;
mod current;
mod edit;
mod events;
mod list;
mod revoke;
mod rotate;
mod show;
mod shown;
mod usage;

pub(super) use self::create::{__path_create, create};
pub(super) use self::current::{__path_revoke_current, __path_show_current, revoke_current, show_current};
pub(super) use self::edit::{__path_edit, edit};
pub use self::events::ShownEvent;
pub(super) use self::events::{__path_events, events};
pub(super) use self::list::{__path_list, list};
pub(super) use self::revoke::{__path_revoke, revoke};
pub(super) use self::rotate::{__path_rotate, rotate};
pub(super) use self::show::{__path_show, show};
pub use self::shown::{CreatedKey, Key, RotatedKey, SHOWN_ONCE, View};
pub use self::usage::ShownUsage;
pub(super) use self::usage::{__path_usage, usage};
use super::App;
use super::error::ApiError;
use crate::account::Plan;
use crate::auth::Caller;
use crate::key::ApiKey;
use crate::permission::Permissions;
use crate::store::Store;

pub(super) const COLLECTION: &str = "/v1/api-keys";
pub(super) const ITEM: &str = "/v1/api-keys/{id}";
pub(super) const ROTATE: &str = "/v1/api-keys/{id}/rotate";
/// What the document says of the header that makes a retry safe.
const IDEMPOTENCY_KEY: &str = "1 to 255 visible ASCII characters of your choice. The same request with the same header gets \
    the same answer for an hour, the same secret included, and is carried out once";
pub(super) const USAGE: &str = "/v1/api-keys/{id}/usage";
/// The record of changes.
pub(super) const EVENTS: &str = "/v1/api-keys/events";
/// The key that asks.
pub(super) const CURRENT: &str = "/v1/api-keys/current";

impl App {
    /// The database as this caller's request may use it.
    fn store_for(&self, caller: &Caller) -> &Store {
        self.auth.store(caller.share())
    }

    /// How keys of an account on this plan are shown.
    fn view(&self, plan: Plan) -> View<'_> {
        let rate_limit = self.plans.rate_limit(plan);
        View { plan, rate_limit, catalogue: self.store.catalogue(), now: self.clock.now() }
    }

    /// A key as its account is shown it.
    fn show(&self, mut key: ApiKey, view: &View<'_>) -> Key {
        self.add_uses(&mut key);
        view.key(key)
    }

    /// Adds the uses that may not be in the database yet.
    fn add_uses(&self, key: &mut ApiKey) {
        if let Some(previous) = &mut key.previous {
            previous.last_used_at = previous.last_used_at.max(self.last_used.latest(previous.prefix));
            key.earlier_used_at = key.earlier_used_at.max(previous.last_used_at);
        }
        key.last_used_at = key.last_used_at.max(self.last_used.latest(key.prefix));
    }

    /// Refuses a caller that lacks any of these, by their names.
    pub(super) fn permit(&self, caller: &Caller, needed: Permissions) -> Result<(), ApiError> {
        if caller.permissions().contains(needed) { Ok(()) } else { Err(self.lacks(caller, needed)) }
    }

    /// The caller as it is now that its body has come. A client chooses when that is, so what the guard has found may have been
    /// taken away since.
    pub(super) async fn judge_again(&self, caller: &Caller) -> Result<Caller, ApiError> {
        let caller = self.auth.again(caller).await?;
        self.permit(&caller, Permissions::WRITE_KEYS)?;
        Ok(caller)
    }

    fn lacks(&self, caller: &Caller, needed: Permissions) -> ApiError {
        ApiError::NotPermitted { missing: self.store.catalogue().missing(needed, caller.permissions()) }
    }
}
