//! What the load is made of, beside keys that come and go.

use std::time::Duration;

use momail_api_keys::secret::Secret;
use rand::rngs::SysRng;
use tokio_util::sync::CancellationToken;

use crate::accounts::Accounts;
use crate::open_loop::{Log, Outcome, Pace, Running, Span, Stream};
use crate::requests;
use crate::rows::{COLLECTION, FORWARD_AUTH};
use crate::service::Fleet;

const CONNECTIONS: usize = 16;
/// So many clients, each with another address and another key that opens nothing.
const STRANGERS: usize = 10_000;
/// Keys that are asked for in turn.
const KEYS: usize = 1_000;

pub(super) struct Part {
    pub(super) name: &'static str,
    per_second: f64,
    question: Question,
    status: u16,
    client: Client,
}

#[derive(Clone, Copy)]
enum Question {
    ForwardAuth,
    List,
    /// Forward auth for a key that nobody has.
    Stranger,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    KeepsConnection,
    ConnectsAnew,
    /// Connects, asks, and goes without waiting for the answer.
    HangsUp,
}

/// Requests a second to one deployment.
pub(super) const PARTS: [Part; 5] = [
    Part::new("forward auth", 130.0, Question::ForwardAuth, 200, Client::KeepsConnection),
    Part::new("list", 50.0, Question::List, 200, Client::KeepsConnection),
    Part::new("keys of nobody", 20.0, Question::Stranger, 401, Client::KeepsConnection),
    Part::new("new connections", 20.0, Question::ForwardAuth, 200, Client::ConnectsAnew),
    Part::new("hanging up", 10.0, Question::List, 200, Client::HangsUp),
];

impl Part {
    const fn new(name: &'static str, per_second: f64, question: Question, status: u16, client: Client) -> Self {
        Self { name, per_second, question, status, client }
    }

    pub(super) async fn start(
        &'static self,
        fleet: &Fleet,
        accounts: &Accounts,
        span: Span,
        stop: &CancellationToken,
    ) -> anyhow::Result<Flowing> {
        let requests = match self.question {
            Question::ForwardAuth => requests::in_turn("GET", FORWARD_AUTH, accounts, KEYS),
            Question::List => requests::in_turn("GET", COLLECTION, accounts, KEYS),
            Question::Stranger => strangers()?,
        };
        let addresses = fleet.addresses(!matches!(self.question, Question::List));
        let stream = Stream::new(addresses, requests, self.status);
        let patience = if self.client == Client::HangsUp { Duration::ZERO } else { stream.patience };
        let keeps = self.client == Client::KeepsConnection;
        let pace = Pace::PerSecond(self.per_second);
        let stream = Stream { pace, connections: CONNECTIONS, keeps, patience, ..stream };
        Ok(Flowing { part: self, running: stream.start(span, stop).await? })
    }

    /// Whether the outcome is as it should be.
    fn expects(&self, outcome: Outcome) -> bool {
        outcome == Outcome::Good || (outcome == Outcome::GivenUp && self.client == Client::HangsUp)
    }

    /// What was not sent is the load's own fault and shown beside.
    pub(super) fn unexpected(&self, log: &Log) -> usize {
        log.count(|outcome| outcome != Outcome::Unsent && !self.expects(outcome))
    }
}

/// A part under way.
pub(super) struct Flowing {
    pub(super) part: &'static Part,
    pub(super) running: Running,
}

fn strangers() -> anyhow::Result<Vec<Vec<u8>>> {
    let stranger = |number: usize| {
        let key = Secret::generate(&mut SysRng)?;
        Ok(requests::request("GET", FORWARD_AUTH, &from_address(key.expose(), number), ""))
    };
    (0..STRANGERS).map(stranger).collect()
}

/// A key and, in the header after it, the client's address according to a proxy.
pub(super) fn from_address(key: &str, number: usize) -> String {
    let [.., high, middle, low] = number.to_be_bytes();
    format!("{key}\r\nx-forwarded-for: 10.{high}.{middle}.{low}")
}
