//! `replace` and its kin in SQLite, which remove rows without the triggers of a deletion.

use crate::cache::until_leased;
use crate::change_feed::{KEYS, prefix, until};
use crate::support::{Database, Options, TestApp};

#[tokio::test]
async fn sqlite_replace_is_announced() {
    let statements = [
        "replace into key_secrets (prefix, key_id, hash, created_at)
         select prefix, key_id, randomblob(32), created_at from key_secrets where prefix = '{prefix}'",
        "insert or replace into key_secrets (prefix, key_id, hash, created_at, retires_at)
         select prefix, key_id, hash, created_at, created_at from key_secrets where prefix = '{prefix}'",
        "update or replace key_secrets set prefix = '{prefix}' where prefix = '{other}'",
        "insert into key_secrets (prefix, key_id, hash, created_at) select prefix, key_id, hash, created_at
         from key_secrets where prefix = '{prefix}' on conflict (prefix) do update set hash = randomblob(32)",
        "replace into key_secrets (rowid, prefix, key_id, hash, created_at)
         select rowid, 'zzzzzzzz', key_id, hash, created_at from key_secrets where prefix = '{prefix}'",
        "replace into api_keys (id, account_id, name, created_at, revoked_at)
         select id, account_id, name, created_at, created_at from api_keys
         where id = (select key_id from key_secrets where prefix = '{prefix}')",
        "update or replace api_keys set id = (select key_id from key_secrets where prefix = '{prefix}'), revoked_at = created_at
         where name = 'spare'",
    ];
    for foreign_keys in ["off", "on"] {
        for statement in statements {
            let database = Database::sqlite();
            let app = TestApp::with(&database, Options::cached()).await;
            let (key, other) = (app.key().await, app.key().await);
            until_leased(&app).await;
            for key in [&key, &other] {
                assert_eq!(app.get(KEYS, key).await.status, 200);
            }
            let spare = "insert into api_keys (id, account_id, name, created_at)
                 select randomblob(16), account_id, 'spare', created_at from api_keys limit 1";
            let statement = statement.replace("{prefix}", prefix(&key)).replace("{other}", prefix(&other));
            database.sql(&format!("{spare}; pragma foreign_keys = {foreign_keys}; {statement}")).await;
            let is_refused = async || app.get(KEYS, &key).await.status == 401;
            until(&format!("foreign keys {foreign_keys}: {statement}"), is_refused).await;
        }
    }
}

#[tokio::test]
async fn sqlite_replaced_account_is_announced() {
    let database = Database::sqlite();
    let app = TestApp::with(&database, Options::cached()).await;
    let key = app.key().await;
    until_leased(&app).await;
    assert_eq!(app.get(KEYS, &key).await.body["data"][0]["plan"], "pro");
    database
        .sql("replace into accounts (id, name, plan, created_at) select id, name, 'free', created_at from accounts")
        .await;
    until("the plan is free", async || app.get(KEYS, &key).await.body["data"][0]["plan"] == "free").await;
}
