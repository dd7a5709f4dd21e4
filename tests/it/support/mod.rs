//! What tests stand on: the router in memory over either store, and the program itself over sockets.

mod app;
mod balancer;
mod browser;
mod client;
mod cluster;
mod database;
mod disk;
mod document;
mod earlier;
mod figures;
mod forged;
mod gateway;
mod hold;
pub(crate) mod leaks;
mod ledger;
mod load;
mod nginx;
mod open_loop;
mod operator;
mod pooler;
mod pulse;
mod raw;
mod readme;
mod redis;
mod register;
mod relay;
mod script;
mod service;
mod statistics;
mod whole;

pub(crate) use self::app::{Options, TestApp};
pub(crate) use self::balancer::Balancer;
pub(crate) use self::browser::Site;
pub(crate) use self::client::{Connection, KeptClient, Reply, json_request, raw_exchange, request};
pub(crate) use self::cluster::Cluster;
pub(crate) use self::database::{Database, OTHER_PERMISSIONS, PrivatePostgres, Strain, signal};
pub(crate) use self::disk::Disk;
pub(crate) use self::earlier::{Earlier, latest};
pub(crate) use self::forged::{unknown_key, with_wrong_checksum, with_wrong_secret};
pub(crate) use self::gateway::{Gateway, Kind, Passage, Upstream};
pub(crate) use self::hold::Hold;
pub(crate) use self::ledger::Ledger;
pub(crate) use self::load::{Event, Load, Promises, accounts, opens, unlimited};
pub(crate) use self::nginx::{Nginx, own_address, own_socket};
pub(crate) use self::open_loop::{Answer, open_loop, percentile};
pub(crate) use self::operator::Ran;
pub(crate) use self::pooler::Pooler;
pub(crate) use self::pulse::Pulse;
pub(crate) use self::raw::{RawAnswer, RawConnection};
pub(crate) use self::readme::{Section, type_in, type_well};
pub(crate) use self::redis::PrivateRedis;
pub(crate) use self::register::{Client, Doomed, Register, Round, Through};
pub(crate) use self::relay::Relay;
pub(crate) use self::script::{Step, invalid_body, valid_creation};
pub(crate) use self::service::Service;
pub(crate) use self::statistics::{mann_whitney, median};

/// Makes of each function two tests: one on SQLite, one on PostgreSQL. Each is given a database of its own.
///
/// A function left off the list is never called, which the compiler reports.
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::Database::sqlite()).await;
            })+
        }

        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::Database::postgres().await).await;
            })+
        }
    };
}
pub(crate) use on_both_stores;

/// Whether there is time for long cases: `MOMAIL_TEST_LONG=1`.
#[expect(clippy::disallowed_methods, reason = "settings of the tests, not of the service")]
pub(crate) fn is_long() -> bool {
    std::env::var("MOMAIL_TEST_LONG").is_ok_and(|value| value == "1")
}

/// An environment variable that `tests/run` sets. A missing one is an error: a skipped store is how stores drift apart.
#[expect(clippy::disallowed_methods, reason = "settings of the tests, not of the service")]
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run the tests with tests/run"))
}
