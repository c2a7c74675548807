//! Tests of the worker with a real process. Each `sleep` has a duration that no other process uses, so that the test can find it.

use rustix::process::Signal;
use tempfile::TempDir;

use super::*;
use crate::cluster::supervisor::SupervisorReport;

/// The longest wait for an event that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    _folder: TempDir,
    layout: Layout,
    member: Member,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let member =
            Member::for_tests("sleeper", ProcessRole::Router, "sleep", vec![unique_seconds()], layout.log("sleeper"));
        Self { _folder: folder, layout, member }
    }

    fn worker(&self, policy: RestartPolicy) -> Worker {
        Worker {
            member: self.member.clone(),
            layout: self.layout.clone(),
            shard: None,
            shard_map: self.layout.shard_map(),
            policy,
            reporter: Arc::new(Reporter::new(&self.layout)),
            initialised: false,
            accept_loss: false,
            preparation: Preparation::None,
        }
    }

    fn running(&self) -> Option<Process> {
        self.member.running(&ProcessTable::read().unwrap())
    }

    async fn wait_for_another_than(&self, old: Option<Process>) -> Process {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.running() {
                Some(process) if Some(process) != old => return process,
                _ => assert!(Instant::now() < deadline, "it does not run"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn unique_seconds() -> String {
    let number = u128::from_be_bytes(uuid::Uuid::now_v7().into_bytes()) % 1_000_000_000;
    format!("3600.{number}")
}

#[tokio::test]
async fn what_dies_is_started_again_and_stop_ends_it() {
    let bench = Bench::new();
    let stop = CancellationToken::new();
    let worker = bench.worker(RestartPolicy::Restart);
    let begun = Instant::now();
    let checks = async {
        let first = bench.wait_for_another_than(None).await;
        first.signal(Signal::KILL).unwrap();
        let second = bench.wait_for_another_than(Some(first)).await;
        stop.cancel();
        (second, begun.elapsed())
    };
    let (ended, (second, lived_at_most)) = tokio::join!(worker.run(stop.clone()), checks);
    ended.unwrap();
    assert!(!second.is_alive());
    let report = SupervisorReport::read(&bench.layout).0.remove("sleeper").unwrap();
    assert_eq!(report.deaths, 1);
    // On a busy machine, the process may have lived longer before the test saw and killed it.
    assert!(report.early_deaths == 1 || lived_at_most >= WELL_AFTER);
    assert!(report.last_end.unwrap().contains("SIGKILL"));
}

#[tokio::test]
async fn a_second_node_starts_after_the_first_one_has_prepared_the_database() {
    let bench = Bench::new();
    let (prepared, waiting) = watch::channel(false);
    let stop = CancellationToken::new();
    let worker = Worker { preparation: Preparation::WaitsFor(waiting), ..bench.worker(RestartPolicy::Restart) };
    let checks = async {
        // A worker that does not wait would start its process within this time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(bench.running().is_none(), "it started before the migration ended");
        Preparation::Runs(prepared).is_done();
        bench.wait_for_another_than(None).await;
        stop.cancel();
    };
    tokio::join!(worker.run(stop.clone()), checks).0.unwrap();
}

#[tokio::test]
async fn what_a_killed_supervisor_left_running_is_taken_over() {
    let bench = Bench::new();
    let mut left = bench.member.command().unwrap().spawn().unwrap();
    let orphan = bench.wait_for_another_than(None).await;
    let stop = CancellationToken::new();
    let worker = bench.worker(RestartPolicy::Restart);
    let checks = async {
        // A second process would appear within this time if the worker started one.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(bench.running(), Some(orphan));
        orphan.signal(Signal::KILL).unwrap();
        bench.wait_for_another_than(Some(orphan)).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(worker.run(stop.clone()), checks);
    ended.unwrap();
    assert_eq!(bench.running(), None);
    left.wait().unwrap();
}

#[tokio::test]
async fn what_dies_stays_dead_when_asked_to() {
    let bench = Bench::new();
    let stop = CancellationToken::new();
    let worker = bench.worker(RestartPolicy::LeaveDead);
    let checks = async {
        let first = bench.wait_for_another_than(None).await;
        first.signal(Signal::KILL).unwrap();
        assert!(first.ended_within(PATIENCE).await);
        // Another process would appear within this time if the worker started one.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(bench.running(), None);
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(worker.run(stop.clone()), checks);
    ended.unwrap();
}

#[tokio::test]
async fn a_program_that_is_missing_is_reported_and_tried_again() {
    let bench = Bench::new();
    let mut worker = bench.worker(RestartPolicy::Restart);
    worker.member = Member::for_tests(
        "sleeper",
        ProcessRole::Router,
        "/nonexistent/sleep",
        Vec::new(),
        bench.layout.log("sleeper"),
    );
    let stop = CancellationToken::new();
    let checks = async {
        let deadline = Instant::now() + PATIENCE;
        while SupervisorReport::read(&bench.layout).0.get("sleeper").is_none_or(|report| report.early_deaths < 2) {
            assert!(Instant::now() < deadline, "nothing is reported");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(worker.run(stop.clone()), checks);
    ended.unwrap();
    let report = SupervisorReport::read(&bench.layout).0.remove("sleeper").unwrap();
    assert!(report.last_end.unwrap().starts_with("did not start"));
}
