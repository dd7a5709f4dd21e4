use std::net::IpAddr;

use chrono::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::account::Allowance;

fn allowance(per_minute: u32, per_hour: u32, per_day: u32) -> Allowance {
    Allowance { per_minute, per_hour, per_day, max_keys: 1 }
}

/// Half past noon, so that no window ends by chance.
fn noon() -> Clock {
    Clock::held(Utc.with_ymd_and_hms(2024, 1, 15, 12, 30, 0).unwrap())
}

fn limiter(free: Allowance, clock: &Clock) -> Limiter {
    Limiter::new(&Plans { free, pro: allowance(100, 2_000, 20_000), enterprise: free }, 1_000, clock.clone())
}

fn goes(decision: Decision) -> bool {
    matches!(decision, Decision::Go(_))
}

fn wait(decision: Decision) -> (Quota, Duration) {
    let Decision::Wait(quota, wait) = decision else { panic!("{decision:?} should have been a refusal") };
    (quota, wait)
}

#[test]
fn a_burst_of_the_limit_goes_and_the_next_waits_exactly_as_long_as_told() {
    let clock = noon();
    let limiter = limiter(allowance(20, 0, 0), &clock);
    let key = KeyId::new();
    for left in (0..20).rev() {
        let Decision::Go(Some(quota)) = limiter.check(key, Plan::Free) else { panic!("refused with {left} left") };
        assert_eq!((quota.window, quota.limit, quota.remaining), (Window::Minute, 20, left));
    }
    let (quota, needed) = wait(limiter.check(key, Plan::Free));
    assert_eq!((quota.window, quota.remaining, needed), (Window::Minute, 0, Duration::from_secs(3)));

    clock.advance(needed - Duration::from_millis(1));
    assert!(!goes(limiter.check(key, Plan::Free)), "one millisecond early");
    clock.advance(Duration::from_millis(1));
    assert!(goes(limiter.check(key, Plan::Free)));
    assert!(!goes(limiter.check(key, Plan::Free)));
}

#[test]
fn a_long_rest_gives_one_burst_and_no_more() {
    let clock = noon();
    let limiter = limiter(allowance(20, 0, 0), &clock);
    let key = KeyId::new();
    clock.advance(Duration::from_secs(20 * 3_600));
    let went = (0..100).filter(|_| goes(limiter.check(key, Plan::Free))).count();
    assert_eq!(went, 20);
}

#[test]
fn ten_thousand_refusals_do_not_lengthen_the_wait() {
    let clock = noon();
    let limiter = limiter(allowance(20, 100, 1_000), &clock);
    let key = KeyId::new();
    while goes(limiter.check(key, Plan::Free)) {}
    let first = wait(limiter.check(key, Plan::Free));
    for _ in 0..10_000 {
        assert_eq!(wait(limiter.check(key, Plan::Free)), first);
    }
}

#[test]
fn a_request_refused_by_the_hour_takes_nothing_from_the_minute_or_the_day() {
    let clock = noon();
    let limiter = limiter(allowance(10, 5, 6), &clock);
    let key = KeyId::new();
    for _ in 0..5 {
        assert!(goes(limiter.check(key, Plan::Free)));
    }
    for _ in 0..50 {
        let (quota, needed) = wait(limiter.check(key, Plan::Free));
        assert_eq!((quota.window, quota.limit, needed), (Window::Hour, 5, Duration::from_secs(1_800)));
    }
    clock.advance(Duration::from_secs(1_800));
    let Decision::Go(Some(quota)) = limiter.check(key, Plan::Free) else { panic!("a new hour") };
    assert_eq!((quota.window, quota.remaining), (Window::Day, 0), "five before, this one, and none of the fifty");
    assert_eq!(wait(limiter.check(key, Plan::Free)).0.window, Window::Day);
}

#[test]
fn a_request_refused_by_the_minute_takes_nothing_from_the_hour() {
    let clock = noon();
    let limiter = limiter(allowance(2, 4, 0), &clock);
    let key = KeyId::new();
    let went = |n: usize| (0..n).filter(|_| goes(limiter.check(key, Plan::Free))).count();
    assert_eq!(went(100), 2);
    clock.advance(Duration::from_secs(60));
    assert_eq!(went(100), 2);
    clock.advance(Duration::from_secs(60));
    assert_eq!(wait(limiter.check(key, Plan::Free)).0.window, Window::Hour);
}

#[test]
fn of_two_windows_that_refuse_the_longer_wait_is_told() {
    let clock = noon();
    let limiter = limiter(allowance(1, 1, 0), &clock);
    let key = KeyId::new();
    clock.advance(Duration::from_secs(1_799));
    assert!(goes(limiter.check(key, Plan::Free)));
    let (quota, needed) = wait(limiter.check(key, Plan::Free));
    assert_eq!((quota.window, needed), (Window::Minute, Duration::from_secs(60)), "the hour ends in one second");
}

#[test]
fn keys_do_not_share_and_a_new_plan_holds_at_once() {
    let clock = noon();
    let limiter = limiter(allowance(3, 0, 0), &clock);
    let (one, other) = (KeyId::new(), KeyId::new());
    while goes(limiter.check(one, Plan::Free)) {}
    assert!(goes(limiter.check(other, Plan::Free)));
    let Decision::Go(Some(quota)) = limiter.check(one, Plan::Pro) else { panic!("pro has room") };
    assert_eq!((quota.limit, quota.remaining), (100, 99));
}

#[test]
fn a_plan_without_windows_never_refuses() {
    let limiter = limiter(allowance(0, 0, 0), &noon());
    let key = KeyId::new();
    assert!((0..1_000).all(|_| limiter.check(key, Plan::Free) == Decision::Go(None)));
}

#[test]
fn keys_at_rest_are_forgotten_and_their_number_is_bounded() {
    let clock = noon();
    let limiter = limiter(allowance(20, 100, 1_000), &clock);
    for _ in 0..5_000 {
        limiter.check(KeyId::new(), Plan::Free);
    }
    assert!(limiter.tracked() <= 1_000);
    clock.advance(Duration::from_secs(3_600));
    limiter.prune();
    assert!(limiter.tracked() > 0, "the day still counts");
    clock.advance(Duration::from_secs(86_400));
    limiter.prune();
    assert_eq!(limiter.tracked(), 0);
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the limits and however requests come, waiting exactly as long as told, rounded up to seconds, lets the next go.
    #[test]
    fn who_waits_as_told_goes(
        per_minute in 0u32..50, per_hour in 0u32..60, per_day in 0u32..90,
        pauses in prop::collection::vec(0u64..40_000, 1..200),
    ) {
        let clock = noon();
        let limiter = limiter(allowance(per_minute, per_hour, per_day), &clock);
        let key = KeyId::new();
        for pause in pauses {
            clock.advance(Duration::from_millis(pause));
            if let Decision::Wait(quota, needed) = limiter.check(key, Plan::Free) {
                prop_assert!(needed <= Duration::from_secs(quota.window.seconds().into()));
                let whole_seconds = needed.as_secs() + u64::from(needed.subsec_nanos() > 0);
                clock.advance(Duration::from_secs(whole_seconds));
                prop_assert!(goes(limiter.check(key, Plan::Free)));
            }
        }
    }
}
