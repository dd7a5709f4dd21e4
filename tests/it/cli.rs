//! The operator's commands on either store, as people and scripts use them.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Connection, Database, Ran, Service, on_both_stores, request};

on_both_stores!(
    an_account_is_made_with_a_key_that_opens,
    accounts_are_listed_for_people_and_for_scripts,
    an_account_is_found_by_its_id_or_by_a_name_that_is_its_own,
    keys_are_made_listed_and_revoked,
    a_key_is_made_with_the_permissions_it_is_given,
    a_plan_that_is_full_takes_no_more_keys,
    nothing_there_is_said_in_words_and_in_json,
    a_migration_says_what_it_did_and_has_nothing_to_do_twice,
    a_running_service_heeds_a_change_of_plan_at_the_next_request,
    a_running_service_heeds_a_key_that_is_disabled_and_enabled,
    a_key_is_rotated_and_its_old_secret_retired,
    a_running_service_refuses_a_revoked_key_at_once,
    a_service_may_only_start_on_a_schema_that_is_there_if_it_may_not_make_it,
);

const KEYS: &str = "/v1/api-keys";
const SHOWN_ONCE: &str = "This API key will only be shown once. Please store it securely.";

/// A database as the operator finds it: without a table.
async fn empty(database: Database) -> Database {
    if database.is_postgres() { Database::empty_postgres().await } else { database }
}

fn account(database: &Database, name: &str) -> Value {
    database.operate(&["accounts", "create", "--name", name, "--json"]).json()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The data of POST, member by member as the page orders them.
fn key_text(key: &Value) -> String {
    let members =
        ["keyId", "name", "apiKey", "keyPrefix", "plan", "rateLimit", "expirationTs", "createdAt", "permissions"];
    let members = members.map(|member| format!("\"{member}\":{}", key[member]));
    format!("{{{}}}", members.join(","))
}

async fn an_account_is_made_with_a_key_that_opens(database: Database) {
    let database = empty(database).await;
    let arguments = ["accounts", "create", "--name", " Müller & Söhne ", "--plan", "pro", "--key-name", "Lager"];
    let out = database.operate(&[&arguments[..], &["--json"]].concat()).done();
    let made: Value = serde_json::from_str(&out).unwrap();
    let key = &made["key"];
    let expected = format!(r#"{{"accountId":{},"plan":"pro","key":{}}}"#, made["accountId"], key_text(key));
    assert_eq!(out, expected + "\n");
    assert!(text(&made["accountId"]).starts_with("acc_"));
    assert_eq!((text(&key["name"]), &key["rateLimit"], &key["expirationTs"]), ("Lager", &json!(100), &Value::Null));

    let service = Service::start(&[("DATABASE_URL", &database.url)]);
    let list = service.get(KEYS, text(&key["apiKey"])).await;
    assert_eq!((list.status.as_u16(), &list.body["data"][0]["keyId"]), (200, &key["keyId"]));

    // People get the same with the defaults.
    let out = database.operate(&["accounts", "create", "--name", "other"]).done();
    let lines: Vec<_> = out.lines().collect();
    let [account, key, "", secret, "", SHOWN_ONCE] = lines[..] else { panic!("{out}") };
    let account: Vec<_> = account.split("  ").collect();
    assert!(matches!(account[..], ["account", id, "other", "(free)"] if id.starts_with("acc_")), "{out}");
    assert!(key.starts_with("key      key_") && key.ends_with("  first key"), "{out}");
    assert_eq!(service.get(KEYS, secret).await.status, 200);
}

async fn accounts_are_listed_for_people_and_for_scripts(database: Database) {
    let first = account(&database, "first");
    let second = account(&database, "名前");
    database.operate(&["keys", "create", "--account", "first", "--name", "two"]).done();
    let out = database.operate(&["accounts", "list", "--json"]).done();
    let listed: Value = serde_json::from_str(&out).unwrap();
    let expected = [(&first, "first", 2), (&second, "名前", 1)].map(|(account, name, keys)| {
        let (id, created) = (&account["accountId"], &account["key"]["createdAt"]);
        format!(r#"{{"accountId":{id},"name":"{name}","plan":"free","keys":{keys},"createdAt":{created}}}"#)
    });
    let mut found: Vec<_> = listed.as_array().unwrap().iter().map(|account| text(&account["name"])).collect();
    found.sort_unstable();
    assert_eq!(found, ["first", "名前"]);
    for account in &expected {
        assert!(out.contains(account), "{out}\n{account}");
    }

    let out = database.operate(&["accounts", "list"]).done();
    let rows: Vec<Vec<_>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ACCOUNT", "PLAN", "KEYS", "CREATED", "NAME"]);
    assert_eq!(rows.len(), 3);
    let row = [text(&first["accountId"]), "free", "2", text(&first["key"]["createdAt"]), "first"];
    assert!(rows.iter().any(|found| found == &row), "{out}");
}

async fn an_account_is_found_by_its_id_or_by_a_name_that_is_its_own(database: Database) {
    let (one, _) = (account(&database, "twin"), account(&database, "twin"));
    let id = text(&one["accountId"]);
    for arguments in [
        vec!["accounts", "set-plan", "twin", "pro"],
        vec!["keys", "list", "--account", "twin"],
        vec!["keys", "create", "--account", "twin", "--name", "a"],
    ] {
        let complaint = database.operate(&arguments).failed();
        assert_eq!(
            complaint, "error: several accounts are named `twin`; give the id of one, see `accounts list`\n",
            "{arguments:?}"
        );
        let nobody: Vec<_> = arguments.iter().map(|argument| argument.replace("twin", "nobody")).collect();
        let nobody: Vec<_> = nobody.iter().map(String::as_str).collect();
        let complaint = database.operate(&nobody).failed();
        assert_eq!(complaint, "error: there is no account `nobody`; `accounts list` shows those there are\n");
    }
    let out = database.operate(&["accounts", "set-plan", id, "enterprise"]).done();
    assert_eq!(out, format!("{id} is on plan enterprise now\n"));
    let listed = database.operate(&["accounts", "list", "--json"]).json();
    let plan_of = |id: &str| {
        let account = listed.as_array().unwrap().iter().find(|account| account["accountId"] == id).unwrap();
        text(&account["plan"]).to_owned()
    };
    assert_eq!(plan_of(id), "enterprise");
    let twin = listed.as_array().unwrap().iter().find(|account| account["accountId"] != id).unwrap();
    assert_eq!(twin["plan"], "free");
}

async fn keys_are_made_listed_and_revoked(database: Database) {
    let first = account(&database, "shop");
    let arguments = ["keys", "create", "--account", "shop", "--name", "till", "--expiration-days", "30", "--json"];
    let out = database.operate(&arguments).done();
    let till: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out, key_text(&till) + "\n");
    assert_eq!((&till["plan"], &till["rateLimit"]), (&json!("free"), &json!(20)));
    assert!(till["expirationTs"].is_string());
    let out = database.operate(&["keys", "create", "--account", "shop", "--name", "by hand"]).done();
    let lines: Vec<_> = out.lines().collect();
    let [key, "", secret, "", SHOWN_ONCE] = lines[..] else { panic!("{out}") };
    assert!(key.starts_with("key  key_") && key.ends_with("  by hand"), "{out}");

    let out = database.operate(&["keys", "list", "--account", "shop", "--json"]).done();
    let listed: Value = serde_json::from_str(&out).unwrap();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|key| text(&key["name"])).collect();
    assert_eq!(names, ["by hand", "till", "first key"], "newest first");
    let members = [
        "keyId",
        "name",
        "keyPrefix",
        "plan",
        "rateLimit",
        "lastUsed",
        "createdAt",
        "expirationTs",
        "permissions",
        "enabled",
        "status",
        "previousSecret",
    ];
    let keys = listed.as_array().unwrap().iter().map(|key| {
        let members = members.map(|member| format!("\"{member}\":{}", key[member]));
        format!("{{{}}}", members.join(","))
    });
    assert_eq!(out, format!("[{}]\n", keys.collect::<Vec<_>>().join(",")));
    let table = database.operate(&["keys", "list", "--account", "shop"]).done();
    let head: Vec<_> = table.lines().next().unwrap().split("  ").filter(|word| !word.is_empty()).collect();
    assert_eq!(
        head.iter().map(|word| word.trim()).collect::<Vec<_>>(),
        ["KEY", "PREFIX", "STATUS", "LAST USED", "CREATED", "EXPIRES", "NAME"]
    );
    assert_eq!(table.lines().count(), 4);
    for shown in [&out, &table] {
        assert!(!shown.contains(&secret[12..]) && !shown.contains(&text(&till["apiKey"])[12..]), "{shown}");
    }

    let id = text(&till["keyId"]);
    assert_eq!(database.operate(&["keys", "revoke", id]).done(), format!("{id} is revoked\n"));
    let gone = format!("error: there is no key {id}, or it is revoked already\n");
    assert_eq!(database.operate(&["keys", "revoke", id]).failed(), gone);
    // A key is also known by its plain UUID.
    let uuid = momail_api_keys::id::KeyId::parse(text(&first["key"]["keyId"])).unwrap().0.to_string();
    database.operate(&["keys", "revoke", &uuid]).done();
    let listed = database.operate(&["keys", "list", "--account", "shop", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["name"], "by hand");
}

async fn a_key_is_made_with_the_permissions_it_is_given(database: Database) {
    account(&database, "shop");
    let create = |permissions: &str| {
        let arguments =
            ["keys", "create", "--account", "shop", "--name", "till", "--json", "--permissions", permissions];
        database.operate(&arguments)
    };
    let till = create("emails:read,domains:write").json();
    assert_eq!(till["permissions"], json!(["domains:write", "emails:read"]));
    let known = "api-keys:read, api-keys:write, domains:read, domains:write, mailboxes:read, mailboxes:write, \
                 emails:read, emails:write, search:read, search:write, webhooks:read, webhooks:write, billing:read, \
                 billing:write";
    let complaint = format!("error: there is no permission `emails:send`; there are {known}\n");
    assert_eq!(create("domains:read,emails:send").failed(), complaint);
    let listed = database.operate(&["keys", "list", "--account", "shop", "--json"]).json();
    assert_eq!((&listed[0]["permissions"], listed.as_array().unwrap().len()), (&till["permissions"], 2));
}

async fn a_plan_that_is_full_takes_no_more_keys(database: Database) {
    account(&database, "full");
    let create = |limit: &str| {
        let mut command = Service::command();
        command.args(["keys", "create", "--account", "full", "--name", "one more"]);
        command.env("DATABASE_URL", &database.url).env("MOMAIL_PLANS__FREE__MAX_KEYS", limit);
        Ran::of(&mut command)
    };
    create("2").done();
    assert_eq!(create("2").failed(), "error: plan free allows 2 keys, and the account has them all\n");
    create("3").done();
}

async fn nothing_there_is_said_in_words_and_in_json(database: Database) {
    let database = empty(database).await;
    let out = database.operate(&["accounts", "list"]).done();
    assert_eq!(out, "no accounts yet; `momail-api-keys accounts create --name NAME` makes one\n");
    assert_eq!(database.operate(&["accounts", "list", "--json"]).done(), "[]\n");
    let made = account(&database, "bare");
    database.operate(&["keys", "revoke", text(&made["key"]["keyId"])]).done();
    let out = database.operate(&["keys", "list", "--account", "bare"]).done();
    assert_eq!(out, "no keys; `momail-api-keys keys create --account ACCOUNT --name NAME` makes one\n");
    assert_eq!(database.operate(&["keys", "list", "--account", "bare", "--json"]).done(), "[]\n");
}

async fn a_migration_says_what_it_did_and_has_nothing_to_do_twice(database: Database) {
    let database = empty(database).await;
    let first = database.operate(&["migrate"]).done();
    let (applied, version) = first.trim_end().split_once(" applied; schema ").unwrap();
    assert!(applied == "1 migration" || applied.ends_with(" migrations"), "{first}");
    for _ in 0..2 {
        assert_eq!(database.operate(&["migrate"]).done(), format!("schema {version} is up to date\n"));
    }
}

async fn a_running_service_heeds_a_change_of_plan_at_the_next_request(database: Database) {
    let made = account(&database, "growing");
    let service = Service::start(&[("DATABASE_URL", &database.url)]);
    let key = text(&made["key"]["apiKey"]);
    let mut connection = Connection::open(&service.public).await.unwrap();
    for (plan, limit) in [("free", "20"), ("enterprise", "500"), ("pro", "100"), ("free", "20")] {
        database.operate(&["accounts", "set-plan", "growing", plan]).done();
        let list = connection.send(request(Method::GET, KEYS, key)).await.unwrap();
        assert_eq!((list.status.as_u16(), list.header("x-ratelimit-limit")), (200, limit), "{plan}");
        assert_eq!(list.body["data"][0]["plan"], plan);
    }
}

async fn a_running_service_heeds_a_key_that_is_disabled_and_enabled(database: Database) {
    let made = account(&database, "on hold");
    let service = Service::start(&[("DATABASE_URL", &database.url), ("MOMAIL_AUTH__CACHE", "lease")]);
    let (id, key) = (text(&made["key"]["keyId"]), text(&made["key"]["apiKey"]));
    for _ in 0..2 {
        assert_eq!(service.get(KEYS, key).await.status, 200);
        assert_eq!(database.operate(&["keys", "disable", id]).done(), format!("{id} is disabled now\n"));
        assert_eq!(service.get(KEYS, key).await.status, 401);
        assert!(database.operate(&["keys", "list", "--account", "on hold"]).done().contains("  disabled  "));
        assert_eq!(database.operate(&["keys", "enable", id]).done(), format!("{id} is enabled now\n"));
    }
    database.operate(&["keys", "revoke", id]).done();
    for command in ["enable", "disable"] {
        let gone = format!("error: there is no key {id}, or it is revoked already\n");
        assert_eq!(database.operate(&["keys", command, id]).failed(), gone);
    }
}

async fn a_key_is_rotated_and_its_old_secret_retired(database: Database) {
    let made = account(&database, "turning");
    let service = Service::start(&[("DATABASE_URL", &database.url), ("MOMAIL_AUTH__CACHE", "lease")]);
    let (id, first) = (text(&made["key"]["keyId"]), text(&made["key"]["apiKey"]));
    let rotated = database.operate(&["keys", "rotate", id, "--json"]).json();
    let second = text(&rotated["apiKey"]);
    assert_eq!(
        (&rotated["keyId"], &rotated["previousSecret"]["keyPrefix"]),
        (&made["key"]["keyId"], &made["key"]["keyPrefix"])
    );
    for secret in [first, second] {
        assert_eq!(service.get(KEYS, secret).await.status, 200);
    }
    let until = text(&rotated["previousSecret"]["retiresTs"]);
    let complaint = format!("error: the secret before still works until {until}; `keys retire {id}` ends it first\n");
    assert_eq!(database.operate(&["keys", "rotate", id]).failed(), complaint);
    assert_eq!(database.operate(&["keys", "retire", id]).done(), format!("{id} has one secret now\n"));
    assert_eq!(service.get(KEYS, first).await.status, 401);
    assert_eq!(service.get(KEYS, second).await.status, 200);

    let out = database.operate(&["keys", "rotate", id, "--grace-hours", "0"]).done();
    let lines: Vec<_> = out.lines().collect();
    let [key, "", third, "", SHOWN_ONCE, "The secret before opens nothing any more."] = lines[..] else {
        panic!("{out}")
    };
    assert_eq!(key, format!("key  {id}  first key"));
    assert_eq!(service.get(KEYS, second).await.status, 401);
    let out = database.operate(&["keys", "rotate", id, "--grace-hours", "168"]).done();
    assert!(out.contains(&format!("\nThe secret before, {}****, works until ", &third[..6])), "{out}");
    assert_eq!(service.get(KEYS, third).await.status, 200);
}

async fn a_running_service_refuses_a_revoked_key_at_once(database: Database) {
    let made = account(&database, "leaky");
    let service = Service::start(&[("DATABASE_URL", &database.url)]);
    let key = text(&made["key"]["apiKey"]);
    for _ in 0..3 {
        assert_eq!(service.get(KEYS, key).await.status, 200);
    }
    database.operate(&["keys", "revoke", text(&made["key"]["keyId"])]).done();
    assert_eq!(service.get(KEYS, key).await.status, 401);
}

async fn a_service_may_only_start_on_a_schema_that_is_there_if_it_may_not_make_it(database: Database) {
    let database = empty(database).await;
    let forbidden = ("MOMAIL_STORE__MIGRATE_ON_START", "false");
    let run = || {
        let mut command = Service::command();
        command.args(["accounts", "list"]).env("DATABASE_URL", &database.url).env(forbidden.0, forbidden.1);
        Ran::of(&mut command)
    };
    let complaint = run().failed();
    assert!(complaint.contains("run `momail-api-keys migrate`"), "{complaint}");
    let service = Service::start(&[("DATABASE_URL", &database.url), forbidden]);
    assert_eq!(service.get_internal("/readyz").await.status, 503);
    database.operate(&["migrate"]).done();
    service.wait_until_ready_is(200).await;
    run().done();
}
