//! No key is ever written anywhere but into the answer that made it. Here canaries are shown in every wrong place; beside this,
//! whatever any test's service logs, at the finest level, and answers is looked at by [`leaks`].

use std::fs;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::{HeaderName, Method, Request};
use serde_json::{Value, json};

use crate::support::{
    Connection, Database, PrivateRedis, Ran, Service, json_request, leaks, on_both_stores, raw_exchange, request,
    unknown_key,
};

on_both_stores!(no_log_metric_answer_or_store_holds_a_secret);

const KEYS: &str = "/v1/api-keys";
const PASSWORDS: [&str; 2] = ["canary-of-a-password-of-the-database", "canary-of-a-password-of-the-limits"];

fn with(name: &str, value: &str) -> Request<Body> {
    let mut request = request(Method::GET, KEYS, "");
    request.headers_mut().insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
    request
}

/// Every place where a client might put its key by mistake.
fn misplaced(key: &str) -> Vec<Request<Body>> {
    let named = json!({ key: 1, "name": key }).to_string();
    let headers = [
        "x-api_key",
        "cookie",
        "host",
        "x-request-id",
        "traceparent",
        "origin",
        "referer",
        "user-agent",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "if-none-match",
        "access-control-request-method",
        key,
    ];
    let mut requests: Vec<_> = headers.iter().map(|name| with(name, key)).collect();
    requests.extend([
        with("authorization", &format!("Basic {key}")),
        with("authorization", key),
        with("content-type", key),
        request(Method::GET, &format!("{KEYS}?api_key={key}"), ""),
        request(Method::GET, &format!("{KEYS}?api_key={key}"), key),
        request(Method::GET, &format!("{KEYS}?{key}=1&{key}"), key),
        request(Method::GET, &format!("{KEYS}?q={}", key.replace('_', "%5F")), key),
        request(Method::GET, &format!("{KEYS}?{}=1", key.replace('_', "%5F")), key),
        request(Method::GET, &format!("/{key}"), ""),
        request(Method::GET, &format!("{KEYS}/{key}/usage"), key),
        request(Method::DELETE, &format!("{KEYS}/{key}"), key),
        request(key.parse().unwrap(), KEYS, key),
        json_request(Method::POST, KEYS, key, named),
        json_request(Method::POST, KEYS, key, json!({ "name": key }).to_string()),
        json_request(Method::POST, KEYS, key, json!({ "name": "a", "expirationDays": key }).to_string()),
        json_request(Method::POST, KEYS, key, json!({ "name": "a", "permissions": [key] }).to_string()),
        json_request(Method::POST, KEYS, key, format!("\"{key}\"")),
        json_request(Method::POST, KEYS, key, key.to_owned()),
        json_request(Method::POST, KEYS, key, format!("{{\"name\":\"{}\"}}", key.repeat(3_000))),
    ]);
    requests
}

/// The same for a gateway, and for what it passes on of its client's.
fn misplaced_by_a_gateway(key: &str) -> Vec<Request<Body>> {
    let mut requests = Vec::new();
    for path in [format!("/forward-auth/{key}?{key}"), format!("/forward-auth/nginx/{key}")] {
        for shown in ["", key] {
            let mut asked = request(Method::GET, &path, shown);
            asked.headers_mut().insert("x-forwarded-uri", format!("/?{key}").parse().unwrap());
            asked.headers_mut().insert("x-forwarded-method", key.parse().unwrap());
            asked.headers_mut().insert("x-key-id", key.parse().unwrap());
            requests.push(asked);
        }
    }
    requests
}

async fn no_log_metric_answer_or_store_holds_a_secret(database: Database) {
    let redis = PrivateRedis::start().await;
    redis.command(&["config", "set", "slowlog-log-slower-than", "0"]);
    redis.command(&["config", "set", "slowlog-max-len", "100000"]);
    redis.command(&["config", "set", "requirepass", PASSWORDS[1]]);
    let url = database.url.replace("postgres@", &format!("postgres:{}@", PASSWORDS[0]));
    let redis_url = redis.url().replace("redis://", &format!("redis://:{}@", PASSWORDS[1]));
    let settings = [("DATABASE_URL", &*url), ("REDIS_URL", &*redis_url), ("RUST_LOG", "trace")];
    let created = Service::command()
        .args(["accounts", "create", "--name", "canary", "--plan", "enterprise", "--json"])
        .envs(settings)
        .output()
        .unwrap();
    let account: Value = serde_json::from_slice(&created.stdout).unwrap();
    let key = account["key"]["apiKey"].as_str().unwrap();
    let mut secrets = vec![key[12..].to_owned()];
    let mut service = Service::start(&settings);
    service.wait_until_ready_is(200).await;

    let mut answers = Vec::new();
    for (address, requests) in [(&service.public, misplaced(key)), (&service.internal, misplaced_by_a_gateway(key))] {
        for request in requests {
            let mut connection = Connection::open(address).await.unwrap();
            let reply = connection.send(request).await.unwrap();
            answers.extend(format!("{:?}", reply.headers).into_bytes());
            answers.extend(reply.bytes);
        }
    }
    // What hyper itself refuses, and never shows us.
    for refused in [format!("GET /{key} {key}\r\n\r\n"), format!("GET / HTTP/1.1\r\n{key}\u{1}: x\r\n\r\n")] {
        answers.extend(raw_exchange(&service.public, refused.as_bytes()).await.into_bytes());
    }
    let made = make_keys(&service, key).await;
    secrets.extend(made.iter().map(|key| key[12..].to_owned()));
    answers.extend(service.get(KEYS, &made[0]).await.bytes);
    answers.extend(service.get(KEYS, key).await.bytes);
    answers.extend(service.get_internal("/metrics").await.bytes);
    let shared = service.metric("limits_shared", &[]).await;
    assert_eq!((service.terminate().code(), shared), (Some(0), 1.0), "{}", service.logs());

    let logs = service.logs();
    assert!(logs.contains(&key[3..11]), "the prefix may be seen, or nothing is");
    assert!(logs.contains("\"given\":\"REDIS_URL, RUST_LOG"), "what was set is said: {logs}");
    let stored = dump(&database);
    assert!(String::from_utf8_lossy(&stored).contains(&key[3..11]), "the prefix is stored, or nothing was read");
    let counted = everything_in(&redis);
    assert!(counted.contains("momail:limits:key_"), "{counted}");
    secrets.extend(PASSWORDS.map(str::to_owned));
    for (what, bytes) in [
        ("an answer", &*answers),
        ("the log", logs.as_bytes()),
        ("standard output", service.stdout().as_bytes()),
        ("the command's log", &created.stderr),
        ("the database", &stored),
        ("Redis", counted.as_bytes()),
    ] {
        leaks::assert_none_of(&secrets, what, bytes);
    }
}

/// Makes keys in every way there is.
async fn make_keys(service: &Service, key: &str) -> Vec<String> {
    let mut made = Vec::new();
    let mut path = KEYS.to_owned();
    for (name, body) in [("", json!({ "name": "plain" })), (key, json!({ "name": "once" })), ("r", json!({}))] {
        let mut asked = json_request(Method::POST, &path, key, body.to_string());
        if !name.is_empty() {
            asked.headers_mut().insert("idempotency-key", name.parse().unwrap());
        }
        let reply = service.send(asked).await;
        assert!(reply.status.is_success(), "{reply:?}");
        made.push(reply.body["data"]["apiKey"].as_str().unwrap().to_owned());
        if name == key {
            path = format!("{}/rotate", reply.header("location"));
        }
    }
    made
}

/// Everything that is stored: all files of SQLite, or what PostgreSQL's own program makes of the database.
fn dump(database: &Database) -> Vec<u8> {
    if database.is_postgres() {
        return database.dump();
    }
    let files = fs::read_dir(database.path().parent().unwrap()).unwrap();
    files.flat_map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// All that Redis holds, and all that it was told.
fn everything_in(redis: &PrivateRedis) -> String {
    let ask = |words: &[&str]| redis.command(&[&["-a", PASSWORDS[1], "--no-auth-warning"], words].concat());
    let keys = ask(&["--scan"]);
    let values = keys.lines().map(|key| format!("{key} {}\n", ask(&["hgetall", key])));
    values.collect::<String>() + &ask(&["slowlog", "get", "-1"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_password_is_written_by_a_start_that_fails() {
    let [database, limits] = PASSWORDS;
    let nobody = "127.0.0.1:1";
    let server = Database::postgres().await.url.replace("postgres@", &format!("nobody:{database}@"));
    let redis = PrivateRedis::start().await;
    redis.command(&["config", "set", "requirepass", "another"]);
    let urls = [
        (format!("postgres://user:{database}@{nobody}/db"), format!("redis://user:{limits}@{nobody}")),
        (server.clone(), format!("redis://:{limits}@127.0.0.1:{}", redis.port)),
        (format!("{server}?sslmode=require"), format!("rediss://:{limits}@127.0.0.1:{}", redis.port)),
    ];
    for (url, redis_url) in &urls {
        let mut service = Service::spawn(&[("DATABASE_URL", url), ("REDIS_URL", redis_url), ("RUST_LOG", "trace")]);
        service.wait_until_it_listens();
        service.get_internal("/readyz").await;
        service.terminate();
        let listed = Ran::of(
            Service::command()
                .args(["accounts", "list"])
                .env("DATABASE_URL", url)
                .env("REDIS_URL", redis_url)
                .env("RUST_LOG", "trace"),
        );
        assert_ne!(listed.code, 0, "{listed:?}");
        for text in [service.logs(), service.stdout(), listed.out, listed.err] {
            leaks::assert_none_of(&PASSWORDS.map(str::to_owned), "what is written", text.as_bytes());
        }
        assert!(service.logs().contains("waiting for the database"), "{}", service.logs());
    }
}

#[test]
fn a_key_that_was_pasted_into_a_command_is_refused_and_not_repeated() {
    let database = Database::sqlite();
    database.operate(&["accounts", "create", "--name", "shop"]).done();
    let key = unknown_key();
    let equals = format!("--name={key}");
    let url = format!("http://127.0.0.1:1/{key}");
    let table: [&[&str]; 16] = [
        &[&key],
        &["keys", &key],
        &["--config", &key],
        &["accounts", "create", "--name", &key],
        &["accounts", "create", &equals],
        &["accounts", "create", "--name", "a", "--plan", &key],
        &["accounts", "create", "--name", "a", "--key-name", &key],
        &["accounts", "set-plan", &key, "pro"],
        &["keys", "create", "--account", "shop", "--name", &key],
        &["keys", "create", "--account", "shop", "--name", "a", "--permissions", &key],
        &["keys", "create", "--account", "shop", "--name", "a", "--expiration-days", &key],
        &["keys", "list", "--account", &key],
        &["keys", "revoke", &key],
        &["keys", "rotate", "key_01hm5cqv1kf3w9zq2n8x7t4b6d", "--grace-hours", &key],
        &["events", "--account", &key],
        &["healthcheck", "--url", &url],
    ];
    for arguments in table {
        let ran = database.operate(arguments);
        assert!(ran.code != 0 && ran.err.starts_with("error: "), "{arguments:?} {ran:?}");
        leaks::assert_none_of(&[key[12..].to_owned()], "the answer", ran.err.as_bytes());
        assert_eq!(ran.out, "", "{arguments:?}");
    }
    let named = database.operate(&["accounts", "create", "--name", &key]);
    assert_eq!(named.code, 2);
    assert!(named.err.contains(&format!("'{}****' for '--name <NAME>': must not contain an API key", &key[..6])));
}

#[test]
fn a_key_that_was_pasted_into_a_settings_file_is_refused_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let key = unknown_key();
    let texts = [
        key.clone(),
        format!("{key} = 1"),
        format!("[{key}]\na = 1"),
        format!("[store]\n{key} = 1"),
        format!("[store]\nurl = {key}"),
        format!("[store]\nurl = \"{key}\""),
        format!("[auth]\ncache = \"{key}\""),
        format!("[limits]\nredis_url = \"{key}\""),
        format!("[log]\nfilter = \"{key}=x\""),
        format!("[cors]\nallowed_origins = [\"{key}\"]"),
        format!("[proxies]\ntrusted = [\"{key}\"]"),
        format!("[permissions]\nothers = [\"{key}\"]"),
        format!("[{key}]\na = 1\n[{key}]\na = 1"),
    ];
    for text in texts {
        let file = folder.path().join("pasted.toml");
        fs::write(&file, &text).unwrap();
        let ran = Ran::of(Service::command().current_dir(folder.path()).args(["--config", "pasted.toml"]));
        assert_eq!((ran.code, &*ran.out), (2, ""), "{text}: {ran:?}");
        leaks::assert_none_of(&[key[12..].to_owned()], "the answer", ran.err.as_bytes());
    }
}

/// A key in the repository would be everybody's, and a scanner that finds it would be right.
#[test]
fn no_file_of_the_repository_holds_a_key() {
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR"))];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_built = [".git", "target"].iter().any(|name| path.ends_with(Path::new(name)));
            if path.is_symlink() || is_built {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                leaks::assert_none(&path.display().to_string(), &fs::read(&path).unwrap());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 150, "{looked_at} files");
}
