//! The metrics recorder. Names are `shardledger_<noun>_<unit>`, in base units; the unit decides a histogram's buckets.
//!
//! A series exists from the start, with the value 0, for every value of its labels that is known: an alert on the rate of a counter
//! would otherwise miss its first event. Labels are bounded: never an id, a name or a path that a client chose.
//! `docs/operations/metrics.md` lists every metric; a test compares it with what the services serve.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{admin::BuildInfo, tasks::Tasks};

/// Counter, label `task`: panics in tracked tasks.
pub const TASK_PANICS: &str = "shardledger_task_panics_total";
/// Gauge, always 1, labels `service`, `version`, `commit`.
pub const BUILD_INFO: &str = "shardledger_build_info";

/// Buckets of histograms whose name ends in `_seconds`: 50 µs to 30 s.
pub const SECONDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
/// Buckets of histograms whose name ends in `_bytes`: 256 B to 64 MiB.
pub const BYTES: [f64; 10] =
    [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];
/// Buckets of every other histogram, all of which count something (`_operations`, `_attempts`): 1 to 16384.
pub const COUNTS: [f64; 15] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0];

/// How often histograms are folded. Without it, samples would pile up in memory until the next scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The metrics of the process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    recorder: PrometheusHandle,
    process: metrics_process::Collector,
    observers: Arc<Mutex<Vec<Observer>>>,
}

/// Sets gauges to what is so now.
type Observer = Arc<dyn Fn() + Send + Sync>;

/// Installs the recorder for the whole process and keeps it folded for as long as `tasks` runs. Every series has the labels `common`.
///
/// # Errors
/// A recorder is installed already.
pub fn install(build: &BuildInfo, common: &[(&'static str, &str)], tasks: &Tasks) -> Result<Metrics, BuildError> {
    let builder = common.iter().fold(builder()?, |builder, (name, value)| builder.add_global_label(*name, *value));
    let recorder = builder.install_recorder()?;
    describe_counter!(TASK_PANICS, "Panics in tracked tasks.");
    describe_gauge!(BUILD_INFO, "Always 1; the labels say what runs.");
    gauge!(BUILD_INFO, "service" => build.service, "version" => build.version, "commit" => build.commit).set(1.0);
    crate::traces::describe();
    let process = metrics_process::Collector::default();
    process.describe();

    let (upkept, token) = (recorder.clone(), tasks.token().clone());
    tasks.spawn("metrics upkeep", async move {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        while token.run_until_cancelled(ticks.tick()).await.is_some() {
            upkept.run_upkeep();
        }
    });
    Ok(Metrics { recorder, process, observers: Arc::default() })
}

impl Metrics {
    /// Calls `observe` before each rendering. A gauge of a state that changes with time alone, or in several places, is right only if it is set
    /// when it is read. `observe` must return at once.
    pub fn observe(&self, observe: impl Fn() + Send + Sync + 'static) {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(observe));
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        // A copy, so that an observer runs without the lock.
        let observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        observers.iter().for_each(|observe| observe());
        self.process.collect();
        self.recorder.render()
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_in_the_name_decides_the_buckets() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("shardledger_commit_seconds").record(0.000_07);
            metrics::histogram!("shardledger_batch_operations").record(3.0);
            metrics::histogram!("shardledger_body_bytes").record(300.0);
        });
        let text = handle.render();
        assert!(text.contains(r#"shardledger_commit_seconds_bucket{le="0.0001"} 1"#), "{text}");
        assert!(text.contains(r#"shardledger_commit_seconds_bucket{le="0.00005"} 0"#), "{text}");
        assert!(text.contains(r#"shardledger_batch_operations_bucket{le="4"} 1"#), "{text}");
        assert!(text.contains(r#"shardledger_body_bytes_bucket{le="1024"} 1"#), "{text}");
    }
}
