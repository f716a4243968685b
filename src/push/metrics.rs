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

use crate::build::{BuildFailure, QueueGauges};
use crate::model::{Fault, Outcome, PlatformImage};
use crate::traces::Counts;

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
        Self::with(&QueueGauges::default(), &Counts::default())
    }
}

/// How a push ended, in a word.
pub(super) const fn result_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed { fault: Fault::App, .. } => "failed",
        Outcome::Failed { fault: Fault::Platform, .. } => "platform_failed",
        Outcome::Cancelled { .. } => "cancelled",
    }
}

/// How the build of a platform ended, in a word.
pub(super) const fn result_of_platform(built: &Result<PlatformImage, BuildFailure>) -> &'static str {
    match built {
        Ok(_) => "succeeded",
        Err(BuildFailure::App(_)) => "failed",
        Err(BuildFailure::Platform(_)) => "platform_failed",
        Err(BuildFailure::Cancelled) => "cancelled",
        Err(BuildFailure::TimedOut { .. }) => "timed_out",
    }
}

impl Metrics {
    /// Counters, beside what a driver and the sender of traces count.
    #[must_use]
    pub fn with(queue: &QueueGauges, spans: &Counts) -> Self {
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
        registry.register(
            "platform_builds_waiting",
            "Builds of one platform that wait for a place among those of its architecture",
            queue.waiting.clone(),
        );
        registry.register(
            "platform_builds_running",
            "Builds of one platform that have a place among those of their architecture",
            queue.running.clone(),
        );
        registry.register("trace_spans_sent", "Spans that a collector has", spans.sent.clone());
        registry.register("trace_spans_dropped", "Spans that could not be sent", spans.dropped.clone());
        Self { registry: Arc::new(registry), pushes, builds, stages, steps, running, waiting }
    }

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

    #[test]
    fn what_a_driver_has_to_do_and_what_became_of_spans_is_shown_beside_it() {
        let (queue, spans) = (QueueGauges::default(), Counts::default());
        let metrics = Metrics::with(&queue, &spans);
        let arm64 = "linux/arm64".parse().unwrap();
        let waiting = [queue.waits(&arm64), queue.waits(&arm64)];
        let running = queue.runs(&arm64);
        spans.dropped.inc_by(3);
        let has = |lines: &[&str]| {
            let text = metrics.encode();
            for line in lines {
                assert!(text.lines().any(|found| found == *line), "{line} is not in {text}");
            }
        };
        has(&[
            "hephy_platform_builds_waiting{platform=\"linux/arm64\"} 2",
            "hephy_platform_builds_running{platform=\"linux/arm64\"} 1",
            "hephy_trace_spans_dropped_total 3",
            "hephy_trace_spans_sent_total 0",
        ]);
        drop((waiting, running));
        has(&[
            "hephy_platform_builds_waiting{platform=\"linux/arm64\"} 0",
            "hephy_platform_builds_running{platform=\"linux/arm64\"} 0",
        ]);
    }
}
