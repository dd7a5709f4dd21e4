//! How values are written on the wire: the success envelope, JSON bodies, times.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// The envelope of a success.
#[derive(Serialize, ToSchema)]
pub(crate) struct Success<D> {
    #[schema(default = true)]
    success: bool,
    data: D,
}

/// The envelope of a success that has more to say than its data.
#[derive(Serialize, ToSchema)]
pub(crate) struct SuccessWithMeta<D, M> {
    #[schema(default = true)]
    success: bool,
    data: D,
    meta: M,
}

impl<D> Success<D> {
    pub(crate) fn new(data: D) -> Json<Self> {
        Json(Self { success: true, data })
    }
}

impl<D, M> SuccessWithMeta<D, M> {
    pub(crate) fn new(data: D, meta: M) -> Json<Self> {
        Json(Self { success: true, data, meta })
    }
}

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        JsonText(self.to_bytes()).into_response()
    }
}

impl<T: Serialize> Json<T> {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("our own types have text as the names of their members")
    }
}

/// A JSON body that is text already.
pub(crate) struct JsonText(pub(crate) Vec<u8>);

impl IntoResponse for JsonText {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.0));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// ISO 8601 in UTC with milliseconds: `2024-01-15T10:30:00.000Z`.
pub fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
