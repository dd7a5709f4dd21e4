//! The contract of limits, on both that count: this process, and Redis by the test's clock.

use std::net::IpAddr;

use chrono::TimeZone;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;

use super::*;
use crate::account::Allowance;

/// Makes of each function two tests: one for each that counts.
macro_rules! on_both_limiters {
    ($($test:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Counter::Process).await;
            })+
        }

        mod in_redis {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Counter::Redis).await;
            })+
        }
    };
}

on_both_limiters!(
    a_burst_of_the_limit_goes_and_the_next_waits_exactly_as_long_as_told,
    a_long_rest_gives_one_burst_and_no_more,
    ten_thousand_refusals_do_not_lengthen_the_wait,
    a_request_refused_by_the_hour_takes_nothing_from_the_minute_or_the_day,
    a_request_refused_by_the_minute_takes_nothing_from_the_hour,
    of_two_windows_that_refuse_the_longer_wait_is_told,
    keys_do_not_share_and_a_new_plan_holds_at_once,
    a_plan_without_windows_never_refuses,
    a_clock_that_is_set_gives_no_second_burst_and_locks_nobody_out,
    a_clock_that_was_years_ahead_for_a_moment_locks_nobody_out,
);

#[derive(Clone, Copy, Debug)]
enum Counter {
    Process,
    Redis,
}

/// A limiter, and the clock that it goes by.
struct World {
    limiter: Arc<Limiter>,
    clock: Clock,
    redis: Option<RedisTime>,
}

/// Redis has the test's time under a name of its own, and a task keeps the link to it.
struct RedisTime {
    connection: MultiplexedConnection,
    name: String,
    link: JoinHandle<()>,
}

impl Drop for RedisTime {
    fn drop(&mut self) {
        self.link.abort();
    }
}

impl Counter {
    async fn world(self, free: Allowance) -> World {
        let plans = plans(free);
        let clock = noon();
        match self {
            Self::Process => World::in_process(&plans, clock),
            Self::Redis => World::in_redis(plans, clock).await,
        }
    }
}

impl World {
    fn in_process(plans: &Plans, clock: Clock) -> Self {
        Self { limiter: Arc::new(Limiter::new(plans, 1_000, None, clock.clone())), clock, redis: None }
    }

    async fn in_redis(plans: Plans, clock: Clock) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of the service")]
        let url = std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is not set; run the tests with tests/run");
        // Nothing waits so long unless something is wrong, and then the test shall say so.
        let settings = RedisSettings { url: url.parse().unwrap(), answer_within: Duration::from_secs(20) };
        let connection = settings.url.client().get_multiplexed_async_connection().await.unwrap();
        let name = format!("test:time:{}", KeyId::new());
        let time = format!("local now = tonumber(redis.call('GET', '{name}'))\n");
        let shared = Shared::with_time(&time, settings, plans, 1_000, clock.clone());
        let local = Local::new(&plans, 1_000, clock.clone());
        let limiter = Arc::new(Limiter { local, shared: Some(shared) });
        let kept = Arc::clone(&limiter);
        let link = tokio::spawn(async move { kept.keep_linked().await });
        let world = Self { limiter, clock, redis: Some(RedisTime { connection, name, link }) };
        world.tell_time().await;
        world.limiter.looked_for_redis().await;
        assert_eq!(world.limiter.counting(), Counting::Together);
        world
    }

    async fn tell_time(&self) {
        if let Some(RedisTime { connection, name, .. }) = &self.redis {
            let now = self.clock.now().timestamp_micros();
            let () = connection.clone().set_ex(name, now, 600).await.unwrap();
        }
    }

    async fn check(&self, key: KeyId) -> Decision {
        self.check_as(key, Plan::Free).await
    }

    async fn check_as(&self, key: KeyId, plan: Plan) -> Decision {
        self.tell_time().await;
        let decision = self.limiter.check(key, plan).await;
        assert_ne!(self.limiter.counting(), Counting::AloneForNow, "Redis was lost");
        decision
    }

    async fn goes(&self, key: KeyId) -> bool {
        matches!(self.check(key).await, Decision::Go(_))
    }

    /// How many of so many requests go.
    async fn count(&self, key: KeyId, requests: usize) -> usize {
        let mut went = 0;
        for _ in 0..requests {
            went += usize::from(self.goes(key).await);
        }
        went
    }

    /// The refusal that there must be.
    async fn wait(&self, key: KeyId) -> (Quota, Duration) {
        let decision = self.check(key).await;
        let Decision::Wait(quota, wait) = decision else { panic!("{decision:?} should have been a refusal") };
        (quota, wait)
    }
}

fn allowance(per_minute: u32, per_hour: u32, per_day: u32) -> Allowance {
    Allowance { per_minute, per_hour, per_day, max_keys: 1 }
}

fn plans(free: Allowance) -> Plans {
    Plans { free, pro: allowance(100, 2_000, 20_000), enterprise: free }
}

/// Half past noon, so that no window ends by chance.
fn noon() -> Clock {
    Clock::held(Utc.with_ymd_and_hms(2024, 1, 15, 12, 30, 0).unwrap())
}

async fn a_burst_of_the_limit_goes_and_the_next_waits_exactly_as_long_as_told(counter: Counter) {
    let world = counter.world(allowance(20, 0, 0)).await;
    let key = KeyId::new();
    for left in (0..20).rev() {
        let Decision::Go(Some(quota)) = world.check(key).await else { panic!("refused with {left} left") };
        assert_eq!((quota.window, quota.limit, quota.remaining), (Window::Minute, 20, left));
        assert_eq!(quota.reset_after, Duration::from_secs((20 - u64::from(left)) * 3));
    }
    let (quota, needed) = world.wait(key).await;
    assert_eq!((quota.window, quota.remaining, needed), (Window::Minute, 0, Duration::from_secs(3)));

    world.clock.advance(needed - Duration::from_millis(1));
    let (_, needed) = world.wait(key).await;
    assert_eq!(needed, Duration::from_millis(1));
    world.clock.advance(needed);
    assert!(world.goes(key).await);
    assert!(!world.goes(key).await);
}

async fn a_long_rest_gives_one_burst_and_no_more(counter: Counter) {
    let world = counter.world(allowance(20, 0, 0)).await;
    let key = KeyId::new();
    assert_eq!(world.count(key, 30).await, 20);
    world.clock.advance(Duration::from_secs(20 * 3_600));
    assert_eq!(world.count(key, 100).await, 20);
}

async fn ten_thousand_refusals_do_not_lengthen_the_wait(counter: Counter) {
    let world = counter.world(allowance(20, 100, 1_000)).await;
    let key = KeyId::new();
    while world.goes(key).await {}
    let first = world.wait(key).await;
    for _ in 0..10_000 {
        assert_eq!(world.wait(key).await, first);
    }
}

async fn a_request_refused_by_the_hour_takes_nothing_from_the_minute_or_the_day(counter: Counter) {
    let world = counter.world(allowance(10, 5, 6)).await;
    let key = KeyId::new();
    assert_eq!(world.count(key, 5).await, 5);
    for _ in 0..50 {
        let (quota, needed) = world.wait(key).await;
        assert_eq!((quota.window, quota.limit, needed), (Window::Hour, 5, Duration::from_secs(1_800)));
    }
    world.clock.advance(Duration::from_secs(1_800));
    let Decision::Go(Some(quota)) = world.check(key).await else { panic!("a new hour") };
    assert_eq!((quota.window, quota.remaining), (Window::Day, 0), "five before, this one, and none of the fifty");
    assert_eq!(world.wait(key).await.0.window, Window::Day);
}

async fn a_request_refused_by_the_minute_takes_nothing_from_the_hour(counter: Counter) {
    let world = counter.world(allowance(2, 4, 0)).await;
    let key = KeyId::new();
    for _ in 0..2 {
        assert_eq!(world.count(key, 100).await, 2);
        world.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(world.wait(key).await.0.window, Window::Hour);
}

async fn of_two_windows_that_refuse_the_longer_wait_is_told(counter: Counter) {
    let world = counter.world(allowance(1, 1, 0)).await;
    let key = KeyId::new();
    world.clock.advance(Duration::from_secs(1_799));
    assert!(world.goes(key).await);
    let (quota, needed) = world.wait(key).await;
    assert_eq!((quota.window, needed), (Window::Minute, Duration::from_secs(60)), "the hour ends in one second");
}

async fn keys_do_not_share_and_a_new_plan_holds_at_once(counter: Counter) {
    let world = counter.world(allowance(3, 0, 0)).await;
    let (one, other) = (KeyId::new(), KeyId::new());
    assert_eq!(world.count(one, 10).await, 3);
    assert!(world.goes(other).await);
    let Decision::Go(Some(quota)) = world.check_as(one, Plan::Pro).await else { panic!("pro has room") };
    assert_eq!((quota.limit, quota.remaining), (100, 99));
}

async fn a_plan_without_windows_never_refuses(counter: Counter) {
    let world = counter.world(allowance(0, 0, 0)).await;
    let key = KeyId::new();
    for _ in 0..1_000 {
        assert_eq!(world.check(key).await, Decision::Go(None));
    }
}

async fn a_clock_that_is_set_gives_no_second_burst_and_locks_nobody_out(counter: Counter) {
    const AN_HOUR: i64 = 3_600_000;
    let world = counter.world(allowance(20, 30, 0)).await;
    let key = KeyId::new();
    assert_eq!(world.count(key, 30).await, 20);
    world.clock.step(-AN_HOUR);
    let mut waited = Duration::ZERO;
    while let Decision::Wait(_, needed) = world.check(key).await {
        world.clock.advance(needed);
        waited += needed;
    }
    assert!((1..=60).contains(&waited.as_secs()), "{waited:?}");
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.count(key, 30).await, 9, "the minute is over, and the hour that was begun still counts");
    assert!(world.wait(key).await.1 <= Duration::from_secs(2 * 3_600));
    world.clock.step(2 * AN_HOUR);
    assert!(world.count(key, 100).await <= 20, "a clock set forward is worth one burst at the most");
}

async fn a_clock_that_was_years_ahead_for_a_moment_locks_nobody_out(counter: Counter) {
    const A_YEAR: i64 = 365 * 86_400_000;
    let world = counter.world(allowance(0, 2, 3)).await;
    let key = KeyId::new();
    world.clock.step(A_YEAR);
    assert_eq!(world.count(key, 5).await, 2);
    world.clock.step(-A_YEAR);
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.count(key, 5).await, 2);
}

#[tokio::test]
async fn redis_holds_no_key_and_nothing_for_ever() {
    let world = Counter::Redis.world(allowance(20, 100, 1_000)).await;
    let mut redis = world.redis.as_ref().unwrap().connection.clone();
    let key = KeyId::new();
    world.check(key).await;
    let name = format!("momail:limits:{key}");
    let mut fields: Vec<String> = redis.hkeys(&name).await.unwrap();
    fields.sort_unstable();
    assert_eq!(fields, ["day", "full_at", "hour", "in_day", "in_hour", "plan"]);
    let until_midnight = 11 * 3_600 + 1_800;
    let ttl: i64 = redis.ttl(&name).await.unwrap();
    assert!((until_midnight - 60..=until_midnight + 2).contains(&ttl), "{ttl}");
    let ttl: i64 = redis.ttl("momail:limits:probe").await.unwrap();
    assert!((0..=62).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn a_key_that_was_refused_is_not_asked_about_before_it_may_go() {
    let world = Counter::Redis.world(allowance(1, 0, 0)).await;
    let mut redis = world.redis.as_ref().unwrap().connection.clone();
    let key = KeyId::new();
    assert!(world.goes(key).await);
    world.wait(key).await;
    // Whoever asked now would be let go.
    let () = redis.del(format!("momail:limits:{key}")).await.unwrap();
    assert_eq!(world.wait(key).await.1, Duration::from_secs(60));
    world.clock.advance(Duration::from_millis(59_999));
    assert_eq!(world.wait(key).await.1, Duration::from_millis(1));
    world.clock.advance(Duration::from_millis(1));
    assert!(world.goes(key).await);
}

#[tokio::test]
async fn an_operator_who_forgives_is_heard_within_a_minute() {
    let world = Counter::Redis.world(allowance(0, 1, 0)).await;
    let mut redis = world.redis.as_ref().unwrap().connection.clone();
    let key = KeyId::new();
    assert!(world.goes(key).await);
    assert_eq!(world.wait(key).await.1, Duration::from_secs(1_800));
    let () = redis.del(format!("momail:limits:{key}")).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    assert!(world.goes(key).await);
}

#[tokio::test]
async fn keys_at_rest_are_forgotten_and_their_number_is_bounded() {
    let world = Counter::Process.world(allowance(20, 100, 1_000)).await;
    for _ in 0..5_000 {
        world.check(KeyId::new()).await;
    }
    assert!(world.limiter.tracked() <= 1_000);
    world.clock.advance(Duration::from_secs(3_600));
    world.limiter.prune();
    assert!(world.limiter.tracked() > 0, "the day still counts");
    world.clock.advance(Duration::from_secs(86_400));
    world.limiter.prune();
    assert_eq!(world.limiter.tracked(), 0);
}

#[test]
fn a_client_that_fails_too_often_waits_wherever_in_its_network_it_moves() {
    let clock = noon();
    let failed = FailedKeys::new(3, &clock);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for host in ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:1"] {
        assert!(failed.record(address(host)).is_ok());
    }
    let (quota, needed) = failed.record(address("2001:db8::3")).unwrap_err();
    assert_eq!((quota.limit, needed), (3, Duration::from_secs(20)));
    assert!(failed.record(address("2001:db8:0:1::1")).is_ok());
    for _ in 0..3 {
        assert!(failed.record(address("::ffff:192.0.2.1")).is_ok());
    }
    assert!(failed.record(address("192.0.2.1")).is_err(), "the same IPv4 address in both spellings");
    clock.advance(Duration::from_secs(60));
    failed.prune();
    assert_eq!(failed.tracked(), 0);
}

/// Whatever the limits and however requests come, both that count say the same, and waiting exactly as long as told, rounded up
/// to seconds, lets the next go.
#[test]
fn both_limiters_agree_and_who_waits_as_told_goes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Limits that divide a minute into whole microseconds, which are what Redis counts in.
    let minutes = prop::sample::select(vec![0, 1, 3, 5, 6, 10, 12, 20, 24, 30, 48]);
    let limits = (minutes, 0u32..60, 0u32..90);
    let pauses = prop::collection::vec(0u64..40_000, 1..100);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&(limits, pauses), |((per_minute, per_hour, per_day), pauses)| {
        runtime.block_on(async {
            let allowed = allowance(per_minute, per_hour, per_day);
            let process = Counter::Process.world(allowed).await;
            let redis = Counter::Redis.world(allowed).await;
            let key = KeyId::new();
            for pause in pauses {
                for world in [&process, &redis] {
                    world.clock.advance(Duration::from_millis(pause));
                }
                let decision = process.check(key).await;
                prop_assert_eq!(decision, redis.check(key).await);
                let Decision::Wait(quota, needed) = decision else { continue };
                prop_assert!(needed <= Duration::from_secs(quota.window.seconds().into()));
                let whole_seconds = needed.as_secs() + u64::from(needed.subsec_nanos() > 0);
                for world in [&process, &redis] {
                    world.clock.advance(Duration::from_secs(whole_seconds));
                }
                prop_assert!(process.goes(key).await && redis.goes(key).await);
            }
            Ok::<(), TestCaseError>(())
        })
    });
    outcome.unwrap();
}
