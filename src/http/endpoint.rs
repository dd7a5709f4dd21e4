//! The endpoints behind a key, as data: where each is, what a key must be permitted to use it, and what it may take of the
//! database.

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::{App, guard, keys};
use crate::auth::Share;
use crate::permission::Permissions;

/// An endpoint behind a key.
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    /// What the key must be permitted. It is judged after the key and its limits, and before the body.
    pub needs: Permissions,
    pub share: Share,
    handler: MethodRouter<App>,
}

/// Every endpoint behind a key.
pub fn endpoints() -> Vec<Endpoint> {
    let (nothing, read, write) = (Permissions::NOTHING, Permissions::READ_KEYS, Permissions::WRITE_KEYS);
    // A leaked key must come to its end whatever else is asked for.
    vec![
        Endpoint::new(Method::GET, keys::COLLECTION, read, keys::list),
        Endpoint::new(Method::POST, keys::COLLECTION, write, keys::create),
        Endpoint::new(Method::GET, keys::ITEM, read, keys::show),
        Endpoint::new(Method::PATCH, keys::ITEM, write, keys::edit).reserved(),
        Endpoint::new(Method::DELETE, keys::ITEM, write, keys::revoke).reserved(),
        Endpoint::new(Method::POST, keys::ROTATE, write, keys::rotate).reserved(),
        Endpoint::new(Method::GET, keys::USAGE, read, keys::usage),
        Endpoint::new(Method::GET, keys::EVENTS, read, keys::events),
        Endpoint::new(Method::GET, keys::CURRENT, nothing, keys::show_current),
        Endpoint::new(Method::DELETE, keys::CURRENT, nothing, keys::revoke_current).reserved(),
    ]
}

impl Endpoint {
    fn new<T: 'static>(method: Method, path: &'static str, needs: Permissions, handler: impl Handler<T, App>) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("the table holds the usual methods");
        Self { method, path, needs, share: Share::Common, handler: on(filter, handler) }
    }

    fn reserved(self) -> Self {
        Self { share: Share::Reserved, ..self }
    }
}

/// The guard is on the methods, not on the paths: another path is 404 and another method 405, with a key or without.
pub(super) fn routes(app: &App) -> Router<App> {
    endpoints().into_iter().fold(Router::new(), |router, endpoint| {
        let guard = from_fn_with_state((app.clone(), endpoint.needs, endpoint.share), guard::guard);
        router.route(endpoint.path, endpoint.handler.route_layer(guard))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::ROUTES;

    #[test]
    fn metrics_and_logs_know_every_endpoint() {
        for endpoint in endpoints() {
            assert!(ROUTES.contains(&endpoint.path), "{}", endpoint.path);
        }
    }
}
