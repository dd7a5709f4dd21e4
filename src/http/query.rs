//! A query string's parameters, which are taken one by one. A parameter that is ignored would be believed to work, so what
//! nobody takes is refused.

use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::App;
use super::error::{ApiError, Fields};
use crate::secret;

pub(super) struct Parameters {
    parameters: Vec<(String, String)>,
    problems: Fields,
}

/// More than any query of ours has; it bounds the search for names that are there twice.
const MAX_PARAMETERS: usize = 32;

impl Parameters {
    pub(super) fn text<T>(&mut self, name: &str) -> Option<T>
    where
        T: for<'a> TryFrom<&'a str, Error: fmt::Display>,
    {
        let text = self.take(name)?;
        self.accept(name, T::try_from(&text))
    }

    pub(super) fn integer<T>(&mut self, name: &str) -> Option<T>
    where
        T: TryFrom<i64, Error: fmt::Display>,
    {
        let text = self.take(name)?;
        // Digits beyond 64 bits are as far out of range as the largest within; what is no number at all is so as well.
        let number = if text.starts_with('+') { None } else { text.parse().ok() };
        self.accept(name, T::try_from(number.unwrap_or(i64::MIN)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.problems.is_empty()
    }

    /// Refuses all that was wrong, and whatever nobody took.
    pub(super) fn end(mut self) -> Result<(), ApiError> {
        for (name, _) in std::mem::take(&mut self.parameters) {
            self.problems.insert(shown(name), "there is no such parameter".to_owned());
        }
        if self.problems.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.problems)) }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let place = self.parameters.iter().position(|(parameter, _)| parameter == name)?;
        Some(self.parameters.swap_remove(place).1)
    }

    fn accept<T, E: fmt::Display>(&mut self, name: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|problem| self.problems.insert(name.to_owned(), problem.to_string())).ok()
    }
}

impl FromRequestParts<App> for Parameters {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

impl Parameters {
    pub(super) fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut problems = Fields::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if parameters.iter().any(|(known, _)| *known == name) {
                problems.insert(shown(name.into_owned()), "is there twice".to_owned());
            } else if parameters.len() < MAX_PARAMETERS {
                parameters.push((name.into_owned(), value.into_owned()));
            } else {
                return Err(ApiError::invalid("query", format!("has more than {MAX_PARAMETERS} parameters")));
            }
        }
        Ok(Self { parameters, problems })
    }
}

/// How many things are on one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(pub(super) u32);

impl Limit {
    pub(super) const MAX: u32 = 100;
}

#[derive(Debug, thiserror::Error)]
#[error("must be a whole number from 1 to {}", Limit::MAX)]
pub(super) struct InvalidLimit;

impl TryFrom<i64> for Limit {
    type Error = InvalidLimit;

    fn try_from(number: i64) -> Result<Self, InvalidLimit> {
        match u32::try_from(number) {
            Ok(limit @ 1..=Self::MAX) => Ok(Self(limit)),
            _ => Err(InvalidLimit),
        }
    }
}

/// A query string with nothing in it.
pub(super) struct NoQuery;

impl FromRequestParts<App> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Parameters::from_request_parts(parts, app).await?.end().map(|()| Self)
    }
}

/// A name as an answer may repeat it.
fn shown(name: String) -> String {
    const LONGEST: usize = 100;
    if name.len() > LONGEST || secret::appears_in(name.as_bytes()) { "(a parameter)".to_owned() } else { name }
}
