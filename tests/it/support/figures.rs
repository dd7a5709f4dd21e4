//! What a running service says about itself in figures.

use std::time::{Duration, Instant};

use super::Service;

const PATIENCE: Duration = Duration::from_secs(60);

/// Settings under which no test meets a limit by accident.
pub(super) const UNLIMITED: [(&str, &str); 5] = [
    ("MOMAIL_PLANS__PRO__PER_MINUTE", "0"),
    ("MOMAIL_PLANS__PRO__PER_HOUR", "0"),
    ("MOMAIL_PLANS__PRO__PER_DAY", "0"),
    ("MOMAIL_PLANS__PRO__MAX_KEYS", "1000"),
    ("MOMAIL_AUTH__FAILED_PER_MINUTE", "0"),
];

impl Service {
    /// Starts a replica whose first key, on plan pro, has no limits.
    pub(crate) fn unlimited(settings: &[(&str, &str)]) -> Self {
        Self::start(&[&UNLIMITED, settings].concat())
    }

    /// The sum of a metric over all series whose labels hold each of these texts.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = String::from_utf8(self.get_internal("/metrics").await.bytes).unwrap();
        let series = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        let series = series.filter(|(found, _)| found.is_empty() || found.starts_with('{'));
        let matching = series.filter(|(found, _)| labels.iter().all(|label| found.contains(label)));
        matching.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }

    /// Waits until it believes its memory.
    pub(crate) async fn wait_until_leased(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric("cache_lease_left_millis", &[]).await <= 0.0 {
            assert!(Instant::now() < deadline, "no lease\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a load balancer sends requests to this replica.
    pub(crate) async fn wait_until_it_is_asked(&self) {
        let deadline = Instant::now() + PATIENCE;
        let labels = ["route=\"/v1/api-keys\"", "method=\"GET\"", "status=\"200\""];
        while self.metric("http_requests_total", &labels).await == 0.0 {
            assert!(Instant::now() < deadline, "nobody asks this replica\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
