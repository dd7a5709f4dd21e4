//! Reading a request's body: how much, how long, and as a JSON object whose every problem is named.

use std::fmt;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::App;
use super::error::{ApiError, Fields};
use crate::permission::{Catalogue, Permissions, UnknownPermission};
use crate::secret;

/// No request of ours needs more.
pub(crate) const MAX_BODY_BYTES: usize = 64 * 1024;

/// The members of a JSON object, which are taken one by one. What is wrong with them is collected, and what is left over is
/// refused: a misspelt `expirationdays` must not make a key that never expires.
pub(crate) struct Members {
    members: Vec<(String, Value)>,
    problems: Fields,
    digest: [u8; 32],
}

impl Members {
    /// What a body says that was left out.
    pub(crate) fn none() -> Self {
        Self { members: Vec::new(), problems: Fields::new(), digest: Sha256::digest([]).into() }
    }

    /// SHA-256 of the body as it was sent.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// A text that must be there.
    pub(crate) fn text<T>(&mut self, name: &str) -> Option<T>
    where
        T: for<'a> TryFrom<&'a str, Error: fmt::Display>,
    {
        match self.take(name) {
            Some(Value::String(text)) => self.accept(name, T::try_from(&text)),
            Some(_) => self.refuse(name, "must be a text"),
            None => self.refuse(name, "is required"),
        }
    }

    /// A whole number that may be absent or `null`.
    pub(crate) fn optional_integer<T>(&mut self, name: &str) -> Option<T>
    where
        T: TryFrom<i64, Error: fmt::Display>,
    {
        match self.take(name)? {
            Value::Null => None,
            // A whole number beyond 64 bits is as far out of range as the largest within.
            Value::Number(number) if !number.is_f64() => {
                self.accept(name, T::try_from(number.as_i64().unwrap_or(i64::MAX)))
            }
            _ => self.refuse(name, "must be a whole number or null"),
        }
    }

    /// A text that may be absent.
    pub(crate) fn given_text<T>(&mut self, name: &str) -> Option<T>
    where
        T: for<'a> TryFrom<&'a str, Error: fmt::Display>,
    {
        if self.has(name) { self.text(name) } else { None }
    }

    pub(crate) fn given_boolean(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(value) => Some(value),
            _ => self.refuse(name, "must be true or false"),
        }
    }

    /// Whether a member is there, be it `null`, and not taken yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(member, _)| member == name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.problems.is_empty()
    }

    /// A list of permissions that may be absent or `null`.
    pub(crate) fn optional_permissions(&mut self, name: &str, catalogue: &Catalogue) -> Option<Permissions> {
        let value = self.take(name)?;
        let names = match &value {
            Value::Null => return None,
            Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let Some(names) = names else { return self.refuse(name, "must be a list of permissions or null") };
        let set = catalogue.parse(names).map_err(|UnknownPermission(unknown)| {
            let known: Vec<_> = catalogue.names(Permissions::EVERYTHING).collect();
            format!("there is no {}; there are {}", shown(unknown), known.join(", "))
        });
        self.accept(name, set)
    }

    /// Refuses all that was wrong, and whatever nobody took.
    pub(crate) fn end(mut self) -> Result<(), ApiError> {
        for (name, _) in std::mem::take(&mut self.members) {
            self.problems.insert(shown(name), "there is no such member".to_owned());
        }
        if self.problems.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.problems)) }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let place = self.members.iter().position(|(member, _)| member == name)?;
        Some(self.members.swap_remove(place).1)
    }

    fn accept<T, E: fmt::Display>(&mut self, name: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|problem| self.problems.insert(name.to_owned(), problem.to_string())).ok()
    }

    fn refuse<T>(&mut self, name: &str, problem: &str) -> Option<T> {
        self.problems.insert(name.to_owned(), problem.to_owned());
        None
    }
}

/// A body that may be left out.
impl OptionalFromRequest<App> for Members {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Option<Self>, ApiError> {
        if request.headers().contains_key(CONTENT_TYPE) {
            return <Self as FromRequest<App>>::from_request(request, app).await.map(Some);
        }
        let bytes = read(request, app.body_timeout).await?;
        if bytes.is_empty() { Ok(None) } else { Err(ApiError::UnsupportedMediaType) }
    }
}

impl FromRequest<App> for Members {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(&request) {
            return Err(ApiError::UnsupportedMediaType);
        }
        Self::parse(&read(request, app.body_timeout).await?)
    }
}

impl Members {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let members = serde_json::from_slice(bytes);
        members.map(|members| Self { digest: Sha256::digest(bytes).into(), ..members }).map_err(|error| {
            let problem = match error.classify() {
                // The parser's own words would quote what it found instead, which may be a key.
                serde_json::error::Category::Data => format!("must be a JSON object of at most {MAX_MEMBERS} members"),
                _ => format!("is not JSON: {error}"),
            };
            ApiError::invalid("body", problem)
        })
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

async fn read(request: Request, limit: Duration) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::PayloadTooLarge { limit: MAX_BODY_BYTES };
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    let body: Limited<Body> = Limited::new(request.into_body(), MAX_BODY_BYTES);
    match timeout(limit, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::invalid("body", "ended early")),
        Err(_) => Err(ApiError::RequestTimeout),
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members: Vec<(String, Value)> = Vec::new();
        let mut problems = Fields::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            // Parsers differ in which of two members they believe, so neither is.
            if members.iter().any(|(member, _)| *member == name) {
                problems.insert(shown(name), "is there twice".to_owned());
            } else if members.len() < MAX_MEMBERS {
                members.push((name, value));
            } else {
                return Err(serde::de::Error::custom(format_args!("more than {MAX_MEMBERS} members")));
            }
        }
        Ok(Members { members, problems, ..Members::none() })
    }
}

/// A name as an answer may repeat it.
fn shown(name: String) -> String {
    const LONGEST: usize = 100;
    if name.len() > LONGEST || secret::appears_in(name.as_bytes()) { "(a name)".to_owned() } else { name }
}

/// More than any object of ours has; it bounds the search for names that are there twice.
const MAX_MEMBERS: usize = 32;
