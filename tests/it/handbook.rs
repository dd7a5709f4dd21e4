//! What the README says of settings and metrics is so.

use axum::http::Method;

use crate::support::{Service, request};

const README: &str = include_str!("../../README.md");
const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table below a heading, as cells.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let section = README.split_once(heading).unwrap_or_else(|| panic!("no {heading}")).1;
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2).map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn every_setting_that_is_named_is_one() {
    let defaults: toml::Table = DEFAULTS.parse().unwrap();
    let prose = README.split("```").step_by(2).collect::<String>();
    let mut named = 0;
    for name in quoted(&prose) {
        let Some((section, setting)) = name.split_once('.') else { continue };
        let Some(section) = defaults.get(section).and_then(toml::Value::as_table) else { continue };
        let setting = setting.split(' ').next().unwrap_or_default();
        let found = setting
            .split('.')
            .try_fold(section, |table, part| table.get(part).map(|value| value.as_table().unwrap_or(table)));
        assert!(found.is_some(), "there is no setting {name}");
        named += 1;
    }
    assert!(named > 20, "{named}");
}

#[tokio::test]
async fn every_metric_that_tells_of_a_failure_is_one() {
    let service = Service::start(&[]);
    service.wait_until_ready_is(200).await;
    service.send(request(Method::GET, "/v1/api-keys", "none")).await;
    let metrics = String::from_utf8(service.get_internal("/metrics").await.bytes).unwrap();
    let rows = table("### When something fails");
    let is_a_name = |text: &&str| text.contains('_') && text.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    let names: Vec<_> = rows.iter().flat_map(|row| quoted(row[2]).filter(is_a_name)).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        let begins = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{', '_']));
        assert!(metrics.lines().any(begins), "there is no metric {name}");
    }
}
