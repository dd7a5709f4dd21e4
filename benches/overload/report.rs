//! What an overload did, as tables for people and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::phases::{Excess, GivenUp};
use super::watch::Spent;
use super::{BASELINE_SHARE, Overloaded, TIMES};
use crate::goals::Goal;
use crate::open_loop::{Log, Outcome};
use crate::report::{machine, publish_beside};
use crate::revocations::Waits;
use crate::table::{mebibytes, push_goals};

const GOODPUT_AT_LEAST: f64 = 0.8;
const SHED_AT_MOST_MILLIS: f64 = 100.0;
const BACK_AT_MOST_SECONDS: f64 = 5.0;
const REVOKED_AT_LEAST: f64 = 0.99;
const MEMORY_AT_MOST_MEBIBYTES: f64 = 256.0;
const REST_AT_MOST_SECONDS: f64 = 2.0;

/// What the columns mean.
const LEGEND: [&str; 7] = [
    "`peak` is what a closed load of 32 connections is answered; `baseline` is the wait at a quarter of that.",
    "Requests are due at fixed moments, and `from due` counts from these; what no connection was free for, or the load had no \
     time for, within a second is `not sent`.",
    "`from sent` leaves out what the load was late by itself. Where the load used about a whole processor, it was the load that \
     could not keep up: it is made by one thread, on the machine of the service and its database.",
    "`shed` is 503 or 429 with Retry-After; whatever else was not the expected answer is an error.",
    "`back` is when the wait of a quarter of the peak, looked at in pieces of half a second, was no more than twice the \
     baseline's p99.",
    "Revocations (20 a second), and /livez and /readyz (10 a second) were asked for at the same time; the latter on the \
     internal address.",
    "`given up` is the same load from clients that close the connection after 100 ms; `at rest` is when the service and its \
     database had stopped working for them, and `for nobody` how many keys were made whose answer nobody read.",
];

pub(super) fn publish(all: &[Overloaded], postgres: &str, lasted: Duration) -> anyhow::Result<()> {
    let goals: Vec<Goal> = all.iter().flat_map(goals).collect();
    let mut text = String::new();
    let seconds = lasted.as_secs_f64();
    writeln!(text, "{}; {postgres}.", machine())?;
    writeln!(text, "{TIMES} times the peak for {seconds} s.")?;
    push_excesses(&mut text, all)?;
    push_beside(&mut text, all)?;
    writeln!(text)?;
    for line in LEGEND {
        writeln!(text, "- {line}")?;
    }
    push_goals(&mut text, &goals)?;
    let value = json!({
        "machine": machine(),
        "postgres": postgres,
        "seconds": seconds,
        "times_the_peak": TIMES,
        "baseline_share": BASELINE_SHARE,
        "cases": all.iter().map(case).collect::<Vec<_>>(),
        "goals": goals.iter().map(Goal::json).collect::<Vec<_>>(),
    });
    publish_beside("overload", value, &text)
}

fn goals(case: &Overloaded) -> Vec<Goal> {
    let Overloaded { name, excess, given_up, .. } = case;
    let what = |figure: &str| format!("`{name}`: {figure}");
    let mut goals = vec![Goal::at_least(what("goodput / peak"), case.goodput() / case.peak, GOODPUT_AT_LEAST)];
    if let Some(shed) = excess.log.waits(Outcome::Shed) {
        goals.push(Goal::at_most(what("p99 of shed answers, ms"), shed.p99, SHED_AT_MOST_MILLIS));
    }
    let memory = mebibytes(excess.spent.memory);
    goals.extend([
        Goal::at_most(what("seconds until the wait is as usual"), excess.back, BACK_AT_MOST_SECONDS),
        Goal::at_least(what("revocations done"), good_share(&excess.revocations), REVOKED_AT_LEAST),
        Goal::at_most(what("MiB of memory"), memory, MEMORY_AT_MOST_MEBIBYTES),
        Goal::at_most(what("seconds until the service rests"), given_up.rests.service, REST_AT_MOST_SECONDS),
    ]);
    if let Some(rests) = given_up.rests.database {
        goals.push(Goal::at_most(what("seconds until the database rests"), rests, REST_AT_MOST_SECONDS));
    }
    goals
}

impl Overloaded {
    /// Good answers a second under overload.
    fn goodput(&self) -> f64 {
        self.excess.log.goodput(self.excess.lasted)
    }
}

fn is_error(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Status(_) | Outcome::GivenUp | Outcome::Broken)
}

#[expect(clippy::cast_precision_loss, reason = "no run sends 2⁵² requests")]
fn good_share(log: &Log) -> f64 {
    log.count(|outcome| outcome == Outcome::Good) as f64 / log.records.len() as f64
}

fn push_excesses(text: &mut String, all: &[Overloaded]) -> anyhow::Result<()> {
    writeln!(
        text,
        "\n| overload of | peak/s | baseline p50, p99 ms | due/s | good/s | good p50, p99 ms from due | shed | shed p50, p99 ms \
         from due | shed p99 ms from sent | errors | not sent | back s |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for case in all {
        let Excess { log, per_second, back, .. } = &case.excess;
        let count = |outcome| log.count(|other| other == outcome);
        let (shed, unsent, errors) = (count(Outcome::Shed), count(Outcome::Unsent), log.count(is_error));
        let (good_waits, shed_waits) = (shown(log.waits(Outcome::Good)), shown(log.waits(Outcome::Shed)));
        let served = log.served(Outcome::Shed).map_or_else(|| "-".to_owned(), |waits| format!("{:.1}", waits.p99));
        let (name, peak, baseline, goodput) = (case.name, case.peak, shown(Some(case.baseline)), case.goodput());
        let back = seconds(*back);
        writeln!(
            text,
            "| {name} | {peak:.0} | {baseline} | {per_second:.0} | {goodput:.0} | {good_waits} | {shed} | {shed_waits} | \
             {served} | {errors} | {unsent} | {back} |"
        )?;
    }
    for (name, complaint) in all.iter().filter_map(|case| Some((case.name, case.excess.log.complaint.as_ref()?))) {
        writeln!(text, "\nThe first error of `{name}`: {complaint}")?;
    }
    Ok(())
}

fn push_beside(text: &mut String, all: &[Overloaded]) -> anyhow::Result<()> {
    writeln!(
        text,
        "\n| beside | revocations done | p50, p99 ms | health answered | p50, p99 ms | processors: service, database, load | \
         MiB before, most | given up | at rest s: service, database | for nobody |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|")?;
    for case in all {
        let Excess { revocations, health, spent, .. } = &case.excess;
        let Spent { service, database, load, memory_before, memory } = *spent;
        let share = |log: &Log| format!("{:.1} %", good_share(log) * 100.0);
        let (revoked, healthy) = (share(revocations), share(health));
        let (revoked_in, healthy_in) = (shown(revocations.waits(Outcome::Good)), shown(health.waits(Outcome::Good)));
        let database = database.map_or_else(|| "-".to_owned(), |database| format!("{database:.2}"));
        let (before, most) = (mebibytes(memory_before), mebibytes(memory));
        let GivenUp { log, rests, keys_for_nobody } = &case.given_up;
        let given_up = log.count(|outcome| outcome == Outcome::GivenUp);
        let rests = format!("{}, {}", seconds(rests.service), rests.database.map_or_else(|| "-".to_owned(), seconds));
        let for_nobody = keys_for_nobody.map_or_else(|| "-".to_owned(), |keys| keys.to_string());
        let name = case.name;
        writeln!(
            text,
            "| {name} | {revoked} | {revoked_in} | {healthy} | {healthy_in} | {service:.2}, {database}, {load:.2} | \
             {before:.0}, {most:.0} | {given_up} | {rests} | {for_nobody} |"
        )?;
    }
    Ok(())
}

fn shown(waits: Option<Waits>) -> String {
    waits.map_or_else(|| "-".to_owned(), |waits| format!("{:.1}, {:.1}", waits.p50, waits.p99))
}

fn seconds(seconds: f64) -> String {
    if seconds.is_finite() { format!("{seconds:.1}") } else { "never".to_owned() }
}

fn case(case: &Overloaded) -> Value {
    let Overloaded { name, peak, baseline, excess, given_up } = case;
    let Spent { service, database, load, memory_before, memory } = excess.spent;
    json!({
        "name": name,
        "peak_per_second": peak,
        "baseline": baseline.json(),
        "due_per_second": excess.per_second,
        "connections": excess.connections,
        "good_per_second": case.goodput(),
        "answers": log(&excess.log),
        "revocations": log(&excess.revocations),
        "health": log(&excess.health),
        "back_s": excess.back,
        "processors": { "service": service, "database": database, "load": load },
        "memory_bytes": { "before": memory_before, "most": memory },
        "given_up": {
            "answers": log(&given_up.log),
            "service_rests_s": given_up.rests.service,
            "database_rests_s": given_up.rests.database,
            "keys_for_nobody": given_up.keys_for_nobody,
        },
    })
}

fn log(log: &Log) -> Value {
    let count = |outcome| log.count(|other| other == outcome);
    let from_due = |outcome| log.waits(outcome).map(Waits::json);
    let from_sent = |outcome| log.served(outcome).map(Waits::json);
    json!({
        "due": log.records.len(),
        "good": count(Outcome::Good),
        "shed": count(Outcome::Shed),
        "errors": log.count(is_error),
        "given_up": count(Outcome::GivenUp),
        "not_sent": count(Outcome::Unsent),
        "first_error": log.complaint,
        "from_due": { "good": from_due(Outcome::Good), "shed": from_due(Outcome::Shed) },
        "from_sent": { "good": from_sent(Outcome::Good), "shed": from_sent(Outcome::Shed) },
    })
}
