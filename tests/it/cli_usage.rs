//! What the program says when it is used wrongly or cannot do its work, by words and by exit code: 0 done, 1 failed, 2 wrong
//! usage or configuration.

use std::fs::{self, File};
use std::io::pipe;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use toml::Table;

use crate::support::{Database, Ran, Service};

/// Stands for a secret that was put in the wrong place.
const VALUE: &str = "s3cr3t=s3cr3t=s3cr3t";

/// The program in a folder of its own, where it can do no harm, not even by starting.
fn program(folder: &tempfile::TempDir) -> Command {
    let mut command = Service::command();
    command.current_dir(folder.path());
    command.env("MOMAIL_SERVER__PUBLIC_ADDR", "127.0.0.1:0").env("MOMAIL_SERVER__INTERNAL_ADDR", "127.0.0.1:0");
    command
}

fn assert_refused_before_anything_happens(command: &mut Command, folder: &tempfile::TempDir, name: &str) {
    let ran = Ran::of(command);
    assert_eq!((ran.code, &*ran.out), (2, ""), "{name}: {ran:?}");
    assert!(ran.err.starts_with("error: ") && ran.err.contains(name), "{name}: {ran:?}");
    assert!(!ran.err.contains("s3cr3t"), "{name}: {ran:?}");
    assert!(!folder.path().join("momail.db").exists(), "{name}");
}

/// Every setting by its dotted name.
fn settings() -> Vec<String> {
    let table: Table = include_str!("../../config/default.toml").parse().unwrap();
    let mut open = vec![(String::new(), table)];
    let mut names = Vec::new();
    while let Some((path, table)) = open.pop() {
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => open.push((format!("{path}{name}."), inner)),
                _ => names.push(format!("{path}{name}")),
            }
        }
    }
    names
}

#[test]
fn every_wrong_setting_is_refused_by_its_name_without_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let names = settings();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let variable = format!("MOMAIL_{}", name.replace('.', "__").to_ascii_uppercase());
        let mut command = program(&folder);
        assert_refused_before_anything_happens(command.env(&variable, VALUE), &folder, &variable);

        let (section, member) = name.rsplit_once('.').unwrap();
        let file = folder.path().join("wrong.toml");
        fs::write(&file, format!("[{section}]\n{member} = \"{VALUE}\"\n")).unwrap();
        let mut command = Service::command();
        command.current_dir(folder.path()).args(["--config", "wrong.toml"]);
        assert_refused_before_anything_happens(&mut command, &folder, &format!("{name} in wrong.toml"));
    }
    let table = [
        ("DATABASE_URL", VALUE),
        ("DATABASE_URL", "postgres://s3cr3t:s3cr3t@host:s3cr3t/db"),
        ("DATABASE_URL", "sqlite::memory:"),
        ("REDIS_URL", VALUE),
        ("RUST_LOG", VALUE),
        ("MOMAIL_SERVER__GRACE_MS", "-1"),
        ("MOMAIL_SERVER__GRACE_MS", "4294967296"),
        ("MOMAIL_SERVER__GRACE_MS", "1.5"),
        ("MOMAIL_SERVER__GRACE_MS", ""),
        ("MOMAIL_SERVER__MAX_CONNECTIONS", "0"),
        ("MOMAIL_STORE__MAX_CONNECTIONS", "0"),
        ("MOMAIL_SERVER__PUBLIC_ADDR", "127.0.0.1"),
        ("MOMAIL_SERVER__PUBLIC_ADDR", "localhost:8080"),
        ("MOMAIL_SERVER__S3_CR3T", "s3cr3t"),
        ("MOMAIL_SERVER", "s3cr3t"),
        ("MOMAIL_", "s3cr3t"),
    ];
    for (variable, value) in table {
        assert_refused_before_anything_happens(program(&folder).env(variable, value), &folder, variable);
    }
}

#[test]
fn a_settings_file_that_cannot_be_used_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("broken.toml"), "[store]\nurl = s3cr3t s3cr3t").unwrap();
    fs::write(folder.path().join("unknown.toml"), "[store]\nuri = \"s3cr3t\"").unwrap();
    fs::write(folder.path().join("binary.toml"), [0xff, 0xfe]).unwrap();
    let table = [
        ("missing.toml", "cannot read missing.toml"),
        (".", "cannot read ."),
        ("binary.toml", "cannot read binary.toml"),
        ("broken.toml", "broken.toml is not TOML"),
        ("unknown.toml", "store.uri in unknown.toml: there is no such setting"),
    ];
    for (file, complaint) in table {
        for command in [&["serve"][..], &["migrate"], &["accounts", "list"], &["healthcheck"]] {
            let mut program = program(&folder);
            program.args(command).args(["--config", file]);
            assert_refused_before_anything_happens(&mut program, &folder, complaint);
        }
    }
}

#[test]
fn wrong_usage_is_2_and_help_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a".repeat(101);
    let table: [&[&str]; 31] = [
        &["--bogus"],
        &["bogus"],
        &["serve", "--bogus"],
        &["serve", "more"],
        &["--config"],
        &["accounts"],
        &["accounts", "create"],
        &["accounts", "create", "--name", " "],
        &["accounts", "create", "--name", &long],
        &["accounts", "create", "--name", "a", "--plan", "gold"],
        &["accounts", "create", "--name", "a\nb"],
        &["accounts", "set-plan", "a"],
        &["accounts", "set-plan", "a", "gold"],
        &["keys", "create", "--account", "a"],
        &["keys", "create", "--account", "a", "--name", "b", "--expiration-days", "0"],
        &["keys", "create", "--account", "a", "--name", "b", "--expiration-days", "366"],
        &["keys", "list"],
        &["keys", "revoke", "key_nonsense"],
        &["keys", "disable", "key_nonsense"],
        &["keys", "enable"],
        &["keys", "change", "key_01hm5cqv1kf3w9zq2n8x7t4b6d"],
        &["keys", "change", "key_01hm5cqv1kf3w9zq2n8x7t4b6d", "--expiration-days", "0"],
        &["keys", "change", "key_nonsense", "--name", "a"],
        &["keys", "usage", "key_nonsense"],
        &["keys", "usage", "key_01hm5cqv1kf3w9zq2n8x7t4b6d", "--days", "366"],
        &["keys", "rotate", "key_nonsense"],
        &["keys", "rotate", "key_01hm5cqv1kf3w9zq2n8x7t4b6d", "--grace-hours", "169"],
        &["keys", "retire", "key_nonsense"],
        &["events", "--limit", "0"],
        &["healthcheck", "--url", "nonsense"],
        &["healthcheck", "--url", "https://127.0.0.1/livez"],
    ];
    for arguments in table {
        let ran = Ran::of(program(&folder).args(arguments));
        assert_eq!((ran.code, &*ran.out), (2, ""), "{arguments:?} {ran:?}");
        assert!(ran.err.contains("--help") || ran.err.contains("Usage:"), "{arguments:?} {ran:?}");
        assert!(!folder.path().join("momail.db").exists(), "{arguments:?}");
    }
}

#[test]
fn every_command_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    let commands = [
        "",
        "serve",
        "migrate",
        "accounts",
        "accounts create",
        "accounts list",
        "accounts set-plan",
        "keys",
        "keys create",
        "keys list",
        "keys change",
        "keys usage",
        "keys rotate",
        "keys retire",
        "keys disable",
        "keys enable",
        "keys revoke",
        "events",
        "openapi",
        "healthcheck",
    ];
    for command in commands {
        let help = Ran::of(program(&folder).args(command.split_whitespace()).arg("--help")).done();
        let name = format!("help {command}").trim_end().replace([' ', '-'], "_");
        insta::assert_snapshot!(name, help);
    }
    let version = Ran::of(program(&folder).arg("--version")).done();
    assert_eq!(version, concat!("momail-api-keys ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is_one() {
    let database = Database::sqlite();
    database.operate(&["migrate"]).done();
    for arguments in [&["openapi"][..], &["accounts", "list"], &["migrate"], &["--help"]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut command = Service::command();
        let command = command.args(arguments).env("DATABASE_URL", &database.url);
        let ended = command.stdout(writer).output().unwrap();
        assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]), "{arguments:?}");
    }
    for arguments in [&["openapi"][..], &["accounts", "list"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Service::command();
        let ended = command.args(arguments).env("DATABASE_URL", &database.url).stdout(full).output().unwrap();
        let complaint = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
        assert!(complaint.starts_with("error: standard output cannot be written: "), "{complaint}");
    }
}

#[test]
fn the_description_needs_no_settings_and_is_the_one_that_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let out = Ran::of(program(&folder).arg("openapi").env("DATABASE_URL", VALUE)).done();
    assert_eq!(out, momail_api_keys::http::openapi_document());
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert!(document["paths"]["/v1/api-keys"]["post"].is_object());
}

#[tokio::test]
async fn a_health_check_tells_the_living_from_the_dead() {
    let mut service = Service::start(&[]);
    let check = |arguments: &[&str], internal: &str| {
        let mut command = Service::command();
        Ran::of(command.arg("healthcheck").args(arguments).env("MOMAIL_SERVER__INTERNAL_ADDR", internal))
    };
    let (public, internal) = (service.public.clone(), service.internal.clone());
    assert_eq!(check(&[], &internal).done(), "live\n");
    let every_address = format!("0.0.0.0:{}", internal.rsplit_once(':').unwrap().1);
    assert_eq!(check(&[], &every_address).done(), "live\n");
    let ready = format!("http://{public}/readyz");
    assert_eq!(check(&["--url", &ready], "127.0.0.1:1").done(), "live\n");
    let refused = format!("http://{public}/v1/api-keys");
    let complaint = check(&["--url", &refused], &internal).failed();
    assert_eq!(complaint, format!("error: {refused} answered 401 Unauthorized\n"));
    service.kill();
    let complaint = check(&[], &internal).failed();
    assert!(complaint.contains(&internal), "{complaint}");

    // One that takes connections and says nothing is dead too.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let complaint = check(&[], &mute.local_addr().unwrap().to_string()).failed();
    assert!(complaint.contains("did not answer in time"), "{complaint}");
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn an_address_that_is_taken_is_1_and_names_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for name in ["public_addr", "internal_addr"] {
        let folder = tempfile::tempdir().unwrap();
        let variable = format!("MOMAIL_SERVER__{}", name.to_ascii_uppercase());
        let ran = Ran::of(program(&folder).env(variable, &taken).env("MOMAIL_LOG__FILTER", "warn"));
        let complaint = ran.failed();
        let expected = format!("error: server.{name}: {taken} cannot be listened on: Address already in use");
        assert!(complaint.starts_with(&expected), "{complaint}");
    }
}

#[test]
fn a_database_file_that_cannot_be_is_1_and_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    fs::write(folder.path().join("letter.txt"), "Dear all, this is no database. ".repeat(100)).unwrap();
    // Not even root may make a file in /proc.
    for (path, reason) in [
        ("/proc/momail.db", "cannot be made"),
        ("missing/momail.db", "cannot be made"),
        ("folder", "unable to open database file"),
        ("letter.txt", "file is not a database"),
    ] {
        for arguments in [&["serve"][..], &["migrate"], &["accounts", "list"]] {
            let url = format!("sqlite://{path}");
            let mut command = program(&folder);
            command.args(arguments).env("DATABASE_URL", &url).env("MOMAIL_LOG__FILTER", "warn");
            let complaint = Ran::of(&mut command).failed();
            assert!(complaint.contains(&url), "{arguments:?} {complaint}");
            assert_eq!(complaint.matches(reason).count(), 1, "{arguments:?} {complaint}");
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
        }
    }
}

#[tokio::test]
async fn the_first_key_is_printed_once_and_never_again() {
    let database = Database::sqlite();
    let mut first = Service::start(&[("DATABASE_URL", &database.url)]);
    let key = first.first_key();
    assert_eq!(first.stdout().matches("first key: ").count(), 1);
    assert!(!first.logs().contains(&key[12..]));
    assert_eq!(first.get("/v1/api-keys", &key).await.body["data"][0]["plan"], "pro");
    let accounts = database.operate(&["accounts", "list", "--json"]).json();
    assert_eq!((&accounts[0]["name"], accounts.as_array().unwrap().len()), (&"default".into(), 1));
    assert!(first.terminate().success());
    for _ in 0..2 {
        let mut again = Service::start(&[("DATABASE_URL", &database.url)]);
        again.wait_until_ready_is(200).await;
        assert!(!again.stdout().contains("first key"), "{}", again.stdout());
        assert_eq!(again.get("/v1/api-keys", &key).await.status, 200);
        again.terminate();
    }
    // Whoever made an account before the first start has a key already.
    let prepared = Database::sqlite();
    prepared.operate(&["accounts", "create", "--name", "mine"]).done();
    let service = Service::start(&[("DATABASE_URL", &prepared.url)]);
    service.wait_until_ready_is(200).await;
    assert!(!service.stdout().contains("first key"), "{}", service.stdout());
}
