//! Holds answers against the API's description: the status, the headers and the shape of the body must be documented.

use std::sync::LazyLock;

use axum::http::Method;
use momail_api_keys::http::openapi_document;
use serde_json::Value;

use super::Reply;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&openapi_document()).unwrap());

/// Headers that an answer may leave out although they are documented.
const NOT_ALWAYS: [&str; 5] =
    ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit"];

/// # Panics
/// If a documented operation answered something that is not documented.
pub(crate) fn check(method: &Method, path: &str, reply: &Reply) {
    // HEAD answers like GET, which the document does not say twice.
    let method = if method == Method::HEAD { "get" } else { &method.as_str().to_lowercase() };
    let Some(operation) = operation(path, method) else { return };
    let status = reply.status.as_str();
    let response = &operation["responses"][status];
    assert!(response.is_object(), "{method} {path} answered {status}, which is not documented");
    for header in response["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
        let is_there = reply.headers.contains_key(header.as_str()) || NOT_ALWAYS.contains(&header.as_str());
        assert!(is_there, "{method} {path} {status}: {header} is documented and missing");
    }
    let schema = &response["content"]["application/json"]["schema"];
    if !reply.bytes.is_empty() && schema.is_object() {
        fits(&reply.body, schema).unwrap_or_else(|problem| panic!("{method} {path} {status}: {problem}"));
    }
}

fn operation<'a>(path: &str, method: &str) -> Option<&'a Value> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let (_, item) = paths.iter().find(|(template, _)| {
        let (mut ours, mut theirs) = (template.split('/'), path.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => break true,
                (Some("{id}"), Some(_)) => (),
                (Some(one), Some(other)) if one == other => (),
                _ => break false,
            }
        }
    })?;
    item.get(method)
}

/// As much of JSON Schema as our document uses.
fn fits(value: &Value, schema: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(value, DOCUMENT.pointer(reference.trim_start_matches('#')).unwrap());
    }
    let types: Vec<_> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => return Ok(()),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.contains(&kind) {
        return Err(format!("{value} is not of {types:?}"));
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        return Err(format!("{value} is not listed"));
    }
    for item in value.as_array().into_iter().flatten() {
        fits(item, &schema["items"])?;
    }
    let (Some(members), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
        return Ok(());
    };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !members.contains_key(required) {
            return Err(format!("`{required}` is missing"));
        }
    }
    for (name, member) in members {
        let property = properties.get(name).ok_or_else(|| format!("`{name}` is not documented"))?;
        fits(member, property).map_err(|problem| format!("{name}: {problem}"))?;
    }
    Ok(())
}
