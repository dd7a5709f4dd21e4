//! Samples of time, and whether two sets of them differ.

use std::time::Duration;

/// The middle one.
pub(crate) fn median(samples: &[Duration]) -> Duration {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// How many standard deviations the Mann-Whitney figure is away from what two sets of one distribution yield: beyond 4 it is no
/// chance. Above 0 the first set is the slower one.
pub(crate) fn mann_whitney(one: &[Duration], other: &[Duration]) -> f64 {
    let mut all: Vec<_> = one.iter().map(|time| (*time, true)).chain(other.iter().map(|time| (*time, false))).collect();
    all.sort_unstable();
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|one, other| one.0 == other.0) {
        let count = number(equal.len());
        // All of them have the mean of their ranks.
        let rank = before + f64::midpoint(1.0, count);
        rank_sum += rank * number(equal.iter().filter(|(_, is_of_first)| *is_of_first).count());
        ties += count.powi(3) - count;
        before += count;
    }
    let (first, second) = (number(one.len()), number(other.len()));
    let figure = rank_sum - first * (first + 1.0) / 2.0;
    let deviation = (first * second / 12.0 * (before + 1.0 - ties / (before * (before - 1.0)))).sqrt();
    (figure - first * second / 2.0) / deviation
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

#[test]
fn two_sets_that_differ_are_told_from_two_that_do_not() {
    let times = |from: u64| (0..1_000).map(|n| Duration::from_nanos(from + n * 7 % 1_000)).collect::<Vec<_>>();
    assert_eq!(median(&times(5)).as_nanos(), 505);
    assert!(mann_whitney(&times(0), &times(0)).abs() < 1e-9);
    assert!(mann_whitney(&times(3), &times(0)).abs() < 1.0);
    assert!(mann_whitney(&times(200), &times(0)) > 10.0);
    assert!(mann_whitney(&times(0), &times(200)) < -10.0);
    // By hand: of the six pairs the first is the greater in one and equal in one.
    let few =
        [[2, 3].as_slice(), &[3, 4, 1]].map(|set| set.iter().map(|n| Duration::from_secs(*n)).collect::<Vec<_>>());
    let expected: f64 = (2.5 - 3.0) / (0.5 * (6.0 - 6.0 / 20.0_f64)).sqrt();
    assert!((mann_whitney(&few[0], &few[1]) - expected).abs() < 1e-9);
}
