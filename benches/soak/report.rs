//! What a long run has shown, as tables for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::trend::{Look, Trend};
use super::{Soaked, churn};
use crate::goals::Goal;
use crate::open_loop::{Log, Outcome, Record, waits};
use crate::report::{machine, publish_beside};
use crate::revocations::Waits;
use crate::table::{mebibytes, push_goals};

/// MiB in ten minutes.
const SLOPE_AT_MOST: f64 = 1.0;
const MORE_DESCRIPTORS_AT_MOST: f64 = 4.0;
const WINDOW_MINUTES: u64 = 5;

/// What the columns mean.
const LEGEND: [&str; 4] = [
    "Memory is resident; its slope is by least squares, in ten minutes, over what follows the first third of the time.",
    "`first` and `last` are medians of six looks, after that third and at the end. `beside connections` is descriptors without \
     connections open to the service and to its database.",
    "`keys come and go`: made, used, renamed, rotated, revoked, ten each second; the secret before and the revoked key are looked \
     at again at once, at another replica, and must be refused.",
    "Each stranger's key is well-formed and nobody's, and comes from one of ten thousand addresses in turn.",
];

pub(super) fn publish(all: &[Soaked], postgres: &str, lasted: Duration, cut_short: Option<&str>) -> anyhow::Result<()> {
    let goals: Vec<Goal> = all.iter().flat_map(goals).collect();
    let mut text = String::new();
    let minutes = lasted.as_secs_f64() / 60.0;
    writeln!(text, "{}; {postgres}.", machine())?;
    writeln!(text, "{minutes:.1} minutes.")?;
    if let Some(reason) = cut_short {
        writeln!(text, "It ended early: {reason}.")?;
    }
    push_trends(&mut text, all)?;
    push_parts(&mut text, all)?;
    push_windows(&mut text, all)?;
    writeln!(text)?;
    for line in LEGEND {
        writeln!(text, "- {line}")?;
    }
    push_goals(&mut text, &goals)?;
    let value = json!({
        "machine": machine(),
        "postgres": postgres,
        "minutes": minutes,
        "cut_short": cut_short,
        "processes": all.iter().flat_map(|soaked| &soaked.trends).map(trend).collect::<Vec<_>>(),
        "deployments": all.iter().map(deployment).collect::<Vec<_>>(),
        "goals": goals.iter().map(Goal::json).collect::<Vec<_>>(),
    });
    publish_beside("soak", value, &text)
}

fn goals(soaked: &Soaked) -> Vec<Goal> {
    let of_process = soaked.trends.iter().filter(|trend| trend.has_slope()).flat_map(|trend| {
        let (first, last) = trend.ends(Look::unexplained);
        let what = |figure: &str| format!("{}: {figure}", trend.name);
        [
            Goal::at_most(what("MiB of memory more in ten minutes"), trend.slope(), SLOPE_AT_MOST),
            Goal::at_most(what("more descriptors, beside connections"), last - first, MORE_DESCRIPTORS_AT_MOST),
        ]
    });
    let unexpected: usize = soaked.lines().map(|line| line.unexpected).sum();
    let what = format!("{}: outcomes that were not expected", soaked.name);
    of_process.chain([Goal::at_most(what, f64::from(u32::try_from(unexpected).unwrap_or(u32::MAX)), 0.0)]).collect()
}

/// A part of the load.
struct Line<'a> {
    name: &'static str,
    log: &'a Log,
    unexpected: usize,
}

impl Soaked {
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let parts =
            self.parts.iter().map(|(part, log)| Line { name: part.name, log, unexpected: part.unexpected(log) });
        let churn = &self.churn;
        parts.chain([Line { name: "keys come and go", log: churn, unexpected: churn::unexpected(churn) }])
    }

    /// The wait of answered requests in each piece of the time.
    fn windows(&self) -> Vec<Waits> {
        let window_of = |record: &Record| record.due / (WINDOW_MINUTES * 60 * 1_000_000);
        let mut windows: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for record in self.lines().flat_map(|line| &line.log.records) {
            if record.outcome == Outcome::Good {
                windows.entry(window_of(record)).or_default().push(record.waited);
            }
        }
        windows.into_values().filter_map(|micros| waits(micros.into_iter())).collect()
    }
}

fn push_trends(text: &mut String, all: &[Soaked]) -> anyhow::Result<()> {
    writeln!(
        text,
        "\n| process | MiB first, last | MiB in 10 min | descriptors first, last | beside connections first, last | threads | \
         connections: clients, database |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for trend in all.iter().flat_map(|soaked| &soaked.trends) {
        let whole = |of| {
            let (first, last) = trend.ends(of);
            format!("{first:.0}, {last:.0}")
        };
        let (before, after) = trend.ends(|look| mebibytes(look.memory));
        let (name, slope) = (&trend.name, trend.slope());
        let (descriptors, beside) = (whole(|look| look.descriptors), whole(Look::unexplained));
        let threads = whole(|look| look.threads);
        let (clients, database) =
            (trend.ends(|look| look.http_connections).1, trend.ends(|look| look.database_connections).1);
        writeln!(
            text,
            "| {name} | {before:.1}, {after:.1} | {slope:.2} | {descriptors} | {beside} | {threads} | {clients:.0}, {database:.0} |"
        )?;
    }
    Ok(())
}

fn push_parts(text: &mut String, all: &[Soaked]) -> anyhow::Result<()> {
    writeln!(text, "\n| load | requests | not as expected | outcomes | p50, p99, max ms |\n|---|---|---|---|---|")?;
    for soaked in all {
        for Line { name, log, unexpected } in soaked.lines() {
            let outcomes = outcomes(log).into_iter().map(|(outcome, count)| format!("{outcome}: {count}"));
            let outcomes = outcomes.collect::<Vec<_>>().join(", ");
            let (deployment, count, waits) = (soaked.name, log.records.len(), shown(log.waits(Outcome::Good)));
            writeln!(text, "| {deployment}: {name} | {count} | {unexpected} | {outcomes} | {waits} |")?;
        }
    }
    for soaked in all {
        for (name, complaint) in soaked.lines().filter_map(|line| Some((line.name, line.log.complaint.as_ref()?))) {
            writeln!(text, "\nThe first surprise of {}, {name}: {complaint}", soaked.name)?;
        }
    }
    Ok(())
}

fn push_windows(text: &mut String, all: &[Soaked]) -> anyhow::Result<()> {
    writeln!(text, "\n| all that was answered | p99 ms in each {WINDOW_MINUTES} minutes |\n|---|---|")?;
    for soaked in all {
        let windows: Vec<_> = soaked.windows().iter().map(|waits| format!("{:.1}", waits.p99)).collect();
        writeln!(text, "| {} | {} |", soaked.name, windows.join(", "))?;
    }
    Ok(())
}

fn outcomes(log: &Log) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for record in &log.records {
        *outcomes.entry(named(record.outcome)).or_default() += 1;
    }
    outcomes
}

fn named(outcome: Outcome) -> String {
    match outcome {
        Outcome::Good => "as expected".to_owned(),
        Outcome::Shed => "shed".to_owned(),
        Outcome::Status(status) => status.to_string(),
        Outcome::GivenUp => "given up".to_owned(),
        Outcome::Broken => "broken".to_owned(),
        Outcome::Unsent => "not sent".to_owned(),
    }
}

fn shown(waits: Option<Waits>) -> String {
    waits.map_or_else(|| "-".to_owned(), |waits| format!("{:.1}, {:.1}, {:.1}", waits.p50, waits.p99, waits.greatest))
}

fn trend(trend: &Trend) -> Value {
    let looks = trend.looks.iter().map(|look| {
        json!({
            "s": look.seconds,
            "memory_bytes": look.memory,
            "descriptors": look.descriptors,
            "threads": look.threads,
            "http_connections": look.http_connections,
            "database_connections": look.database_connections,
        })
    });
    json!({ "name": trend.name, "mib_in_10_min": trend.slope(), "looks": looks.collect::<Vec<_>>() })
}

fn deployment(soaked: &Soaked) -> Value {
    let parts = soaked.lines().map(|Line { name, log, unexpected }| {
        json!({
            "name": name,
            "requests": log.records.len(),
            "unexpected": unexpected,
            "outcomes": outcomes(log),
            "first_surprise": log.complaint,
            "answered": log.waits(Outcome::Good).map(Waits::json),
        })
    });
    let windows: Vec<_> = soaked.windows().into_iter().map(Waits::json).collect();
    json!({
        "name": soaked.name,
        "parts": parts.collect::<Vec<_>>(),
        "window_minutes": WINDOW_MINUTES,
        "windows": windows,
    })
}
