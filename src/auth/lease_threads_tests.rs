//! The same promise where threads meet: tried in every order in which a few of them can run.

use std::sync::atomic::AtomicBool as Finding;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use self::lease::{Asked, Forget, Lease, Read};
use crate::id::AccountId;
use crate::secret::{Prefix, Secret};
use crate::store::{Feed, FeedPosition, Subject};

mod sync {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(super) use loom::sync::{Mutex, MutexGuard};
}

#[expect(clippy::duplicate_mod, reason = "the same text, where threads meet in other things")]
#[path = "lease.rs"]
mod lease;

const LEASE: u64 = 1_000;
/// Orders in which threads are interrupted more often than this in the middle of what they do are left out.
const INTERRUPTIONS: usize = 4;

/// What is wrong on purpose, to show that it would be seen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    LeaseNeverEnds,
    FillIgnoresTheCounter,
    LeaseFromTheAnswer,
    LooksBeforeItAsks,
}

/// One replica that knows a key, and a database in which the key is changed once.
struct World {
    flaw: Flaw,
    lease: Lease,
    prefix: Prefix,
    account: AccountId,
    /// In milliseconds.
    now: AtomicU64,
    /// The number of the last change in the database.
    database: Mutex<i64>,
    /// The number of the last change when the key in memory was read.
    memory: Mutex<Option<i64>>,
    is_listed: AtomicBool,
    first_asked: Asked,
}

impl World {
    fn new(flaw: Flaw, prefix: Prefix, account: AccountId) -> Arc<Self> {
        let lease = Lease::new();
        let world = Self {
            flaw,
            first_asked: lease.ask(Duration::from_millis(1), Duration::from_millis(LEASE)),
            lease,
            prefix,
            account,
            now: AtomicU64::new(1),
            database: Mutex::new(0),
            memory: Mutex::new(Some(0)),
            is_listed: AtomicBool::new(true),
        };
        let (feed, now) = (feed(0, Vec::new()), world.now());
        let asked = world.lease.ask(now, Duration::from_millis(LEASE));
        world.lease.apply(&feed, asked, now, |_| ());
        Arc::new(world)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now.load(Ordering::SeqCst))
    }

    fn follow(&self) {
        let asked = self.ask();
        let latest = *self.database.lock().unwrap();
        self.apply(latest, if self.flaw == Flaw::LeaseFromTheAnswer { self.ask() } else { asked });
    }

    fn ask(&self) -> Asked {
        self.lease.ask(self.now(), Duration::from_millis(LEASE))
    }

    /// The answer to the question that was sent first of all.
    fn answer_late(&self) {
        self.apply(0, self.first_asked);
    }

    fn apply(&self, latest: i64, asked: Asked) {
        let changes = if latest > 0 { vec![(latest, Subject::Secret(self.prefix))] } else { Vec::new() };
        self.lease.apply(&feed(latest, changes), asked, self.now(), |forget| match forget {
            Forget::Everything => unreachable!("nothing is missed here"),
            Forget::These(changes) => {
                let mut memory = self.memory.lock().unwrap();
                if changes.iter().any(|(n, _)| memory.is_some_and(|as_of| as_of < *n)) {
                    *memory = None;
                }
            }
        });
    }

    fn fill(&self) {
        let asked = self.now();
        let as_of = *self.database.lock().unwrap();
        let keep = || *self.memory.lock().unwrap() = Some(as_of);
        if self.flaw == Flaw::FillIgnoresTheCounter {
            return keep();
        }
        let read = Read { prefix: self.prefix, account: self.account, as_of, asked };
        self.lease.admit(read, asked, keep);
    }

    /// Commits a change, and answers it when the replica has applied it or its lease must have ended.
    fn change(&self) {
        *self.database.lock().unwrap() = 1;
        if self.is_listed.load(Ordering::Acquire) && self.lease.latest().is_none_or(|latest| latest.n < 1) {
            self.now.fetch_add(LEASE, Ordering::SeqCst);
        }
    }

    fn leave(&self) {
        self.lease.end();
        assert_eq!(self.lease.until(), Duration::ZERO);
        self.is_listed.store(false, Ordering::Release);
    }

    /// Whether memory denies the change to a request that begins after its answer.
    fn denies(&self) -> bool {
        let look = || *self.memory.lock().unwrap();
        let found_before = if self.flaw == Flaw::LooksBeforeItAsks { Some(look()) } else { None };
        let is_believed = self.flaw == Flaw::LeaseNeverEnds || self.lease.is_valid(self.now());
        let found = found_before.unwrap_or_else(look);
        is_believed && found == Some(0)
    }
}

fn feed(latest: i64, changes: Vec<(i64, Subject)>) -> Feed {
    let latest = FeedPosition { n: latest, id: uuid::Uuid::nil() };
    Feed { latest, is_complete: true, is_registered: true, has_earlier_replicas: false, changes }
}

/// Tries every order in which these can run while a change is committed, answered and put to the test; says whether it was
/// denied in any.
fn is_denied(flaw: Flaw, others: &'static [fn(&World)]) -> bool {
    let prefix = Secret::generate(&mut rand::rngs::SysRng).unwrap().prefix();
    let account = AccountId::new();
    let found = std::sync::Arc::new(Finding::new(false));
    let seen = std::sync::Arc::clone(&found);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(INTERRUPTIONS);
    model.check(move || {
        let world = World::new(flaw, prefix, account);
        for other in others {
            let world = Arc::clone(&world);
            thread::spawn(move || other(&world));
        }
        world.change();
        seen.fetch_or(world.denies(), Ordering::Relaxed);
    });
    found.load(Ordering::Relaxed)
}

#[test]
fn no_order_of_threads_denies_an_answered_change() {
    assert!(!is_denied(Flaw::None, &[World::follow, World::fill]));
}

#[test]
fn no_order_of_threads_believes_a_replica_that_has_left() {
    assert!(!is_denied(Flaw::None, &[World::leave, World::answer_late]));
}

#[test]
fn each_flaw_shows_in_some_order() {
    for flaw in [Flaw::LeaseNeverEnds, Flaw::LeaseFromTheAnswer, Flaw::LooksBeforeItAsks] {
        assert!(is_denied(flaw, &[World::follow]), "{flaw:?} was not found");
    }
    assert!(is_denied(Flaw::FillIgnoresTheCounter, &[World::follow, World::fill]), "the fill was not found");
}
