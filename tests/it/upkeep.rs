//! What is kept right without anybody asking: the count of an account's keys, one owner for each prefix, and that what has had
//! its time goes.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use momail_api_keys::account::Plan;
use momail_api_keys::id::AccountId;
use momail_api_keys::key::{KeyName, NewKey};
use momail_api_keys::permission::Permissions;
use momail_api_keys::store::{Store, StoreError};
use momail_api_keys::upkeep::Upkeep;
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use serde_json::json;

use crate::support::{Database, TestApp, is_long, on_both_stores};

on_both_stores!(
    the_count_of_live_keys_follows_an_operators_sql,
    a_prefix_that_is_taken_is_drawn_again,
    however_often_a_prefix_is_taken_a_key_is_made,
    one_round_of_upkeep_removes_however_much_has_had_its_time,
);

const KEYS: &str = "/v1/api-keys";

async fn live_keys(store: &Store, account: AccountId) -> u32 {
    store.find_account(account).await.unwrap().unwrap().live_keys
}

async fn the_count_of_live_keys_follows_an_operators_sql(database: Database) {
    let app = TestApp::on(&database).await;
    let (ours, our_key) = app.account(Plan::Pro).await;
    let (theirs, _) = app.account(Plan::Pro).await;
    for name in ["a", "b", "c"] {
        app.create(&our_key, json!({ "name": name })).await;
    }
    let counts = async || (live_keys(&app.store, ours).await, live_keys(&app.store, theirs).await);
    assert_eq!(counts().await, (4, 1));

    let other =
        "(select account_id from api_keys where account_id <> (select account_id from api_keys where name = 'b'))";
    let now = if database.is_postgres() { "now()" } else { "'2024-01-15T12:30:00Z'" };
    let steps = [
        (format!("update api_keys set revoked_at = {now} where name = 'a'"), (3, 1)),
        (format!("update api_keys set revoked_at = {now} where name = 'a'"), (3, 1)),
        ("update api_keys set revoked_at = null where name = 'a'".to_owned(), (4, 1)),
        (format!("update api_keys set account_id = {other} where name = 'a'"), (3, 2)),
        (format!("update api_keys set revoked_at = {now} where name in ('a', 'b')"), (2, 1)),
        // A revoked key moves without being counted; moved and revived at once, it is counted where it comes to.
        (
            "update api_keys set account_id = (select account_id from api_keys where name = 'c') where name = 'a'"
                .to_owned(),
            (2, 1),
        ),
        (format!("update api_keys set account_id = {other}, revoked_at = null where name = 'b'"), (2, 2)),
        ("update api_keys set name = 'renamed' where name = 'c'".to_owned(), (2, 2)),
        ("delete from api_keys where name = 'renamed'".to_owned(), (1, 2)),
        ("delete from api_keys where name = 'a'".to_owned(), (1, 2)),
    ];
    for (sql, expected) in steps {
        database.sql(&sql).await;
        assert_eq!(counts().await, expected, "{sql}");
    }
    // The secrets of deleted keys went with them.
    let orphans = "select count(*) from key_secrets where key_id not in (select id from api_keys)";
    assert_eq!(database.number(orphans).await, 0);
}

/// Draws the prefixes it is told, each of one character over and over, and everything else from the system.
struct Drawing {
    prefixes: VecDeque<u8>,
    calls: usize,
}

impl TryRng for Drawing {
    type Error = SysError;

    fn try_next_u32(&mut self) -> Result<u32, SysError> {
        SysRng.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, SysError> {
        SysRng.try_next_u64()
    }

    /// A secret asks twice: for its prefix, and for the rest.
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), SysError> {
        SysRng.try_fill_bytes(bytes)?;
        if self.calls.is_multiple_of(2)
            && let Some(prefix) = self.prefixes.pop_front()
        {
            bytes.fill(prefix);
        }
        self.calls += 1;
        Ok(())
    }
}

fn drawing(prefixes: &[u8]) -> Drawing {
    Drawing { prefixes: prefixes.iter().copied().collect(), calls: 0 }
}

async fn a_prefix_that_is_taken_is_drawn_again(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, key) = app.account(Plan::Pro).await;
    let new = |name: &str| {
        NewKey::new(account, KeyName::try_from(name).unwrap(), Permissions::EVERYTHING, None, app.clock.now())
    };
    let draw = async |name: &str, prefixes: &[u8]| app.store.create_key(&new(name), 25, &mut drawing(prefixes)).await;

    let first = draw("first", &[1]).await.unwrap().unwrap();
    assert_eq!(first.prefix().as_str(), "11111111");
    let second = draw("second", &[1, 1, 2]).await.unwrap().unwrap();
    assert_eq!(second.prefix().as_str(), "22222222");
    let outcome = draw("never", &[1; 1_000]).await;
    assert!(matches!(outcome, Err(StoreError::Taken)), "{outcome:?}");

    // Both open, nothing was overwritten, and no half of the third is left.
    for secret in [&first, &second] {
        assert_eq!(app.get(KEYS, secret.expose()).await.status, 200);
    }
    let list = app.get(KEYS, &key).await;
    let names: Vec<_> = list.body["data"].as_array().unwrap().iter().map(|key| key["name"].clone()).collect();
    assert_eq!(list.body["meta"]["total"], 3);
    assert!(!names.contains(&json!("never")), "{names:?}");
    assert_eq!(live_keys(&app.store, account).await, 3);
    assert_eq!(database.number("select count(*) from key_secrets").await, 3);
}

async fn one_round_of_upkeep_removes_however_much_has_had_its_time(database: Database) {
    let app = TestApp::on(&database).await;
    let (_, key) = app.account(Plan::Pro).await;
    app.get(KEYS, &key).await;
    let before = database.number("select count(*) from events").await;
    let long_ago = "'2001-01-01T00:00:00Z'";
    let numbers = "with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 3500)";
    for insert in [
        "insert into usage_by_hour (key_id, hour, allowed, refused) select id, n, 1, 0 from numbers, api_keys"
            .to_owned(),
        "insert into usage_by_day (key_id, day, allowed, refused) select id, n, 1, 0 from numbers, api_keys".to_owned(),
        format!(
            "insert into events (account_id, key_id, event, at)
             select account_id, id, 'created', {long_ago} from numbers, api_keys"
        ),
    ] {
        database.sql(&format!("{numbers} {insert}")).await;
    }
    let upkeep = Upkeep {
        store: app.store.clone(),
        clock: app.clock.clone(),
        event_retention: Some(Duration::from_secs(86_400)),
        key_retention: None,
    };
    upkeep.run().await;
    assert_eq!(database.number("select count(*) from events").await, before);
    for table in ["usage_by_hour where hour <= 3500", "usage_by_day where day <= 3500"] {
        assert_eq!(database.number(&format!("select count(*) from {table}")).await, 0, "{table}");
    }
}

async fn however_often_a_prefix_is_taken_a_key_is_made(database: Database) {
    let app = TestApp::on(&database).await;
    let (account, _) = app.account(Plan::Enterprise).await;
    let rounds = if is_long() { 1_000 } else { 150 };
    let mut made = HashSet::new();
    for round in 0..=rounds {
        let name = KeyName::try_from("one of many").unwrap();
        let key = NewKey::new(account, name, Permissions::EVERYTHING, None, app.clock.now());
        // The first takes this prefix, and all others find it taken.
        let secret = app.store.create_key(&key, 2_000, &mut drawing(&[1])).await.unwrap().unwrap();
        assert!(made.insert(secret.prefix().as_str().to_owned()), "round {round}: two keys have one prefix");
        assert_eq!(secret.prefix().as_str() == "11111111", round == 0);
    }
    assert_eq!(live_keys(&app.store, account).await, rounds + 2);
}
