//! The API's own description, made from the code: OpenAPI 3.1.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::path::{Operation, Parameter, PathItem};
use utoipa::openapi::response::{Response as Documented, ResponseBuilder};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Ref, RefOr, Required};
use utoipa::{Modify, OpenApi};

use super::error::Refusal;
use super::{App, endpoints, keys, ops};
use crate::permission::{Catalogue, Permissions};

pub(super) const DOCUMENT: &str = "/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(title = "MoMail API keys", description = "Issues, lists and revokes API keys. Every answer carries X-Request-Id."),
    paths(keys::list, keys::create, keys::show, keys::edit, keys::revoke, keys::rotate, keys::usage, keys::events, keys::show_current, keys::revoke_current,
        ops::livez, ops::readyz, document),
    components(schemas(Refusal)),
    modifiers(&CommonAnswers),
    tags((name = "keys", description = "An account's API keys"), (name = "operations", description = "For load balancers"))
)]
struct Document;

/// The document as JSON, with its entity tag.
pub(super) struct Served {
    json: String,
    etag: HeaderValue,
}

impl Served {
    pub(super) fn new() -> Self {
        let json = text();
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(&json)));
        Self { json, etag: HeaderValue::try_from(etag).expect("base64 makes a header") }
    }
}

/// The document as JSON.
pub fn text() -> String {
    let mut json = Document::openapi().to_pretty_json().expect("the document is made of texts and numbers");
    json.push('\n');
    json
}

/// This document.
#[utoipa::path(get, path = DOCUMENT, operation_id = "openapi", tag = "operations",
    responses(
        (status = 200, description = "OpenAPI 3.1", body = serde_json::Value, headers(("ETag", description = "Changes with the document"))),
        (status = 304, description = "Not changed since the answer with this ETag"),
    ))]
pub(super) async fn document(State(app): State<App>, headers: HeaderMap) -> Response {
    let Served { json, etag } = &app.document;
    // RFC 9110, section 13.1.2: the comparison is the weak one.
    let is_ours = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes();
    let mut lists = headers.get_all(IF_NONE_MATCH).iter().map(HeaderValue::as_bytes);
    let known = lists.any(|tags| tags.split(|byte| *byte == b',').any(|tag| is_ours(tag.trim_ascii())));
    let caching = [(ETAG, etag.clone()), (CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let json_type = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (caching, json_type, Body::from(json.clone())).into_response()
}

/// What is the same for many operations is written once: refusals, headers, and how a key is shown.
struct CommonAnswers;

/// Status, when, and the headers beyond those of every answer.
type Answer = (&'static str, &'static str, &'static [&'static str]);

const LIMITS: &[&str] =
    &["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit"];

const BEHIND_A_KEY: [Answer; 6] = [
    ("400", "The body, the query or a header is not valid; `details.fields` names what is wrong", &[]),
    ("401", "No key, or one that is malformed, unknown, disabled, revoked or expired", &["WWW-Authenticate"]),
    ("405", "Another method; `Allow` lists those there are", &["Allow"]),
    ("429", "A plan's limit, or a client's number of failed keys, is reached", &["Retry-After"]),
    ("500", "A failure of ours; the cause is in the log under the request's id", &[]),
    ("503", "A dependency is away", &["Retry-After"]),
];
const WITH_A_PERMISSION: [Answer; 1] =
    [("403", "A permission is missing, or the plan's number of keys is reached; `details` says which", &[])];
const WITH_A_BODY: [Answer; 3] = [
    ("408", "The body took too long to arrive", &[]),
    ("413", "The body is larger than 64 KiB", &[]),
    ("415", "The body is not sent as application/json", &[]),
];
const WITH_A_CONFLICT: [Answer; 1] = [(
    "409",
    "The `Idempotency-Key` is another request's, or its request is still running; or the key has two secrets already",
    &[],
)];
const WITH_AN_ID: [Answer; 1] = [("404", "No such key in this account, or no more", &[])];
const OPEN: [Answer; 2] = [BEHIND_A_KEY[0], BEHIND_A_KEY[2]];
const READINESS: [Answer; 1] = [BEHIND_A_KEY[5]];

impl Modify for CommonAnswers {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let schemes = [
            ("ApiKey", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")))),
            ("Bearer", SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build())),
        ];
        for (name, scheme) in schemes {
            components.add_security_scheme(name, scheme);
        }
        for body in ["CreateKey", "EditKey", "RotateKey"] {
            if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(body) {
                // A misspelt member is refused; generators should know.
                object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
                object.min_properties = (body == "EditKey").then_some(1);
                if let Some(RefOr::T(Schema::Object(name))) = object.properties.get_mut("name") {
                    name.pattern = Some(NAME.to_owned());
                }
            }
        }
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations(item) {
                complete(method, path, operation);
            }
        }
        link(document);
    }
}

/// What a name has besides its length: a character that is no blank, and no control character.
const NAME: &str = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$";
const IDEMPOTENCY_KEY: &str = "^[!-~]{1,255}$";

/// Says of a parameter what its type does not.
fn refine(parameter: &mut RefOr<Parameter>) {
    let RefOr::T(parameter) = parameter else { return };
    let pattern = match parameter.name.as_str() {
        "q" => NAME,
        "Idempotency-Key" => IDEMPOTENCY_KEY,
        _ => return,
    };
    if let Some(RefOr::T(Schema::Object(text))) = &mut parameter.schema {
        text.schema_type = Type::String.into();
        text.pattern = Some(pattern.to_owned());
    }
}

/// Says with the answer to a creation what can be asked next: whatever takes the new key's id.
fn link(document: &mut utoipa::openapi::OpenApi) {
    let about_a_key = document.paths.paths.iter_mut().filter(|(path, _)| path.contains("{id}"));
    let operation_ids =
        about_a_key.flat_map(|(_, item)| operations(item)).filter_map(|(_, operation)| operation.operation_id.clone());
    let links: Vec<_> = operation_ids
        .map(|id| {
            (id.clone(), LinkBuilder::new().operation_id(id).parameter("id", "$response.body#/data/keyId").build())
        })
        .collect();
    let create = document.paths.paths.get_mut(keys::COLLECTION).and_then(|item| item.post.as_mut());
    if let Some(RefOr::T(created)) = create.and_then(|create| create.responses.responses.get_mut("201")) {
        created.links.extend(links.into_iter().map(|(name, link)| (name, RefOr::T(link))));
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, post, delete, patch, .. } = item;
    let all = [("GET", get), ("POST", post), ("DELETE", delete), ("PATCH", patch)];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// What a key must be permitted for an operation; `None` if it needs no key.
fn needs(method: &str, path: &str) -> Option<Permissions> {
    let endpoint = endpoints().into_iter().find(|endpoint| endpoint.method == method && endpoint.path == path);
    endpoint.map(|endpoint| endpoint.needs)
}

fn complete(method: &str, path: &str, operation: &mut Operation) {
    let needs = needs(method, path);
    let is_behind_a_key = needs.is_some();
    let mut answers: Vec<Answer> = Vec::new();
    if let Some(needs) = needs {
        answers.extend(BEHIND_A_KEY);
        let own = Catalogue::new(Vec::new()).expect("this service's own permissions are a catalogue");
        if let Some(name) = own.names(needs).next() {
            answers.extend(WITH_A_PERMISSION);
            operation.description = Some(format!("Needs the permission `{name}`."));
        }
        let none: [&str; 0] = [];
        operation.security =
            Some(vec![SecurityRequirement::new("ApiKey", none), SecurityRequirement::new("Bearer", none)]);
    } else {
        answers.extend(OPEN);
    }
    if path == ops::READYZ {
        answers.extend(READINESS);
    }
    operation.parameters.iter_mut().flatten().for_each(refine);
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        answers.extend(WITH_A_BODY);
        body.required = Some(if path == keys::ROTATE { Required::False } else { Required::True });
    }
    if method == "POST" {
        answers.extend(WITH_A_CONFLICT);
    }
    if path.contains("{id}") {
        answers.extend(WITH_AN_ID);
    }
    for (status, description, headers) in answers {
        let refusal = refusal(description, headers);
        operation.responses.responses.insert(status.to_owned(), RefOr::T(refusal));
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        response.headers.insert("X-Request-Id".to_owned(), text_header());
        if status == "201" {
            response.headers.insert("Location".to_owned(), text_header());
        }
        let is_authenticated = !matches!(status.as_str(), "401" | "405" | "503");
        if is_behind_a_key && is_authenticated {
            response.headers.extend(LIMITS.iter().map(|name| ((*name).to_owned(), text_header())));
        }
    }
}

fn refusal(description: &str, headers: &[&str]) -> Documented {
    let envelope = ContentBuilder::new().schema(Some(Ref::from_schema_name("Refusal"))).build();
    let mut response = ResponseBuilder::new().description(description).content("application/json", envelope).build();
    response.headers.extend(headers.iter().map(|name| ((*name).to_owned(), text_header())));
    response
}

fn text_header() -> RefOr<Header> {
    RefOr::T(HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String))).build())
}
