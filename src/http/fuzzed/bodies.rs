//! The body of a creation.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{check_refusal, name_of};
use crate::http::body::Members;
use crate::http::error::ApiError;
use crate::http::keys::CreateKey;
use crate::key::Lifetime;
use crate::permission::{Catalogue, Permissions};

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    Catalogue::new(vec!["domains:read".to_owned(), "emails:write".to_owned()]).expect("these are names of permissions")
});

/// What a stranger sends as JSON.
///
/// # Panics
/// If what is read differs from what the simpler reading says.
pub fn body(bytes: &[u8]) {
    let read = read(bytes);
    let model = serde_json::from_slice::<Value>(bytes).ok().and_then(|value| model(&value));
    match (&read, &model) {
        (Ok(read), Some((name, days, permissions))) => {
            assert_eq!(read.name.as_str(), name);
            assert_eq!(read.expiration_days, *days);
            assert_eq!(read.permissions, *permissions);
        }
        (Ok(_), None) => panic!("it was read, and should have been refused"),
        (Err(refusal), _) => check_refusal(refusal),
    }
    // A member that is there twice is refused, which the simpler reading does not see: written anew it is there once.
    if let Some((name, days, permissions)) = model {
        let names = permissions.map(|set| CATALOGUE.names(set).collect::<Vec<_>>());
        let days = days.map(|days| (1..=365i64).find(|number| Lifetime::try_from(*number) == Ok(days)));
        let again = json!({ "name": name, "expirationDays": days, "permissions": names }).to_string();
        let again = self::read(again.as_bytes()).unwrap_or_else(|refusal| panic!("{again}: {refusal:?}"));
        assert_eq!(again.name.as_str(), name);
        assert_eq!(again.permissions, permissions);
        if read.is_err() {
            assert!(bytes.split(|byte| *byte == b':').count() > 2, "one member cannot be there twice");
        }
    }
}

fn read(bytes: &[u8]) -> Result<CreateKey, ApiError> {
    CreateKey::read(Members::parse(bytes)?, &CATALOGUE)
}

type Asked = (String, Option<Lifetime>, Option<Permissions>);

/// `None` if the body is to be refused.
fn model(body: &Value) -> Option<Asked> {
    let members = body.as_object()?;
    let known = ["name", "expirationDays", "permissions"];
    if members.keys().any(|member| !known.contains(&member.as_str())) {
        return None;
    }
    let name = name_of(members.get("name")?.as_str()?)?.to_owned();
    let days = match members.get("expirationDays").unwrap_or(&Value::Null) {
        Value::Null => None,
        days => Some(Lifetime::try_from(days.as_i64().filter(|days| (1..=365).contains(days))?).ok()?),
    };
    let permissions = match members.get("permissions").unwrap_or(&Value::Null) {
        Value::Null => None,
        list => {
            let names: Option<Vec<_>> = list.as_array()?.iter().map(Value::as_str).collect();
            Some(CATALOGUE.parse(names?).ok()?)
        }
    };
    Some((name, days, permissions))
}
