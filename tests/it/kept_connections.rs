//! A balancer keeps connections for less long than the service does, so that it never sends a request into one that is closing.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use rand::RngExt;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    Connection, Database, Nginx, Service, accounts, is_long, json_request, own_socket, request, unlimited,
};

const KEYS: &str = "/v1/api-keys";
const CLIENTS: usize = 24;
/// What nginx.conf says, sixty times shorter; and what default.toml says, but for the leeway that a busy machine needs.
const NGINX: (&str, &str) = ("keepalive_timeout 60s;\n    }", "keepalive_timeout 1s;\n    }");
const KEEP_ALIVE_MS: &str = "2500";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_rests_between_them_meet_no_connection_that_is_closing() {
    let database = Database::postgres().await;
    let keys = accounts(&database, CLIENTS).await;
    let addresses = [own_socket(), own_socket()];
    let replicas = [0, 1].map(|n: usize| {
        let own =
            [("MOMAIL_SERVER__PUBLIC_ADDR", addresses[n].as_str()), ("MOMAIL_SERVER__KEEP_ALIVE_MS", KEEP_ALIVE_MS)];
        Service::start(&[&unlimited(&database.url)[..], &own].concat())
    });
    for replica in &replicas {
        replica.wait_until_ready_is(200).await;
    }
    let nginx = Nginx::start_altered([&addresses[0], &addresses[1]], |text| {
        assert_eq!(text.matches(NGINX.0).count(), 1, "nginx.conf says it once");
        text.replace(NGINX.0, NGINX.1)
    });
    let until = Instant::now() + if is_long() { Duration::from_secs(120) } else { Duration::from_secs(10) };
    let clients = keys.iter().map(async |key| {
        let mut connection = Connection::open(&nginx.public).await.unwrap();
        let mut requests = 0;
        while Instant::now() < until {
            // nginx sends no POST again, so whatever goes wrong with one is seen.
            let create = json_request(Method::POST, KEYS, key, json!({ "name": "rested" }).to_string());
            let made = connection.send(create).await.unwrap();
            assert_eq!(made.status, 201, "{made:?}");
            let id = made.body["data"]["keyId"].as_str().unwrap();
            let delete = connection.send(request(Method::DELETE, &format!("{KEYS}/{id}"), key)).await.unwrap();
            assert_eq!(delete.status, 200, "{delete:?}");
            requests += 2;
            sleep(Duration::from_millis(rand::rng().random_range(500..2_800))).await;
        }
        requests
    });
    let requests: usize = join_all(clients).await.into_iter().sum();
    eprintln!("{requests} requests, none of them failed");
    assert!(requests > 4 * CLIENTS);
}
