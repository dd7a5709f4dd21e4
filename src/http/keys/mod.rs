//! The key endpoints, one file each, and how they show keys.

mod create;
mod list;
mod revoke;
mod shown;

pub(super) use self::create::{__path_create, create};
pub(super) use self::list::{__path_list, list};
pub(super) use self::revoke::{__path_revoke, revoke};
pub use self::shown::{CreatedKey, Key, SHOWN_ONCE, View};
use super::App;
use super::error::ApiError;
use crate::account::Plan;
use crate::auth::Caller;
use crate::permission::Permissions;

pub(super) const COLLECTION: &str = "/v1/api-keys";
pub(super) const ITEM: &str = "/v1/api-keys/{id}";

impl App {
    /// How keys of an account on this plan are shown.
    fn view(&self, plan: Plan) -> View<'_> {
        View { plan, rate_limit: self.plans.rate_limit(plan), catalogue: self.store.catalogue() }
    }

    /// Refuses a caller that lacks any of these, by their names.
    pub(super) fn permit(&self, caller: &Caller, needed: Permissions) -> Result<(), ApiError> {
        let held = caller.permissions();
        if held.contains(needed) {
            return Ok(());
        }
        Err(ApiError::NotPermitted { missing: self.store.catalogue().missing(needed, held) })
    }
}
