//! Where settings come from, and each by itself: found by name, of the right kind, within its range.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};

use super::ConfigError;

const DEFAULTS: &str = include_str!("../../config/default.toml");
const ENV_PREFIX: &str = "MOMAIL_";
/// The page tells clients to keep their key in MOMAIL_API_KEY, and Kubernetes makes MOMAIL_API_KEYS_… for a service of our name.
const NOT_SETTINGS: &str = "MOMAIL_API_KEY";
/// The variables every deployment knows, which win over our own names.
const USUAL_NAMES: [(&str, &str); 3] =
    [("DATABASE_URL", "store.url"), ("REDIS_URL", "limits.redis_url"), ("RUST_LOG", "log.filter")];

/// All settings by their dotted names, each with where its value came from.
pub(super) struct Settings(BTreeMap<String, Setting>);

struct Setting {
    value: Value,
    origin: String,
}

impl Settings {
    pub(super) fn defaults() -> Self {
        let table = DEFAULTS.parse::<Table>().expect("a test reads the default file");
        let mut settings = BTreeMap::new();
        for (name, value) in flatten(table) {
            let origin = name.clone();
            settings.insert(name, Setting { value, origin });
        }
        Self(settings)
    }

    pub(super) fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|reason| ConfigError::Unreadable { path: path.to_owned(), reason })?;
        // The parser's own display quotes the line, which may hold a password.
        let table = text
            .parse::<Table>()
            .map_err(|error| ConfigError::NotToml { path: path.to_owned(), reason: error.message().to_owned() })?;
        for (name, value) in flatten(table) {
            let origin = format!("{name} in {}", path.display());
            let Some(setting) = self.0.get_mut(&name) else {
                return Err(ConfigError::Unknown { origin, hint: None });
            };
            *setting = Setting { value, origin };
        }
        Ok(())
    }

    pub(super) fn read_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        let mut environment: Vec<_> = environment
            .into_iter()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string())))
            .filter(|(name, _)| place_in_order(name).is_some())
            .collect();
        environment.sort_by_cached_key(|(name, _)| (place_in_order(name), name.clone()));
        for (origin, text) in environment {
            let name = self.name_of_variable(&origin)?;
            let text = text.map_err(|_| invalid(&origin, "must be UTF-8"))?;
            // The usual names are often passed through empty, which means that they are not set.
            if text.is_empty() && !origin.starts_with(ENV_PREFIX) {
                continue;
            }
            let setting = self.0.get_mut(&name).expect("the name was found");
            setting.value = read_like(&setting.value, &text);
            setting.origin = origin;
        }
        Ok(())
    }

    pub(super) fn name_of_variable(&self, variable: &str) -> Result<String, ConfigError> {
        if let Some((_, name)) = USUAL_NAMES.iter().find(|(usual, _)| *usual == variable) {
            return Ok((*name).to_owned());
        }
        let levels = variable[ENV_PREFIX.len()..].to_ascii_lowercase();
        let name = levels.replace("__", ".");
        if self.0.contains_key(&name) {
            return Ok(name);
        }
        let hint = self.0.keys().find(|name| name.replace('.', "_") == levels.replace("__", "_"));
        let hint = hint.map(|name| format!("{ENV_PREFIX}{}", name.replace('.', "__").to_ascii_uppercase()));
        Err(ConfigError::Unknown { origin: variable.to_owned(), hint })
    }

    /// The origins of what is not left to its default.
    pub(super) fn given(&self) -> Vec<String> {
        let given = self.0.iter().filter(|(name, setting)| setting.origin != **name);
        given.map(|(_, setting)| setting.origin.clone()).collect()
    }

    pub(super) fn value(&self, name: &str) -> &Value {
        &self.0[name].value
    }

    pub(super) fn address(&self, name: &str) -> Result<SocketAddr, ConfigError> {
        let address = self.text(name)?.parse().ok();
        address.ok_or_else(|| self.refuse(name, "must be an address and a port, such as 127.0.0.1:8080"))
    }

    pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, ConfigError> {
        self.text(name)?.parse().map_err(|error: T::Err| self.refuse(name, &error.to_string()))
    }

    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.text(name)?;
        choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value).ok_or_else(|| {
            let choices: Vec<_> = choices.iter().map(|(choice, _)| format!("\"{choice}\"")).collect();
            self.refuse(name, &format!("must be {}", choices.join(" or ")))
        })
    }

    pub(super) fn millis(&self, name: &str, min: u32) -> Result<Duration, ConfigError> {
        Ok(Duration::from_millis(self.number::<u32>(name, min)?.into()))
    }

    pub(super) fn number<T: TryFrom<i64>>(&self, name: &str, min: u32) -> Result<T, ConfigError> {
        let number = self.0[name].value.as_integer().filter(|number| (min.into()..=u32::MAX.into()).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| self.refuse(name, &format!("must be a whole number from {min} to {}", u32::MAX)))
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, ConfigError> {
        self.0[name].value.as_bool().ok_or_else(|| self.refuse(name, "must be true or false"))
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, ConfigError> {
        self.0[name].value.as_str().ok_or_else(|| self.refuse(name, "must be a text"))
    }

    pub(super) fn list(&self, name: &str) -> Result<Vec<String>, ConfigError> {
        let texts =
            self.0[name].value.as_array().map(|items| items.iter().map(|item| item.as_str().map(str::to_owned)));
        texts.and_then(Iterator::collect).ok_or_else(|| self.refuse(name, "must be a list of texts"))
    }

    pub(super) fn refuse(&self, name: &str, reason: &str) -> ConfigError {
        invalid(&self.0[name].origin, reason)
    }
}

fn invalid(origin: &str, reason: &str) -> ConfigError {
    ConfigError::Invalid { origin: origin.to_owned(), reason: reason.to_owned() }
}

/// Whether a variable is ours, and when it is read: our own names first, then the usual ones, which win.
fn place_in_order(variable: &str) -> Option<u8> {
    if USUAL_NAMES.iter().any(|(usual, _)| *usual == variable) {
        return Some(1);
    }
    (variable.starts_with(ENV_PREFIX) && !variable.starts_with(NOT_SETTINGS)).then_some(0)
}

/// Reads a variable's text as the kind of value that the setting has by default.
fn read_like(default: &Value, text: &str) -> Value {
    let number = text.parse().map(Value::Integer);
    match default {
        Value::Array(_) => {
            Value::Array(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect())
        }
        Value::Boolean(_) => text.parse().map_or_else(|_| text.into(), Value::Boolean),
        Value::Integer(_) => number.unwrap_or_else(|_| text.into()),
        Value::String(auto) if auto == "auto" => number.unwrap_or_else(|_| text.into()),
        _ => text.into(),
    }
}

fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut settings = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                settings.extend(flatten(inner).into_iter().map(|(rest, value)| (format!("{name}.{rest}"), value)));
            }
            value => settings.push((name, value)),
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_can_be_set_from_the_environment() {
        for name in Settings::defaults().0.keys() {
            let variable = format!("{ENV_PREFIX}{}", name.replace('.', "__").to_ascii_uppercase());
            let settings = Settings::defaults();
            assert_eq!(&settings.name_of_variable(&variable).unwrap(), name);
        }
    }
}
