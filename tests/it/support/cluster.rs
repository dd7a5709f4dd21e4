//! Three replicas as real processes on one PostgreSQL database, each with a network of its own between them.

use std::path::Path;

use sqlx::postgres::PgConnectOptions;

use super::{Database, Relay, Service, unlimited};

pub(crate) struct Cluster {
    pub(crate) replicas: [Service; 3],
    pub(crate) relays: [Relay; 3],
    /// Of an account on plan enterprise, which nothing limits here.
    pub(crate) key: String,
    pub(crate) database: Database,
}

impl Cluster {
    /// Starts replicas of this build of the program.
    pub(crate) async fn start(program: &Path) -> Self {
        let database = Database::postgres().await;
        let port = database.url.parse::<PgConnectOptions>().unwrap().get_port();
        let relays = [Relay::to(port).await, Relay::to(port).await, Relay::to(port).await];
        let replicas = [0, 1, 2].map(|n: usize| start_replica(program, &through(&relays[n], &database)));
        let key = Service::create_account(&database.url, "enterprise");
        let cluster = Self { replicas, relays, key, database };
        for replica in &cluster.replicas {
            replica.wait_until_ready_is(200).await;
            replica.wait_until_leased().await;
        }
        cluster
    }

    /// Kills a replica if it still runs, and starts another in its place.
    pub(crate) async fn replace(&mut self, n: usize) {
        self.replicas[n] = start_replica(Service::program(), &through(&self.relays[n], &self.database));
        self.replicas[n].wait_until_ready_is(200).await;
        self.replicas[n].wait_until_leased().await;
    }

    /// Waits until every replica believes its memory.
    pub(crate) async fn wait_until_leased(&self) {
        for replica in &self.replicas {
            replica.wait_until_leased().await;
        }
    }
}

/// The database's URL as the replica behind this relay knows it.
fn through(relay: &Relay, database: &Database) -> String {
    let port = database.url.parse::<PgConnectOptions>().unwrap().get_port();
    let (server, name) = database.url.rsplit_once('/').unwrap();
    format!("{}:{}/{name}", server.strip_suffix(&format!(":{port}")).unwrap(), relay.port)
}

fn start_replica(program: &Path, url: &str) -> Service {
    let lease = [
        ("MOMAIL_AUTH__CACHE", "lease"),
        ("MOMAIL_PLANS__PRO__PER_MINUTE", "0"),
        ("MOMAIL_PLANS__PRO__PER_HOUR", "0"),
        ("MOMAIL_PLANS__PRO__PER_DAY", "0"),
    ];
    let settings = [&unlimited(url)[..], &lease].concat();
    Service::start_of(program, &settings)
}
