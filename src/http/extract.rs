//! Extractors that refuse in our words.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::App;
use super::client::client_address;
use super::error::ApiError;
use super::exchange::X_REQUEST_ID;
use super::guard::Admitted;
use crate::auth::Caller;
use crate::event::Origin;
use crate::id::KeyId;

/// What the guard left. A handler mounted outside the guard answers 401, not everybody.
impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        parts.extensions.get::<Admitted>().map(|admitted| admitted.caller.clone()).ok_or(ApiError::Unauthorized)
    }
}

/// The same with how far the key may still go.
impl FromRequestParts<App> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or(ApiError::Unauthorized)
    }
}

/// Whose doing a change will be.
impl FromRequestParts<App> for Origin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        // What stands there was checked or made by us.
        let request_id = parts.headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let address = Some(client_address(parts, &app.trusted_proxies));
        Ok(Self { key_id: Some(caller.key_id()), address, request_id })
    }
}

/// The id in a path. Whatever is no id is as unknown as an id that nothing has.
impl FromRequestParts<App> for KeyId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, app).await.map_err(|_| ApiError::NotFound)?;
        Self::parse(&text).ok_or(ApiError::NotFound)
    }
}
