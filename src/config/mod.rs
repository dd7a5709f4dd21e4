//! The settings: `config/default.toml` ← `--config FILE` ← `MOMAIL_…` ← `DATABASE_URL`, `REDIS_URL`, `RUST_LOG`, checked once.
//!
//! The default file is the list of what there is: a name that is not in it is refused. Values are never repeated in errors, since
//! any of them may be a secret put in the wrong place.

mod settings;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use toml::Value;
use tracing_subscriber::EnvFilter;

use self::settings::Settings;
use crate::account::{Allowance, Plans};
use crate::auth::{CacheSettings, MAX_LEASE};
use crate::limit::RedisSettings;
use crate::permission::Catalogue;
use crate::store::StoreUrl;

/// A hundred years.
const MAX_DAYS: u32 = 36_500;

#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub store: Store,
    /// Keys that open nothing, for each client and minute; 0 is no limit.
    pub failed_per_minute: u32,
    pub max_tracked_keys: usize,
    /// How keys are kept in memory; `None` if every request asks the database.
    pub cache: Option<CacheSettings>,
    /// The Redis that counts for all replicas; `None` if each counts for itself.
    pub redis: Option<RedisSettings>,
    pub plans: Plans,
    /// The permissions there are.
    pub catalogue: Arc<Catalogue>,
    /// How long events are kept; `None` for ever.
    pub event_retention: Option<Duration>,
    /// How long keys stay after their end; `None` for ever.
    pub key_retention: Option<Duration>,
    pub allowed_origins: Vec<String>,
    pub trusted_proxies: Vec<IpNet>,
    /// Whether forward auth lets OPTIONS through without a key.
    pub allow_options: bool,
    pub log: Log,
    /// Where each setting was given that is not left to its default, for the log.
    pub given: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub public_addr: SocketAddr,
    pub internal_addr: SocketAddr,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub keep_alive: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub drain_delay: Duration,
    pub grace: Duration,
}

#[derive(Clone, Debug)]
pub struct Store {
    pub url: StoreUrl,
    pub max_connections: usize,
    pub migrate_on_start: bool,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Json,
    Human,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: std::io::Error },
    #[error("{} is not TOML: {reason}", path.display())]
    NotToml { path: PathBuf, reason: String },
    #[error("{origin}: there is no such setting{}", hint.as_deref().map(|name| format!("; did you mean {name}?")).unwrap_or_default())]
    Unknown { origin: String, hint: Option<String> },
    #[error("{origin}: {reason}")]
    Invalid { origin: String, reason: String },
}

impl Config {
    /// Reads the file, if one is given, and the environment.
    ///
    /// # Errors
    /// The first setting that does not exist or cannot be, by the name under which it was given.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_sources(file, std::env::vars_os())
    }

    fn from_sources(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Settings::defaults();
        if let Some(path) = file {
            settings.read_file(path)?;
        }
        settings.read_environment(environment)?;
        settings.check()
    }
}

impl Settings {
    fn check(&self) -> Result<Config, ConfigError> {
        let url: StoreUrl = self.parsed("store.url")?;
        let drain_delay = match self.value("server.drain_delay_ms") {
            Value::String(text) if text == "auto" => Duration::from_secs(if url.is_embedded() { 0 } else { 5 }),
            _ => self.millis("server.drain_delay_ms", 0)?,
        };
        let server = Server {
            public_addr: self.address("server.public_addr")?,
            internal_addr: self.address("server.internal_addr")?,
            max_connections: self.number("server.max_connections", 1)?,
            header_timeout: self.millis("server.header_timeout_ms", 1)?,
            keep_alive: self.millis("server.keep_alive_ms", 1)?,
            body_timeout: self.millis("server.body_timeout_ms", 1)?,
            write_timeout: self.millis("server.write_timeout_ms", 1)?,
            drain_delay,
            grace: self.millis("server.grace_ms", 0)?,
        };
        if server.public_addr == server.internal_addr && server.public_addr.port() != 0 {
            return Err(self.refuse("server.internal_addr", "must differ from server.public_addr"));
        }
        let formats = [("auto", LogFormat::Auto), ("json", LogFormat::Json), ("human", LogFormat::Human)];
        Ok(Config {
            server,
            store: Store {
                url,
                max_connections: self.number("store.max_connections", 1)?,
                migrate_on_start: self.boolean("store.migrate_on_start")?,
            },
            failed_per_minute: self.number("auth.failed_per_minute", 0)?,
            max_tracked_keys: self.number("limits.max_tracked_keys", 1)?,
            cache: self.cache()?,
            redis: self.redis()?,
            plans: Plans {
                free: self.allowance("free")?,
                pro: self.allowance("pro")?,
                enterprise: self.allowance("enterprise")?,
            },
            catalogue: self.catalogue("permissions.others")?,
            event_retention: self.days("events.retention_days")?,
            key_retention: self.days("keys.retention_days")?,
            allowed_origins: self.origins("cors.allowed_origins")?,
            trusted_proxies: self.networks("proxies.trusted")?,
            allow_options: self.boolean("gateway.allow_options")?,
            log: Log { format: self.choice("log.format", &formats)?, filter: self.filter("log.filter")? },
            given: self.given(),
        })
    }

    fn cache(&self) -> Result<Option<CacheSettings>, ConfigError> {
        let is_on = self.choice("auth.cache", &[("lease", true), ("off", false)])?;
        let lease = self.millis("auth.lease_ms", 10)?;
        let renew = self.millis("auth.renew_ms", 1)?;
        if lease > MAX_LEASE {
            return Err(self.refuse("auth.lease_ms", &format!("must be at most {}", MAX_LEASE.as_millis())));
        }
        if renew * 2 > lease {
            return Err(self.refuse("auth.renew_ms", "must be at most half of auth.lease_ms"));
        }
        let max_keys = self.number("auth.max_cached_keys", 1)?;
        let stale_grace = self.millis("auth.stale_grace_ms", 0)?;
        Ok(is_on.then_some(CacheSettings { max_keys, lease, renew, stale_grace }))
    }

    fn redis(&self) -> Result<Option<RedisSettings>, ConfigError> {
        let answer_within = self.millis("limits.redis_timeout_ms", 1)?;
        if self.text("limits.redis_url")?.is_empty() {
            return Ok(None);
        }
        Ok(Some(RedisSettings { url: self.parsed("limits.redis_url")?, answer_within }))
    }

    fn allowance(&self, plan: &str) -> Result<Allowance, ConfigError> {
        let of = |name: &str| self.number(&format!("plans.{plan}.{name}"), 0);
        let max_keys = self.number(&format!("plans.{plan}.max_keys"), 1)?;
        Ok(Allowance { per_minute: of("per_minute")?, per_hour: of("per_hour")?, per_day: of("per_day")?, max_keys })
    }

    /// So many days; 0 is for ever.
    fn days(&self, name: &str) -> Result<Option<Duration>, ConfigError> {
        let days: u32 = self.number(name, 0)?;
        if days > MAX_DAYS {
            return Err(self.refuse(name, &format!("must be at most {MAX_DAYS}")));
        }
        Ok((days > 0).then(|| Duration::from_secs(u64::from(days) * 86_400)))
    }

    fn catalogue(&self, name: &str) -> Result<Arc<Catalogue>, ConfigError> {
        let catalogue = Catalogue::new(self.list(name)?);
        catalogue.map(Arc::new).map_err(|error| self.refuse(name, &error.to_string()))
    }

    fn origins(&self, name: &str) -> Result<Vec<String>, ConfigError> {
        let origins = self.list(name)?;
        for origin in &origins {
            let host = origin.split_once("://").map(|(_, host)| host);
            if origin != "*" && !host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' '])) {
                return Err(self.refuse(name, "must be \"*\" or origins such as https://app.example, without a path"));
            }
        }
        Ok(origins)
    }

    fn networks(&self, name: &str) -> Result<Vec<IpNet>, ConfigError> {
        let network = |text: &String| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok();
        let networks: Option<_> = self.list(name)?.iter().map(network).collect();
        networks.ok_or_else(|| self.refuse(name, "must be addresses or networks such as 10.0.0.0/8"))
    }

    fn filter(&self, name: &str) -> Result<String, ConfigError> {
        let filter = self.text(name)?;
        EnvFilter::try_new(filter)
            .map_err(|_| self.refuse(name, "must be a filter such as info or momail_api_keys=debug"))?;
        Ok(filter.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: Option<&str>, environment: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let environment = environment.iter().map(|(name, text)| (name.into(), text.into()));
        Config::from_sources(file.map(|_| path.as_path()), environment)
            .map_err(|error| error.to_string().replace(&directory.path().display().to_string(), "DIR"))
    }

    #[test]
    fn the_defaults_stand_on_their_own() {
        let config = load(None, &[]).unwrap();
        assert_eq!(config.server.public_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(config.server.drain_delay, Duration::ZERO);
        assert_eq!(config.plans.enterprise.per_day, 100_000);
        assert_eq!(config.allowed_origins, ["*"]);
    }

    #[test]
    fn the_production_example_is_accepted() {
        let production = include_str!("../../config/production.toml");
        let config = load(Some(production), &[("DATABASE_URL", "postgres://keys:pw@db/keys")]).unwrap();
        assert!(!config.store.migrate_on_start);
        assert_eq!(config.store.url.to_string(), "postgres://keys:***@db:5432/keys");
    }

    #[test]
    fn the_file_gives_way_to_our_variables_and_these_to_the_usual_ones() {
        let file = "[server]\npublic_addr = \"127.0.0.1:1\"\ninternal_addr = \"127.0.0.1:2\"\n[store]\nurl = \"sqlite://file.db\"\n";
        let config = load(
            Some(file),
            &[
                ("DATABASE_URL", "postgres://a@usual/b"),
                ("MOMAIL_STORE__URL", "postgres://a@ours/b"),
                ("MOMAIL_SERVER__INTERNAL_ADDR", "127.0.0.1:3"),
                ("MOMAIL_SERVER__DRAIN_DELAY_MS", "7"),
                ("MOMAIL_PLANS__FREE__PER_HOUR", "0"),
                ("MOMAIL_PROXIES__TRUSTED", "10.0.0.0/8, 192.0.2.1"),
                ("MOMAIL_API_KEY", "a client's own"),
                ("REDIS_URL", ""),
            ],
        )
        .unwrap();
        assert_eq!(config.server.public_addr.port(), 1);
        assert_eq!(config.server.internal_addr.port(), 3);
        assert_eq!(config.server.drain_delay, Duration::from_millis(7));
        assert_eq!(config.store.url.to_string(), "postgres://a:***@usual:5432/b");
        assert_eq!(config.plans.free.per_hour, 0);
        assert_eq!(config.trusted_proxies.len(), 2);
        let variables: Vec<_> = config.given.iter().filter(|origin| !origin.contains(' ')).collect();
        let expected = [
            "MOMAIL_PLANS__FREE__PER_HOUR",
            "MOMAIL_PROXIES__TRUSTED",
            "MOMAIL_SERVER__DRAIN_DELAY_MS",
            "MOMAIL_SERVER__INTERNAL_ADDR",
            "DATABASE_URL",
        ];
        assert_eq!((config.given.len(), variables), (6, expected.map(str::to_owned).iter().collect()));
    }

    #[test]
    fn however_the_settings_are_shown_no_password_is() {
        let urls = ["postgres://a:canary@h/b", "postgresql://h/b?user=a&password=canary", "sqlite://a.db?x=canary"];
        for url in urls.into_iter().filter(|url| url.parse::<StoreUrl>().is_ok()) {
            let redis = "redis://a:canary@h:1/2";
            let config = load(None, &[("DATABASE_URL", url), ("REDIS_URL", redis)]).unwrap();
            let Config { store, redis, .. } = &config;
            let shown = format!("{config:?} {config:#?} {} {}", store.url, redis.as_ref().unwrap().url);
            assert!(shown.contains("h:1/2") && !shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_its_value_is_not_repeated() {
        let table = [
            (None, ("MOMAIL_SERVER__PUBLIC_ADR", "x"), "MOMAIL_SERVER__PUBLIC_ADR: there is no such setting"),
            (
                None,
                ("MOMAIL_SERVER_PUBLIC_ADDR", "x"),
                "MOMAIL_SERVER_PUBLIC_ADDR: there is no such setting; did you mean MOMAIL_SERVER__PUBLIC_ADDR?",
            ),
            (Some("[serve]\nx = 1"), ("REDIS_URL", ""), "serve.x in DIR/config.toml: there is no such setting"),
            (Some("store = 1"), ("REDIS_URL", ""), "store in DIR/config.toml: there is no such setting"),
            (
                None,
                ("MOMAIL_SERVER__GRACE_MS", "-1"),
                "MOMAIL_SERVER__GRACE_MS: must be a whole number from 0 to 4294967295",
            ),
            (
                Some("[server]\ngrace_ms = \"secret\""),
                ("REDIS_URL", ""),
                "server.grace_ms in DIR/config.toml: must be a whole number from 0 to 4294967295",
            ),
            (
                None,
                ("DATABASE_URL", "mysql://user:secret@host/db"),
                "DATABASE_URL: must be sqlite://FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE",
            ),
            (
                None,
                ("DATABASE_URL", "sqlite::memory:"),
                "DATABASE_URL: must be sqlite://FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE",
            ),
            (
                None,
                ("REDIS_URL", "secret"),
                "REDIS_URL: must be redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], or rediss://… for TLS",
            ),
            (None, ("MOMAIL_LOG__FORMAT", "xml"), "MOMAIL_LOG__FORMAT: must be \"auto\" or \"json\" or \"human\""),
            (None, ("MOMAIL_AUTH__CACHE", "on"), "MOMAIL_AUTH__CACHE: must be \"lease\" or \"off\""),
            (
                None,
                ("MOMAIL_PROXIES__TRUSTED", "10.0.0.0/33"),
                "MOMAIL_PROXIES__TRUSTED: must be addresses or networks such as 10.0.0.0/8",
            ),
            (
                None,
                ("MOMAIL_CORS__ALLOWED_ORIGINS", "app.example"),
                "MOMAIL_CORS__ALLOWED_ORIGINS: must be \"*\" or origins such as https://app.example, without a path",
            ),
            (
                None,
                ("MOMAIL_SERVER__INTERNAL_ADDR", "127.0.0.1:8080"),
                "MOMAIL_SERVER__INTERNAL_ADDR: must differ from server.public_addr",
            ),
        ];
        for (file, variable, expected) in table {
            assert_eq!(load(file, &[variable]).unwrap_err(), expected);
        }
        assert!(load(Some("[store]\nurl = secret"), &[]).unwrap_err().starts_with("DIR/config.toml is not TOML: "));
    }
}
