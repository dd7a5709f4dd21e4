//! The results as tables for people.

use std::fmt::Write as _;

use anyhow::Context;

use super::goals::Goal;
use super::load::CONNECTIONS;
use super::measure::{Measured, Sample, Spread};
use super::memory::Growth;
use super::report::{Report, machine};
use super::revocations::{Revocations, Waits};
use super::start::Starts;
use super::{Plan, goals, rows};

pub(crate) fn of(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    let Plan { rounds, keys, measured, .. } = report.plan;
    let seconds = measured.as_secs_f64();
    writeln!(text, "{}; {}.", machine(), report.postgres)?;
    writeln!(text, "{rounds} rounds of {seconds} s, {CONNECTIONS} connections, {keys} keys in PostgreSQL.")?;
    push_rows(&mut text, &report.measured)?;
    push_revocations(&mut text, &report.revocations)?;
    push_starts(&mut text, &report.starts)?;
    if let Some(growth) = &report.growth {
        push_growth(&mut text, growth)?;
    }
    if let Some(instructions) = report.instructions {
        writeln!(text, "\nForward auth in process, with its access line: {instructions:.0} instructions.")?;
    }
    push_goals(&mut text, &goals::of(report))?;
    Ok(text)
}

fn push_rows(text: &mut String, all: &[Measured]) -> anyhow::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n| row | CPU us a request | compared | PostgreSQL CPU us | requests/s | p50 ms | p99 ms | MiB |")?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    for measured in all {
        let column = |of: fn(&Sample) -> Option<f64>| {
            Spread::of(measured.samples.iter().filter_map(of)).map_or_else(|| "-".to_owned(), |spread| shown(&spread))
        };
        let ratios = goals::comparisons(all, measured).into_iter();
        let ratios = ratios.map(|comparison| format!("{:.2} x `{}`", comparison.cpu.median, comparison.against.row));
        let ratios = ratios.collect::<Vec<_>>().join("; ");
        let cpu = column(|sample| Some(sample.cpu_micros));
        let database = column(|sample| sample.database_micros);
        let rate = column(|sample| Some(sample.requests_per_second));
        let waits = Spread::of(measured.samples.iter().map(|sample| sample.p50_millis))
            .zip(Spread::of(measured.samples.iter().map(|sample| sample.p99_millis)));
        let (p50, p99) = waits.context("a row was never measured")?;
        let memory = measured.samples.iter().map(|sample| sample.memory).max().unwrap_or_default();
        let (name, p50, p99, memory) = (measured.row.name, p50.median, p99.median, mebibytes(memory));
        writeln!(text, "| {name} | {cpu} | {ratios} | {database} | {rate} | {p50:.2} | {p99:.2} | {memory:.0} |")?;
    }
    writeln!(text)?;
    for line in rows::LEGEND {
        writeln!(text, "- {line}")?;
    }
    Ok(())
}

fn push_revocations(text: &mut String, cases: &[Revocations]) -> anyhow::Result<()> {
    if cases.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n| revocations with | one at a time: p50, p99, max ms | {CONNECTIONS} at once: p50, p99, max ms | a second |"
    )?;
    writeln!(text, "|---|---|---|---|")?;
    for case in cases {
        let waits = |waits: &Waits| format!("{:.1}, {:.1}, {:.1}", waits.p50, waits.p99, waits.greatest);
        let (one, many) = (waits(&case.one_at_a_time), waits(&case.many_at_once));
        let stopped = if case.stopped > 0 { format!(", {} of them stopped", case.stopped) } else { String::new() };
        let plural = if case.replicas == 1 { "" } else { "s" };
        let (replicas, rate) = (case.replicas, case.per_second);
        writeln!(text, "| {replicas} replica{plural}{stopped} | {one} | {many} | {rate:.0} |")?;
    }
    Ok(())
}

fn push_starts(text: &mut String, all: &[Starts]) -> anyhow::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n| start on | ms to /livez | ms to /readyz | idle memory MiB |\n|---|---|---|---|")?;
    for starts in all {
        let column = |values: &[f64]| Spread::of(values.iter().copied()).map(|spread| shown(&spread));
        let columns = column(&starts.live_millis).zip(column(&starts.ready_millis));
        let (live, ready) = columns.context("nothing was started")?;
        writeln!(text, "| {} | {live} | {ready} | {:.1} |", starts.name, mebibytes(starts.idle_memory))?;
    }
    Ok(())
}

fn push_growth(text: &mut String, growth: &Growth) -> anyhow::Result<()> {
    let Growth { keys, before, after } = growth;
    let (before, after, each) = (mebibytes(*before), mebibytes(*after), growth.bytes_per_key());
    writeln!(
        text,
        "\nMemory after {keys} keys were looked up: {after:.1} MiB, before: {before:.1} MiB, which is {each:.0} bytes a key."
    )?;
    Ok(())
}

pub(crate) fn push_goals(text: &mut String, goals: &[Goal]) -> anyhow::Result<()> {
    if goals.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n| goal | figure | bound | met |\n|---|---|---|---|")?;
    for goal in goals {
        let digits = if goal.bound < 100.0 { 2 } else { 0 };
        let met = if goal.is_met() { "yes" } else { "no" };
        let (what, figure, sign, bound) = (&goal.what, goal.figure, goal.sign(), goal.bound);
        writeln!(text, "| {what} | {figure:.digits$} | {sign} {bound} | {met} |")?;
    }
    Ok(())
}

/// Median (least-greatest).
fn shown(spread: &Spread) -> String {
    let digits = usize::from(spread.median < 100.0);
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
}

#[expect(clippy::cast_precision_loss, reason = "no memory holds 2⁵² bytes")]
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
