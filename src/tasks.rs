//! The parts that a running process cannot do without. Whichever ends, the process shall not limp on without it.

use std::collections::HashMap;
use std::fmt;

use tokio::task::{Id, JoinError, JoinSet};

/// What runs beside the connections, for as long as the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    PublicListener,
    InternalListener,
    Upkeep,
    LastUses,
    RedisLink,
    Follower,
    AccessLog,
}

impl Part {
    pub const ALL: [Self; 7] = [
        Self::PublicListener,
        Self::InternalListener,
        Self::Upkeep,
        Self::LastUses,
        Self::RedisLink,
        Self::Follower,
        Self::AccessLog,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PublicListener => "the public listener",
            Self::InternalListener => "the internal listener",
            Self::Upkeep => "the upkeep",
            Self::LastUses => "the writer of last uses",
            Self::RedisLink => "the link to Redis",
            Self::Follower => "the follower of changes",
            Self::AccessLog => "the writer of the access log",
        })
    }
}

/// Parts that are tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    running: JoinSet<()>,
    parts: HashMap<Id, Part>,
}

impl Tasks {
    pub(crate) fn spawn(&mut self, part: Part, work: impl Future<Output = ()> + Send + 'static) {
        #[cfg(feature = "flawed")]
        let work = flaw::until_told_to_panic(part, work);
        let task = self.running.spawn(work);
        self.parts.insert(task.id(), part);
    }

    /// Waits for the next end of one; `None` once all have ended. An error is a panic and its words.
    pub(crate) async fn next_end(&mut self) -> Option<(Part, Result<(), JoinError>)> {
        let ended = self.running.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let part = self.parts.remove(&id).expect("every task is spawned under its part");
        Some((part, ended.map(drop)))
    }
}

/// Parts that panic when they are told to: a file with the part's name, in the folder in which the process was started, tells it.
#[cfg(feature = "flawed")]
pub(crate) mod flaw {
    use std::path::Path;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::Part;

    pub(crate) fn panic_if_told(part: Part) {
        assert!(!Path::new(&part.to_string()).exists(), "told to panic");
    }

    pub(super) async fn until_told_to_panic(part: Part, work: impl Future<Output = ()>) {
        let told = async {
            loop {
                panic_if_told(part);
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = work => (),
            () = told => (),
        }
    }
}
