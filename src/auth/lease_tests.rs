//! The promise, explored over random interleavings: once a change has been answered, memory never shows what was before it.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::lease::{Asked, Forget, Lease, Read};
use crate::id::AccountId;
use crate::secret::{Prefix, Secret};
use crate::store::{Feed, FeedPosition, Subject};

const LEASE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A change of the key, or of its account, is committed.
    Change {
        of_account: bool,
    },
    /// A request begins to read the key from the database, and its read arrives.
    BeginRead,
    EndRead,
    /// The follower sends its question, and applies the answer.
    Ask {
        misses_something: bool,
    },
    Apply,
    /// Time goes by, or the whole process is stopped for so long.
    Pass {
        millis: u64,
    },
    /// The replica's lease is ended, since it was taken off the list.
    End,
    /// A request looks into memory.
    Look,
}

/// What is wrong with a build on purpose, to show that the exploration would see it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    LeaseNeverEnds,
    FillIgnoresTheCounter,
    LeaseFromTheAnswer,
}

/// One replica, one key, and a database that numbers its changes.
struct World {
    flaw: Flaw,
    lease: Lease,
    now: Duration,
    prefix: Prefix,
    account: AccountId,
    /// When each change was committed, and what it was about; the first has number 1.
    changes: Vec<(Duration, Subject)>,
    /// The number of the last change when the key in memory was read.
    memory: Option<i64>,
    reads: Vec<Read>,
    asked: Vec<(Asked, i64, bool)>,
}

impl World {
    fn new(flaw: Flaw) -> Self {
        let prefix = Secret::generate(&mut rand::rngs::SysRng).unwrap().prefix();
        Self {
            flaw,
            lease: Lease::new(),
            now: Duration::from_secs(1),
            prefix,
            account: AccountId::new(),
            changes: Vec::new(),
            memory: None,
            reads: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn latest(&self) -> i64 {
        i64::try_from(self.changes.len()).unwrap()
    }

    /// `Err` with the number of the change that memory denied.
    fn step(&mut self, step: Step) -> Result<(), i64> {
        match step {
            Step::Change { of_account } => {
                let subject = if of_account { Subject::Account(self.account) } else { Subject::Secret(self.prefix) };
                self.changes.push((self.now, subject));
            }
            Step::BeginRead => {
                let (prefix, account) = (self.prefix, self.account);
                self.reads.push(Read { prefix, account, as_of: self.latest(), asked: self.now });
            }
            Step::EndRead => self.end_read(),
            Step::Ask { misses_something } => {
                self.asked.push((self.lease.ask(self.now, LEASE), self.latest(), misses_something));
            }
            Step::Apply => self.apply(),
            Step::Pass { millis } => self.now += Duration::from_millis(millis),
            Step::End => self.lease.end(),
            Step::Look => return self.look(),
        }
        Ok(())
    }

    fn end_read(&mut self) {
        let Some(read) = self.reads.pop() else { return };
        if self.flaw == Flaw::FillIgnoresTheCounter {
            self.memory = Some(read.as_of);
            return;
        }
        let memory = &mut self.memory;
        self.lease.admit(read, self.now, || *memory = Some(read.as_of));
    }

    fn apply(&mut self) {
        let Some((asked, latest, missed)) = self.asked.pop() else { return };
        let applied = self.lease.latest().map_or(0, |latest| latest.n);
        if latest < applied {
            return;
        }
        let numbered = self.changes.iter().zip(1..).map(|((_, subject), n)| (n, *subject));
        let changes = numbered.filter(|(n, _)| (applied + 1..=latest).contains(n)).collect();
        let latest = FeedPosition { n: latest, id: uuid::Uuid::nil() };
        let is_complete = !missed;
        let feed = Feed { latest, is_complete, is_registered: true, has_earlier_replicas: false, changes };
        let asked = if self.flaw == Flaw::LeaseFromTheAnswer { self.lease.ask(self.now, LEASE) } else { asked };
        let memory = &mut self.memory;
        self.lease.apply(&feed, asked, self.now, |forget| {
            let is_gone = match forget {
                Forget::Everything => true,
                Forget::These(changes) => changes.iter().any(|(n, _)| memory.is_some_and(|as_of| as_of < *n)),
            };
            if is_gone {
                *memory = None;
            }
        });
    }

    fn look(&self) -> Result<(), i64> {
        let is_believed = self.flaw == Flaw::LeaseNeverEnds || self.lease.is_valid(self.now);
        let Some(as_of) = self.memory.filter(|_| is_believed) else { return Ok(()) };
        // A change is answered when this replica has applied it, or the longest lease is over since its commit.
        let denied = self.changes.iter().zip(1..).find(|((committed, _), n)| {
            let is_answered =
                self.lease.latest().is_some_and(|latest| latest.n >= *n) || self.now >= *committed + LEASE;
            is_answered && as_of < *n
        });
        denied.map_or(Ok(()), |(_, n)| Err(n))
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => any::<bool>().prop_map(|of_account| Step::Change { of_account }),
        3 => Just(Step::BeginRead),
        3 => Just(Step::EndRead),
        3 => prop::bool::weighted(0.1).prop_map(|misses_something| Step::Ask { misses_something }),
        3 => Just(Step::Apply),
        2 => (1u64..700).prop_map(|millis| Step::Pass { millis }),
        1 => (1_000u64..30_000).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::End),
        4 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..80)
}

fn explore(flaw: Flaw, lives: u32) -> Result<(), String> {
    let config = Config { cases: lives, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            let mut world = World::new(flaw);
            for step in &steps {
                let outcome = world.step(*step);
                prop_assert!(outcome.is_ok(), "memory denied change {:?} at {:?}", outcome, world.now);
            }
            Ok(())
        })
        .map_err(|error| error.to_string())
}

#[test]
fn no_answered_change_is_denied() {
    explore(Flaw::None, 4_000).unwrap();
}

#[test]
fn the_exploration_finds_each_flaw() {
    for flaw in [Flaw::LeaseNeverEnds, Flaw::FillIgnoresTheCounter, Flaw::LeaseFromTheAnswer] {
        let found = explore(flaw, 20_000);
        assert!(found.is_err(), "{flaw:?} was not found");
    }
}

#[test]
fn memory_fills_and_is_believed_when_nothing_changes() {
    let mut world = World::new(Flaw::None);
    let quiet = [Step::Ask { misses_something: false }, Step::Apply, Step::BeginRead, Step::EndRead];
    for step in quiet {
        world.step(step).unwrap();
    }
    assert_eq!(world.memory, Some(0));
    assert!(world.lease.is_valid(world.now));
    assert!(!world.lease.is_valid(world.now + LEASE));
}
