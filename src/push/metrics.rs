//! What is counted of pushes, in Prometheus' terms.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Seconds; from what takes no time to what takes an hour.
const BUCKETS: [f64; 12] = [0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// The counters. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pushes: Family<ByResult, Counter>,
    builds: Family<ByPlatform, Counter>,
    stages: Family<ByStage, Histogram>,
    steps: Family<ByCache, Counter>,
    running: Gauge,
    waiting: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPlatform {
    platform: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCache {
    cache: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hephy");
        let pushes = Family::<ByResult, Counter>::default();
        registry.register("pushes", "Builds that ended, by how", pushes.clone());
        let builds = Family::<ByPlatform, Counter>::default();
        registry.register("platform_builds", "Builds of one platform that ended, by how", builds.clone());
        let stages = Family::<ByStage, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        registry.register_with_unit(
            "stage_duration",
            "How long the stages of a push took",
            Unit::Seconds,
            stages.clone(),
        );
        let steps = Family::<ByCache, Counter>::default();
        registry.register("steps", "Steps of builds, by whether they were found in the cache", steps.clone());
        let (running, waiting): (Gauge, Gauge) = (Gauge::default(), Gauge::default());
        registry.register("builds_running", "Builds that this server drives", running.clone());
        registry.register("builds_waiting", "Builds that wait for their turn", waiting.clone());
        Self { registry: Arc::new(registry), pushes, builds, stages, steps, running, waiting }
    }
}

impl Metrics {
    /// The counters as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let written = encode(&mut text, &self.registry);
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        text
    }

    pub(super) fn push_ended(&self, result: &'static str) {
        self.pushes.get_or_create(&ByResult { result }).inc();
    }

    pub(super) fn platform_ended(&self, platform: &crate::oci::Platform, result: &'static str) {
        self.builds.get_or_create(&ByPlatform { platform: platform.to_string(), result }).inc();
    }

    pub(super) fn stage_took(&self, stage: &'static str, time: Duration) {
        self.stages.get_or_create(&ByStage { stage }).observe(time.as_secs_f64());
    }

    pub(super) fn steps(&self, cached: u64, run: u64) {
        self.steps.get_or_create(&ByCache { cache: "hit" }).inc_by(cached);
        self.steps.get_or_create(&ByCache { cache: "miss" }).inc_by(run);
    }

    /// Counts a build as driven until the value is dropped.
    pub(super) fn running(&self) -> impl Drop + use<> {
        self.running.inc();
        Guard(self.running.clone())
    }

    /// Counts a build as waiting until the value is dropped.
    pub(super) fn waiting(&self) -> impl Drop + use<> {
        self.waiting.inc();
        Guard(self.waiting.clone())
    }
}

struct Guard(Gauge);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown_as_openmetrics() {
        let metrics = Metrics::default();
        metrics.push_ended("succeeded");
        metrics.platform_ended(&"linux/arm64".parse().unwrap(), "failed");
        metrics.stage_took("build", Duration::from_secs(3));
        metrics.steps(2, 1);
        let running = metrics.running();
        let text = metrics.encode();
        for line in [
            "hephy_pushes_total{result=\"succeeded\"} 1",
            "hephy_platform_builds_total{platform=\"linux/arm64\",result=\"failed\"} 1",
            "hephy_stage_duration_seconds_count{stage=\"build\"} 1",
            "hephy_steps_total{cache=\"hit\"} 2",
            "hephy_builds_running 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        drop(running);
        assert!(metrics.encode().contains("hephy_builds_running 0"));
    }
}
