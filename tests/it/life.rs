//! Random lives of many keys, held step by step against a model that is as simple as the rules are.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::Method;
use chrono::{DateTime, TimeDelta, Utc};
use momail_api_keys::account::Plan;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::{Database, OTHER_PERMISSIONS, Reply, TestApp, json_request, on_both_stores, request};

on_both_stores!(random_lives_of_keys_go_as_the_model_says);

const KEYS: &str = "/v1/api-keys";
const STEPS: usize = 400;
const MAX_KEYS: usize = 25;
const READ: u8 = 1;
const WRITE: u8 = 1 << 1;
/// All that has a name, and all that will ever have one.
const NAMED: u8 = 0b1_1111;
const EVERYTHING: u8 = 0b11_1111;

/// A key as the rules see it.
#[derive(Clone)]
struct Key {
    account: usize,
    name: String,
    permissions: u8,
    is_enabled: bool,
    expires_at: Option<DateTime<Utc>>,
    is_revoked: bool,
    /// The current secret, and the one before it with its end.
    secret: String,
    previous: Option<(String, DateTime<Utc>)>,
}

impl Key {
    fn opens_with(&self, secret: &str, now: DateTime<Utc>) -> bool {
        let is_known =
            self.secret == secret || self.previous.as_ref().is_some_and(|(text, until)| text == secret && *until > now);
        is_known && !self.is_revoked && self.is_enabled && self.expires_at.is_none_or(|end| end > now)
    }

    /// What lists show of it.
    fn shown(&self, id: &str, now: DateTime<Utc>) -> Value {
        let status = match self.expires_at {
            _ if !self.is_enabled => "disabled",
            Some(end) if end <= now => "expired",
            _ => "active",
        };
        let previous = self.previous.as_ref().filter(|(_, until)| *until > now);
        json!({
            "keyId": id, "name": self.name, "permissions": names(self.permissions), "enabled": self.is_enabled,
            "status": status, "keyPrefix": masked(&self.secret), "expirationTs": self.expires_at.map(written),
            "previous": previous.map(|(text, until)| json!([masked(text), written(*until)])),
        })
    }
}

fn masked(secret: &str) -> String {
    format!("{}****", &secret[..6])
}

fn written(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn names(set: u8) -> Vec<&'static str> {
    let all = ["api-keys:read", "api-keys:write"].into_iter().chain(OTHER_PERMISSIONS);
    all.enumerate().filter(|(place, _)| set & (1 << place) != 0).map(|(_, name)| name).collect()
}

/// The same members of an answer.
fn told(key: &Value) -> Value {
    let members = ["keyId", "name", "permissions", "enabled", "status", "keyPrefix", "expirationTs"];
    let mut told: Value = members.iter().map(|member| ((*member).to_owned(), key[*member].clone())).collect();
    let previous = &key["previousSecret"];
    told["previous"] =
        if previous.is_null() { Value::Null } else { json!([previous["keyPrefix"], previous["retiresTs"]]) };
    told
}

/// Every key there ever was, by its id, and the secrets that ever were, which are all tried again.
#[derive(Default)]
struct Model {
    keys: BTreeMap<String, Key>,
    secrets: Vec<(String, String)>,
}

struct Life {
    app: TestApp,
    random: StdRng,
    model: Model,
    /// How often each kind of request was answered in each way.
    seen: BTreeMap<(&'static str, u16), u32>,
}

impl Life {
    async fn begin(database: &Database, seed: u64) -> Self {
        let app = TestApp::on(database).await;
        let random = StdRng::seed_from_u64(seed);
        let mut life = Self { app, random, model: Model::default(), seen: BTreeMap::new() };
        for account in 0..2 {
            let secret = life.app.account(Plan::Free).await.1;
            let shown = life.app.get("/v1/api-keys/current", &secret).await.body["data"]["key"].clone();
            let id = shown["keyId"].as_str().unwrap().to_owned();
            life.model.secrets.push((secret.clone(), id.clone()));
            let name = "first key".to_owned();
            let (permissions, is_enabled, expires_at, is_revoked, previous) = (EVERYTHING, true, None, false, None);
            let key = Key { account, name, permissions, is_enabled, expires_at, is_revoked, secret, previous };
            life.model.keys.insert(id, key);
        }
        life
    }

    fn now(&self) -> DateTime<Utc> {
        self.app.clock.now()
    }

    /// Any secret that ever was, mostly one of those made early, which may do more; and its key, if it opens one.
    fn caller(&mut self) -> (String, Option<(String, Key)>) {
        let number = self.model.secrets.len();
        let place = self.random.random_range(0..number).min(self.random.random_range(0..number));
        let (secret, id) = self.model.secrets[place].clone();
        let key = self.model.keys[&id].clone();
        let opens = key.opens_with(&secret, self.now());
        (secret, opens.then_some((id, key)))
    }

    /// Any key that ever was; seldom an account's first one, without which its life would soon be over.
    fn target(&mut self) -> String {
        let mut place = self.random.random_range(0..self.model.keys.len());
        if place < 2 && self.random.random_bool(0.95) {
            place = self.model.keys.len() - 1;
        }
        self.model.keys.keys().nth(place).unwrap().clone()
    }

    /// Asks, and says what was answered and whether the model lets it happen; `Err` with the status that it wants instead.
    fn may(caller: Option<&(String, Key)>, needed: u8) -> Result<Key, u16> {
        let (_, key) = caller.ok_or(401u16)?;
        if key.permissions & needed == needed { Ok(key.clone()) } else { Err(403) }
    }

    /// The target, if the caller's account has it.
    fn seen(&self, by: &Key, target: &str) -> Result<Key, u16> {
        let key = &self.model.keys[target];
        if key.account == by.account && !key.is_revoked { Ok(key.clone()) } else { Err(404) }
    }

    async fn step(&mut self) {
        match self.random.random_range(0..20) {
            0..5 => self.create().await,
            5..9 => self.edit().await,
            9..12 => self.rotate().await,
            12..14 => self.revoke().await,
            14..17 => self.list().await,
            17..19 => self.ask_about_itself().await,
            _ => {
                let millis = self.random.random_range(1..15 * 3_600_000);
                self.app.clock.advance(Duration::from_millis(millis));
            }
        }
    }

    async fn create(&mut self) {
        let (secret, caller) = self.caller();
        let asked = self.random.random_bool(0.7).then(|| self.random.random_range(0..=NAMED));
        let days = self.random.random_bool(0.3).then(|| self.random.random_range(1..4i64));
        let name = format!("key {}", self.model.keys.len());
        let mut body = json!({ "name": name, "expirationDays": days });
        if let Some(asked) = asked {
            body["permissions"] = json!(names(asked));
        }
        let expected = Self::may(caller.as_ref(), WRITE).and_then(|by| {
            let permissions = asked.unwrap_or(by.permissions);
            let held = self.model.keys.values().filter(|key| key.account == by.account && !key.is_revoked).count();
            let fits = permissions & !by.permissions == 0 && held < MAX_KEYS;
            if fits { Ok((by.account, permissions)) } else { Err(403) }
        });
        let reply = self.app.post(KEYS, &secret, &body).await;
        let Some((account, permissions)) = self.agree("create", &reply, expected, 201) else { return };
        let data = &reply.body["data"];
        let (id, secret) = (data["keyId"].as_str().unwrap().to_owned(), data["apiKey"].as_str().unwrap().to_owned());
        let expires_at = days.map(|days| self.now() + TimeDelta::days(days));
        let (is_enabled, is_revoked, previous) = (true, false, None);
        self.model.secrets.push((secret.clone(), id.clone()));
        let key = Key { account, name, permissions, is_enabled, expires_at, is_revoked, secret, previous };
        assert_eq!(data["permissions"], json!(names(key.permissions)));
        self.model.keys.insert(id, key);
    }

    async fn edit(&mut self) {
        let ((secret, caller), target) = (self.caller(), self.target());
        let mut body = json!({ "name": format!("edited {}", self.random.random_range(0..100)) });
        let asked = self.random.random_bool(0.3).then(|| self.random.random_range(0..=NAMED));
        let like_its_editor = asked.is_none() && self.random.random_bool(0.1);
        let days = self.random.random_bool(0.2).then(|| self.random.random_range(0..4i64));
        let enabled = self.random.random_bool(0.4).then(|| self.random.random_bool(0.6));
        let retire_now = self.random.random_bool(0.3);
        if asked.is_some() || like_its_editor {
            body["permissions"] = asked.map_or(Value::Null, |asked| json!(names(asked)));
        }
        if let Some(days) = days {
            body["expirationDays"] = if days == 0 { Value::Null } else { json!(days) };
        }
        if let Some(enabled) = enabled {
            body["enabled"] = json!(enabled);
        }
        if retire_now {
            body["retireNow"] = json!(true);
        }
        let now = self.now();
        let expected = Self::may(caller.as_ref(), WRITE).and_then(|by| {
            let mut key = self.seen(&by, &target)?;
            let wanted = if like_its_editor { Some(by.permissions) } else { asked };
            let gives = wanted.is_some() || days.is_some() || enabled == Some(true);
            let needed = wanted.unwrap_or(0) | if gives { key.permissions } else { 0 };
            if needed & !by.permissions != 0 {
                return Err(403);
            }
            key.permissions = wanted.unwrap_or(key.permissions);
            body["name"].as_str().unwrap().clone_into(&mut key.name);
            key.is_enabled = enabled.unwrap_or(key.is_enabled);
            match days {
                Some(0) => key.expires_at = None,
                Some(days) => key.expires_at = Some(now + TimeDelta::days(days)),
                None => (),
            }
            if retire_now {
                key.previous = None;
            }
            Ok(key)
        });
        let reply = self.app.patch(&format!("{KEYS}/{target}"), &secret, &body).await;
        if let Some(key) = self.agree("edit", &reply, expected, 200) {
            assert_eq!(told(&reply.body["data"]), key.shown(&target, now), "{body}");
            self.model.keys.insert(target, key);
        }
    }

    async fn rotate(&mut self) {
        let ((secret, caller), target) = (self.caller(), self.target());
        let hours = self.random.random_range(0..40i64);
        let now = self.now();
        let expected = Self::may(caller.as_ref(), WRITE).and_then(|by| {
            let key = self.seen(&by, &target)?;
            if key.permissions & !by.permissions != 0 {
                return Err(403);
            }
            if key.previous.as_ref().is_some_and(|(_, until)| *until > now) { Err(409) } else { Ok(key) }
        });
        let path = format!("{KEYS}/{target}/rotate");
        let reply = self.app.post(&path, &secret, &json!({ "gracePeriodHours": hours })).await;
        let Some(mut key) = self.agree("rotate", &reply, expected, 200) else { return };
        let new = reply.body["data"]["apiKey"].as_str().unwrap().to_owned();
        let old = std::mem::replace(&mut key.secret, new.clone());
        key.previous = (hours > 0).then(|| (old, now + TimeDelta::hours(hours)));
        self.model.secrets.push((new, target.clone()));
        self.model.keys.insert(target, key);
    }

    async fn revoke(&mut self) {
        let ((secret, caller), target) = (self.caller(), self.target());
        let expected = Self::may(caller.as_ref(), WRITE).and_then(|by| self.seen(&by, &target));
        let reply = self.app.send(request(Method::DELETE, &format!("{KEYS}/{target}"), &secret)).await;
        if let Some(key) = self.agree("revoke", &reply, expected, 200) {
            self.model.keys.insert(target, Key { is_revoked: true, ..key });
        }
    }

    async fn list(&mut self) {
        let (secret, caller) = self.caller();
        let now = self.now();
        let expected = Self::may(caller.as_ref(), READ);
        let reply = self.app.get(&format!("{KEYS}?sort=createdAt"), &secret).await;
        let Some(by) = self.agree("list", &reply, expected, 200) else { return };
        let of_account = self.model.keys.iter().filter(|(_, key)| key.account == by.account && !key.is_revoked);
        let mut expected: Vec<_> = of_account.map(|(id, key)| key.shown(id, now)).collect();
        let mut found: Vec<_> = reply.body["data"].as_array().unwrap().iter().map(told).collect();
        let id = |key: &Value| key["keyId"].as_str().unwrap().to_owned();
        expected.sort_by_key(id);
        found.sort_by_key(id);
        assert_eq!(found, expected);
    }

    async fn ask_about_itself(&mut self) {
        let (secret, caller) = self.caller();
        let now = self.now();
        let reply = self.app.send(json_request(Method::GET, "/v1/api-keys/current", &secret, "")).await;
        if let Some((id, key)) = self.agree("ask", &reply, caller.ok_or(401), 200) {
            assert_eq!(told(&reply.body["data"]["key"]), key.shown(&id, now));
        }
        let gateway = self.app.internal_send(request(Method::GET, "/forward-auth", &secret)).await;
        assert_eq!(gateway.status, reply.status);
    }

    /// Holds an answer's status against the model's; what the model has, if both say that it was done.
    fn agree<T>(&mut self, what: &'static str, reply: &Reply, expected: Result<T, u16>, done: u16) -> Option<T> {
        let status = expected.as_ref().err().copied().unwrap_or(done);
        assert_eq!(reply.status.as_u16(), status, "{what} at {}: {reply:?}", self.now());
        *self.seen.entry((what, status)).or_insert(0) += 1;
        expected.ok()
    }
}

async fn random_lives_of_keys_go_as_the_model_says(database: Database) {
    let mut seen = BTreeMap::new();
    for seed in 0..8 {
        let mut life = Life::begin(&database, seed).await;
        for step in 0..STEPS {
            // Of a failed test, the last line says where to look.
            eprintln!("seed {seed}, step {step}");
            life.step().await;
        }
        for (outcome, times) in life.seen {
            *seen.entry(outcome).or_insert(0) += times;
        }
    }
    let outcomes = [
        ("create", &[201, 401, 403][..]),
        ("edit", &[200, 401, 403, 404]),
        ("rotate", &[200, 401, 403, 404, 409]),
        ("revoke", &[200, 401, 403, 404]),
        ("list", &[200, 401, 403]),
        ("ask", &[200, 401]),
    ];
    for (what, statuses) in outcomes {
        for status in statuses {
            assert!(seen.get(&(what, *status)).is_some_and(|times| *times >= 5), "poor lives: {seen:?}");
        }
    }
}
