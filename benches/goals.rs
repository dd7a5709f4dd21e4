//! What the figures should be, and whether they are.

use serde_json::{Value, json};

use super::instructions;
use super::measure::{Measured, Sample, Spread};
use super::report::Report;
use super::revocations;
use super::rows::Against;

/// A row beside another: each round's figures against the other's in the same round.
pub(crate) struct Comparison {
    pub(crate) against: &'static Against,
    pub(crate) cpu: Spread,
    pub(crate) database: Option<Spread>,
    pub(crate) rate: Spread,
}

/// All comparisons of a row with others that were measured.
pub(crate) fn comparisons(all: &[Measured], measured: &Measured) -> Vec<Comparison> {
    let others = measured.row.against.iter().filter(|against| against.row != measured.row.name);
    let comparisons = others.filter_map(|against| {
        let other = all.iter().find(|other| other.row.name == against.row)?;
        let ratio = |of: fn(&Sample) -> Option<f64>| {
            let rounds = measured.samples.iter().zip(&other.samples);
            Spread::of(rounds.filter_map(|(own, other)| Some(of(own)? / of(other)?)))
        };
        Some(Comparison {
            against,
            cpu: ratio(|sample| Some(sample.cpu_micros))?,
            database: ratio(|sample| sample.database_micros),
            rate: ratio(|sample| Some(sample.requests_per_second))?,
        })
    });
    comparisons.collect()
}

/// A figure that should be no greater, or no less, than another.
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) figure: f64,
    pub(crate) bound: f64,
    at_least: bool,
}

impl Goal {
    pub(crate) fn at_most(what: String, figure: f64, bound: f64) -> Self {
        Self { what, figure, bound, at_least: false }
    }

    pub(crate) fn at_least(what: String, figure: f64, bound: f64) -> Self {
        Self { what, figure, bound, at_least: true }
    }

    pub(crate) fn is_met(&self) -> bool {
        if self.at_least { self.figure >= self.bound } else { self.figure <= self.bound }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "what": self.what, "figure": self.figure, "bound": self.bound, "met": self.is_met() })
    }

    pub(crate) fn sign(&self) -> char {
        if self.at_least { '≥' } else { '≤' }
    }
}

/// Those of which the report has the figures.
pub(crate) fn of(report: &Report) -> Vec<Goal> {
    let rows = report.measured.iter().flat_map(|measured| {
        let comparisons = comparisons(&report.measured, measured).into_iter();
        comparisons.flat_map(|comparison| of_comparison(measured.row.name, &comparison))
    });
    let stopped = report.revocations.iter().filter(|case| case.stopped > 0).map(|case| {
        let what = format!("slowest revocation with {} of {} replicas stopped, ms", case.stopped, case.replicas);

        Goal::at_most(what, case.one_at_a_time.greatest, revocations::AT_MOST_MILLIS)
    });
    let instructions = report.instructions.map(|count| {
        Goal::at_most("instructions of forward auth, with its access line".to_owned(), count, instructions::AT_MOST)
    });
    rows.chain(stopped).chain(instructions).collect()
}

fn of_comparison(row: &str, comparison: &Comparison) -> Vec<Goal> {
    let Comparison { against, cpu, database, rate } = comparison;
    let what = |figure: &str| format!("{figure} of `{row}` / `{}`", against.row);
    let cpu = against.cpu_at_most.map(|bound| Goal::at_most(what("CPU"), cpu.median, bound));
    let database = against.database_at_most.zip(database.as_ref());
    let database = database.map(|(bound, ratio)| Goal::at_most(what("PostgreSQL's CPU"), ratio.median, bound));
    let rate = against.rate_at_least.map(|bound| Goal::at_least(what("rate"), rate.median, bound));
    [cpu, database, rate].into_iter().flatten().collect()
}
