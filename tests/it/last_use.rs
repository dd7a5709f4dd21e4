//! When a key was last used: shown at every moment, seldom written, never moved back, and no burden on anything else.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use momail_api_keys::account::Plan;
use momail_api_keys::auth::LastUsed;
use momail_api_keys::clock::Clock;
use momail_api_keys::secret::Prefix;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Database, Options, PrivatePostgres, TestApp, is_long, on_both_stores};

on_both_stores!(
    a_key_in_constant_use_is_shown_to_the_second_and_written_twice,
    the_first_use_is_written_at_once,
    replicas_that_write_the_same_uses_neither_wait_for_each_other_nor_turn_time_back,
    fifty_thousand_uses_that_waited_are_written_beside_creations,
);

const KEYS: &str = "/v1/api-keys";
const PATIENCE: Duration = Duration::from_secs(20);

/// A replica whose clock runs, and whose limits nobody meets.
async fn replica(database: &Database) -> TestApp {
    let mut options = Options::default();
    options.plans.enterprise.per_minute = 0;
    TestApp::at(database, options, Clock::system()).await
}

/// Lets the database count every change of a last use.
async fn count_writes(database: &Database) {
    let table = "create table writes (prefix text not null);";
    let trigger = if database.is_postgres() {
        "create function count_write() returns trigger language plpgsql as
             $$ begin insert into writes values (new.prefix); return null; end $$;
         create trigger counted after update on key_secrets for each row execute function count_write();"
    } else {
        "create trigger counted after update on key_secrets begin insert into writes values (new.prefix); end;"
    };
    database.sql(&format!("{table}{trigger}")).await;
}

/// The last use in the database, in milliseconds since 1970; 0 if there is none.
async fn written(database: &Database, key: &str) -> i64 {
    let millis = if database.is_postgres() {
        "(extract(epoch from last_used_at) * 1000)::bigint"
    } else {
        "cast(round((julianday(last_used_at) - 2440587.5) * 86400000) as integer)"
    };
    database.number(&format!("select coalesce({millis}, 0) from key_secrets where prefix = '{}'", prefix(key))).await
}

fn prefix(key: &str) -> &str {
    &key[3..11]
}

/// The last use in the account's list, likewise.
async fn shown(app: &TestApp, account_key: &str, name: &str) -> i64 {
    let list = app.get(KEYS, account_key).await;
    let key = list.body["data"].as_array().unwrap().iter().find(|key| key["name"] == name).unwrap();
    key["lastUsed"].as_str().map_or(0, |text| text.parse::<DateTime<Utc>>().unwrap().timestamp_millis())
}

async fn a_key_in_constant_use_is_shown_to_the_second_and_written_twice(database: Database) {
    let mut app = replica(&database).await;
    let account_key = app.account(Plan::Enterprise).await.1;
    let busy = app.create(&account_key, json!({ "name": "busy" })).await["apiKey"].as_str().unwrap().to_owned();
    count_writes(&database).await;
    app.write_last_used();

    let newest_use = AtomicI64::new(0);
    let minutes = if is_long() { 2 } else { 0 };
    let until = Instant::now() + Duration::from_secs(60 * minutes + 5);
    let busy_clients = join_all((0..4).map(async |_| {
        let mut uses = 0;
        while Instant::now() < until {
            let began = app.clock.now().timestamp_millis();
            assert_eq!(app.delete("/v1/api-keys/none", &busy).await.status, 404);
            newest_use.fetch_max(began, Ordering::SeqCst);
            uses += 1;
        }
        uses
    }));
    let looks = async {
        let mut looks = 0;
        while Instant::now() < until {
            let at_least = newest_use.load(Ordering::SeqCst);
            let shown = shown(&app, &account_key, "busy").await;
            let now = app.clock.now().timestamp_millis();
            assert!((at_least..=now).contains(&shown), "{shown} is not in {at_least}..={now}");
            looks += 1;
            sleep(Duration::from_millis(20)).await;
        }
        looks
    };
    let (uses, looked) = tokio::join!(busy_clients, looks);
    let uses = uses.iter().sum::<u32>();
    eprintln!("{uses} uses, {} a second; {looked} looks", u64::from(uses) / (60 * minutes + 5));
    let writes = format!("select count(*) from writes where prefix = '{}'", prefix(&busy));
    let writes_in_use = database.number(&writes).await;
    // The first at once, and one each minute; on a busy machine the pauses between the uses may look like a rest.
    assert!((1..=2 + i64::try_from(minutes).unwrap()).contains(&writes_in_use), "{writes_in_use} writes");

    // Come to rest, the last use is written as it was shown all the time, and stays.
    let last = shown(&app, &account_key, "busy").await;
    let deadline = Instant::now() + PATIENCE;
    while written(&database, &busy).await != last {
        assert!(Instant::now() < deadline, "the last use is not written");
        assert_eq!(shown(&app, &account_key, "busy").await, last);
        sleep(Duration::from_millis(20)).await;
    }
    app.flush_last_used().await;
    let expected = 2 + i64::try_from(minutes).unwrap();
    assert_eq!(database.number(&writes).await, expected, "the first use, one each minute, and the last");
    assert_eq!(shown(&replica(&database).await, &account_key, "busy").await, last, "on another replica");
}

async fn the_first_use_is_written_at_once(database: Database) {
    let mut app = replica(&database).await;
    app.write_last_used();
    let began = Instant::now();
    for _ in 0..12 {
        let key = app.account(Plan::Enterprise).await.1;
        assert_eq!(written(&database, &key).await, 0);
        assert_eq!(app.get(KEYS, &key).await.status, 200);
        let deadline = Instant::now() + PATIENCE;
        while written(&database, &key).await == 0 {
            assert!(Instant::now() < deadline, "the first use is not written");
            sleep(Duration::from_millis(5)).await;
        }
    }
    // A batch each second would take twelve.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

/// Stores many secrets of one account, and says which.
async fn many_secrets(database: &Database, app: &TestApp, number: u32) -> Vec<Prefix> {
    let key = app.account(Plan::Enterprise).await.1;
    let owner = format!("select key_id, hash, created_at from key_secrets where prefix = '{}'", prefix(&key));
    let names = format!(
        "with recursive n (n) as (select 10000000 union all select n + 1 from n where n < {})",
        10_000_000 + number - 1
    );
    let insert = format!(
        "{names} insert into key_secrets (prefix, key_id, hash, created_at)
         select cast(n as text), key_id, hash, created_at from n, ({owner}) as owner"
    );
    database.sql(&insert).await;
    (0..number).map(|n| Prefix::parse(&(10_000_000 + n).to_string()).unwrap()).collect()
}

async fn replicas_that_write_the_same_uses_neither_wait_for_each_other_nor_turn_time_back(database: Database) {
    let app = replica(&database).await;
    let prefixes = many_secrets(&database, &app, 200).await;
    let start = app.clock.now();
    let stores = [database.open(), database.open(), database.open()];
    let seconds = |replica: usize, round: i64| TimeDelta::seconds(round + [0, 1_000, 2_000][replica]);
    join_all(stores.iter().enumerate().map(async |(replica, store)| {
        for round in 0..30 {
            let at = start + seconds(replica, round);
            let mut uses: Vec<_> = prefixes.iter().map(|prefix| (*prefix, at)).collect();
            // Each begins elsewhere, as the hash maps they come from do.
            uses.rotate_left(replica * 70);
            store.touch_secrets(uses).await.unwrap();
        }
    }))
    .await;

    let last = start + seconds(2, 29);
    stores[0].touch_secrets(prefixes.iter().map(|prefix| (*prefix, start)).collect()).await.unwrap();
    for prefix in [&prefixes[0], &prefixes[199]] {
        assert_eq!(written(&database, &format!("mk_{prefix}")).await, last.timestamp_millis(), "time went back");
    }
}

async fn fifty_thousand_uses_that_waited_are_written_beside_creations(database: Database) {
    const MANY: u32 = 50_000;
    let app = replica(&database).await;
    let prefixes = many_secrets(&database, &app, MANY).await;
    let account_key = app.account(Plan::Enterprise).await.1;
    // As after an outage of the database.
    let last_used = LastUsed::default();
    for prefix in prefixes {
        last_used.record(prefix, app.clock.now(), true);
    }
    let stop = CancellationToken::new();
    let writer = tokio::spawn(last_used.clone().run(app.store.clone(), app.clock.clone(), stop.clone()));
    let deadline = Instant::now() + 2 * PATIENCE;
    let unwritten =
        "select count(*) from key_secrets where last_used_at is null and prefix between '10000000' and '10049999'";
    let mut slowest = Duration::ZERO;
    while database.number(unwritten).await > 0 {
        let began = Instant::now();
        app.create(&account_key, json!({ "name": "meanwhile" })).await;
        slowest = slowest.max(began.elapsed());
        assert!(Instant::now() < deadline, "they are never written");
        sleep(Duration::from_millis(50)).await;
    }
    eprintln!("the slowest creation beside it took {slowest:?}");
    stop.cancel();
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_survive_an_outage_of_the_database() {
    let mut postgres = PrivatePostgres::start().await;
    let database = postgres.database();
    let mut app = replica(&database).await;
    let (first, second) = (app.account(Plan::Enterprise).await.1, app.account(Plan::Enterprise).await.1);
    app.write_last_used();
    for key in [&first, &second] {
        assert_eq!(app.get(KEYS, key).await.status, 200);
        while written(&database, key).await == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(app.get(KEYS, &first).await.status, 200);
    let used = app.last_used.latest(Prefix::parse(prefix(&first)).unwrap()).unwrap();
    postgres.stop();
    // Long enough for several vain attempts.
    sleep(Duration::from_secs(4)).await;
    assert_eq!(app.get(KEYS, &second).await.status, 503);
    postgres.run().await;

    let deadline = Instant::now() + PATIENCE;
    while written(&database, &first).await != used.timestamp_millis() {
        assert!(Instant::now() < deadline, "the use is lost");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(app.last_used.dropped(), 0);
    app.flush_last_used().await;
}
