//! When to look at a file that a program reads while it runs: the shard map, the keys, certificates.
//!
//! The folder is watched and not the file: editors and `mv` put another file in its place, and in a ConfigMap the file is a
//! link through `..data`, which is swapped. An event only says that the file may have changed; its text decides. Some file
//! systems and links send no events, so the file is also looked at every few seconds.

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::AccessKind};
use telemetry::Tasks;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    time::{Instant, timeout},
};

/// How often the file is looked at when no event says so.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// The folder must be quiet for this long before the file is read, so that a writer can finish.
const QUIET: Duration = Duration::from_millis(100);
/// The file is read at the latest this long after the first event, because a folder may never be quiet.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It may have changed.
    IfChanged,
    /// An operator asked for it with SIGHUP.
    Reload,
}

/// Calls `look` whenever the file may have changed and at each SIGHUP, until `tasks` end. `what` names the file in the log.
///
/// # Errors
/// The process cannot receive SIGHUP.
pub fn follow<F>(
    what: &'static str,
    file: Option<&Path>,
    tasks: &Tasks,
    look: impl Fn(Look) -> F + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send,
{
    let mut hangups = signal(SignalKind::hangup())?;
    let touched = Arc::new(Notify::new());
    // The file may have changed between its first reading and the first event.
    touched.notify_one();
    let watcher = file.and_then(|file| watch_folder(what, file, &touched));
    let token = tasks.token().clone();
    let looking = async move {
        loop {
            tokio::select! {
                // Stays pending once no more signals can come.
                Some(()) = hangups.recv() => {
                    tracing::info!(file = what, "SIGHUP: reloading");
                    look(Look::Reload).await;
                }
                () = touched.notified() => {
                    settle(&touched).await;
                    look(Look::IfChanged).await;
                }
                () = tokio::time::sleep(POLL_INTERVAL) => look(Look::IfChanged).await,
            }
        }
    };
    tasks.spawn_essential(what, async move {
        token.run_until_cancelled(looking).await;
        // A watcher that is dropped sends no more events.
        drop(watcher);
    });
    Ok(())
}

fn watch_folder(what: &'static str, file: &Path, touched: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let touched = Arc::clone(touched);
    let on_event = move |event: notify::Result<Event>| {
        // Reading is no change: the router's own look would be the next event. An error may hide a change.
        let read = |event: &Event| matches!(event.kind, EventKind::Access(kind) if !matches!(kind, AccessKind::Close(notify::event::AccessMode::Write)));
        if !event.as_ref().is_ok_and(read) {
            touched.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            let (folder, interval_ms) = (folder.display(), POLL_INTERVAL.as_millis());
            tracing::warn!(file = what, %folder, %error, interval_ms, "cannot watch the folder; looking at intervals only");
        })
        .ok()
}

/// Waits until the folder is quiet, but not longer than [`PATIENCE`].
async fn settle(touched: &Notify) {
    let latest = Instant::now() + PATIENCE;
    while Instant::now() < latest && timeout(QUIET, touched.notified()).await.is_ok() {}
}
