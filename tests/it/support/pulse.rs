//! Whether a process says that it lives, asked all the time.

use std::time::{Duration, Instant};

use axum::http::Method;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Connection, Service, request};

const EVERY: Duration = Duration::from_millis(50);
/// An orchestrator would have given up by now, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Pulse {
    stop: CancellationToken,
    watch: JoinHandle<(u32, Duration)>,
}

impl Pulse {
    /// On both its addresses.
    pub(crate) fn of(service: &Service) -> Self {
        Self::at(vec![service.public.clone(), service.internal.clone()])
    }

    /// Only on the one that is not for everybody, where clients throng at the other.
    pub(crate) fn inside(service: &Service) -> Self {
        Self::at(vec![service.internal.clone()])
    }

    fn at(addresses: Vec<String>) -> Self {
        let stop = CancellationToken::new();
        let watch = tokio::spawn(watch(addresses, stop.clone()));
        Self { stop, watch }
    }

    /// Asserts that it was felt each time.
    pub(crate) async fn assert_steady(self) {
        self.stop.cancel();
        let (beats, slowest) = self.watch.await.unwrap();
        eprintln!("alive {beats} times, the slowest after {slowest:?}");
        assert!(beats > 0);
    }
}

async fn watch(addresses: Vec<String>, stop: CancellationToken) -> (u32, Duration) {
    let (mut beats, mut slowest) = (0, Duration::ZERO);
    for address in addresses.iter().cycle() {
        let began = Instant::now();
        let reply = async { Connection::open(address).await.unwrap().send(request(Method::GET, "/livez", "")).await };
        let reply = timeout(PATIENCE, reply).await.expect("it does not say that it lives").unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        (beats, slowest) = (beats + 1, slowest.max(began.elapsed()));
        if stop.run_until_cancelled(sleep(EVERY)).await.is_none() {
            break;
        }
    }
    (beats, slowest)
}
