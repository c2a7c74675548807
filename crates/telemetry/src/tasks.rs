//! Every task of a service is spawned here, so that shutdown can wait for it and a panic is reported, never lost.

use std::{
    any::Any,
    collections::BTreeSet,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of one service and the token that tells them to finish. Cloning gives another handle to the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    failed: Arc<OnceLock<&'static str>>,
    #[cfg(feature = "simulation")]
    process: crate::simulation::Process,
}

/// Tasks that had not finished when the grace period was over. They are left behind; the process is about to exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{remaining} tasks were still running {grace_ms} ms after shutdown began")]
pub struct StillRunning {
    pub remaining: usize,
    pub grace_ms: u128,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` as a task. A panic in it is logged under `name` and counted, and still reaches the task that awaits the handle.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        announce(name);
        self.start(async move {
            match AssertUnwindSafe(future).catch_unwind().await {
                Ok(output) => output,
                Err(panic) => {
                    report_panic(name, &*panic);
                    resume_unwind(panic)
                }
            }
        })
    }

    #[cfg(not(feature = "simulation"))]
    fn start<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(future)
    }

    #[cfg(feature = "simulation")]
    fn start<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        if !crate::simulation::is_running() {
            return self.tracker.spawn(future);
        }
        let task = self.tracker.spawn(self.process.part(future));
        self.process.add(task.abort_handle());
        task
    }

    /// The simulated process that these tasks are.
    #[cfg(feature = "simulation")]
    pub fn process(&self) -> &crate::simulation::Process {
        &self.process
    }

    /// Runs `future` within the caller's task. If the caller is dropped before the end, `future` continues as a task of
    /// this set, so that nothing cuts it off half-way. A panic in it is logged under `name` and counted.
    pub fn run_to_end<F>(&self, name: &'static str, future: F) -> RunToEnd<F>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        announce(name);
        RunToEnd { tasks: self.clone(), name, work: Some(Box::pin(future)) }
    }

    /// Runs a task without which the service is of no use. Should it end before shutdown began, by panic or by
    /// returning, the shutdown begins, and [`Tasks::failed`] names it.
    pub fn spawn_essential<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        announce(name);
        let (token, failed) = (self.token.clone(), Arc::clone(&self.failed));
        self.start(async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            if let Err(panic) = &outcome {
                report_panic(name, &**panic);
            }
            if outcome.is_err() || !token.is_cancelled() {
                tracing::error!(task = name, "an essential task ended: shutting down");
                // Of several failures the first is the cause.
                let _ = failed.set(name);
                token.cancel();
            }
        })
    }

    /// Cancelled when the service is to finish. Tasks without an end of their own watch it.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The essential task whose end brought the service down, where one did: reason for a non-zero exit code.
    pub fn failed(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    /// How many tasks are running.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Cancels the token and waits until every task has ended, for at most `grace`.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), StillRunning> {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait())
            .await
            .map_err(|_| StillRunning { remaining: self.tracker.len(), grace_ms: grace.as_millis() })
    }
}

/// See [`Tasks::run_to_end`].
#[must_use = "it runs while it is awaited"]
pub struct RunToEnd<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tasks: Tasks,
    name: &'static str,
    /// `None` once it has ended.
    work: Option<Pin<Box<F>>>,
}

/// The work panicked, which is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub struct Panicked;

impl<F> Future for RunToEnd<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Ready(Err(Panicked)) };
        let outcome = match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => {
                report_panic(self.name, &*panic);
                Err(Panicked)
            }
        };
        self.work = None;
        Poll::Ready(outcome)
    }
}

impl<F> Drop for RunToEnd<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn drop(&mut self) {
        // Outside a runtime there is nothing that could run it.
        if let Some(work) = self.work.take()
            && Handle::try_current().is_ok()
        {
            self.tasks.spawn(self.name, work);
        }
    }
}

/// The counter of a task's panics exists from the first time that the task is spawned.
fn announce(task: &'static str) {
    static ANNOUNCED: RwLock<BTreeSet<&'static str>> = RwLock::new(BTreeSet::new());
    let is_known = ANNOUNCED.read().unwrap_or_else(PoisonError::into_inner).contains(task);
    if !is_known && ANNOUNCED.write().unwrap_or_else(PoisonError::into_inner).insert(task) {
        metrics::counter!(crate::metrics::TASK_PANICS, "task" => task).absolute(0);
    }
}

fn report_panic(task: &'static str, panic: &(dyn Any + Send)) {
    metrics::counter!(crate::metrics::TASK_PANICS, "task" => task).increment(1);
    tracing::error!(task, panic = panic_message(panic), "task panicked");
}

/// The text of a panic's payload.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(payload is no text)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_the_tasks() {
        let tasks = Tasks::new();
        let token = tasks.token().clone();
        let handle = tasks.spawn("waits", async move {
            token.cancelled().await;
            7
        });
        assert_eq!(tasks.len(), 1);
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Ok(()));
        assert_eq!(handle.await.unwrap(), 7);
        assert_eq!(tasks.failed(), None);
    }

    #[tokio::test]
    async fn shutdown_does_not_wait_for_ever() {
        let tasks = Tasks::new();
        tasks.spawn("never ends", std::future::pending::<()>());
        let late = tasks.shutdown(Duration::from_millis(20)).await;
        assert_eq!(late, Err(StillRunning { remaining: 1, grace_ms: 20 }));
    }

    #[tokio::test]
    async fn a_panic_reaches_whoever_waits_and_ends_nothing_else() {
        let tasks = Tasks::new();
        let handle = tasks.spawn("panics", async { panic!("on purpose") });
        let panic = handle.await.unwrap_err().into_panic();
        assert_eq!(panic_message(&*panic), "on purpose");
        assert!(!tasks.token().is_cancelled());
    }

    #[tokio::test]
    async fn work_runs_in_its_callers_task_and_a_panic_ends_nothing_else() {
        let tasks = Tasks::new();
        assert_eq!(tasks.run_to_end("works", async { 7 }).await, Ok(7));
        assert!(tasks.is_empty());
        assert_eq!(tasks.run_to_end("panics", async { panic!("on purpose") }).await, Err::<(), _>(Panicked));
    }

    #[tokio::test]
    async fn work_outlives_its_caller() {
        let tasks = Tasks::new();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut work = Box::pin(tasks.run_to_end("goes on", async move {
            let _ = wait.await;
            let _ = tell.send(7);
        }));
        assert_eq!(work.as_mut().now_or_never(), None);
        drop(work);
        assert_eq!(tasks.len(), 1);
        go.send(()).unwrap();
        assert_eq!(told.await, Ok(7));
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Ok(()));
    }

    #[tokio::test]
    async fn the_end_of_an_essential_task_is_the_end_of_the_service() {
        let returned = Tasks::new();
        returned.spawn_essential("returns", async {});
        returned.token().cancelled().await;
        assert_eq!(returned.failed(), Some("returns"));

        let panicked = Tasks::new();
        panicked.spawn_essential("panics", async { panic!("on purpose") });
        panicked.token().cancelled().await;
        assert_eq!(panicked.failed(), Some("panics"));
    }

    #[tokio::test]
    async fn an_essential_task_may_end_once_shutdown_began() {
        let tasks = Tasks::new();
        let token = tasks.token().clone();
        tasks.spawn_essential("obeys", async move { token.cancelled().await });
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Ok(()));
        assert_eq!(tasks.failed(), None);
    }
}
