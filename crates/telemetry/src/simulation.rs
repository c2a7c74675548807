//! What a simulation replaces in the processes that it runs in one thread: the machine's clock, and the signals that end,
//! stop and continue a process.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use tokio::{task::AbortHandle, time::Instant};

thread_local! {
    /// An instant of the runtime, and the wall clock at that instant.
    static BEGUN: Cell<Option<(Instant, i64)>> = const { Cell::new(None) };
}

/// From now on, this thread's wall clock shows `start_us` plus the time that has passed in the thread's runtime.
/// Call it within a runtime whose time is paused.
pub fn begin(start_us: i64) {
    BEGUN.set(Some((Instant::now(), start_us)));
}

/// This thread's wall clock is the machine's again.
pub fn end() {
    BEGUN.set(None);
}

/// Whether a simulation runs in this thread.
pub fn is_running() -> bool {
    BEGUN.get().is_some()
}

/// Microseconds since 1970, if a simulation runs in this thread.
pub fn now_us() -> Option<i64> {
    let (begun, start_us) = BEGUN.get()?;
    Some(start_us + i64::try_from(begun.elapsed().as_micros()).unwrap_or(i64::MAX))
}

/// The tasks of one simulated process.
#[derive(Debug, Clone, Default)]
pub struct Process(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_frozen: AtomicBool,
    /// Tasks that were woken while the process was frozen.
    woken: Mutex<Vec<Waker>>,
    running: Mutex<Vec<AbortHandle>>,
}

/// Tasks that may end before the list of running tasks is cleaned.
const CLEAN_FROM: usize = 64;

impl Process {
    /// Ends every task where it stands.
    pub fn kill(&self) {
        lock(&self.0.running).drain(..).for_each(|task| task.abort());
    }

    /// Runs no task until [`Process::thaw`]. Time goes on meanwhile.
    pub fn freeze(&self) {
        self.0.is_frozen.store(true, Relaxed);
    }

    pub fn thaw(&self) {
        self.0.is_frozen.store(false, Relaxed);
        lock(&self.0.woken).drain(..).for_each(Waker::wake);
    }

    pub(crate) fn add(&self, task: AbortHandle) {
        let mut running = lock(&self.0.running);
        if running.len() >= CLEAN_FROM && running.len().is_power_of_two() {
            running.retain(|task| !task.is_finished());
        }
        running.push(task);
    }

    /// `future`, as a part of this process.
    pub(crate) fn part<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let process = self.clone();
        async move {
            let mut future = pin!(future);
            poll_fn(|context| if process.is_frozen(context) { Poll::Pending } else { future.as_mut().poll(context) })
                .await
        }
    }

    fn is_frozen(&self, context: &Context<'_>) -> bool {
        let is_frozen = self.0.is_frozen.load(Relaxed);
        if is_frozen {
            lock(&self.0.woken).push(context.waker().clone());
        }
        is_frozen
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
