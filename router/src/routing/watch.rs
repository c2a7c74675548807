//! When to look at the map's file.
//!
//! The folder is watched, not the file: editors and `mv` put another file in its place, and in a ConfigMap the file is a
//! link through `..data`, which is swapped. Events only say "look"; what counts is whether the text is another one. Some
//! file systems and links send no events at all, so the file is looked at every few seconds as well.

use std::{io, path::Path, sync::Arc, time::Duration};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::AccessKind};
use telemetry::Tasks;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::{Instant, timeout},
};

use super::Routing;

/// How often the file is looked at when no event says so.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// The folder must be quiet for this long before the file is read: whoever writes it is given time to finish.
const QUIET: Duration = Duration::from_millis(100);
/// But no later than this after the first event: a folder may never be quiet.
const PATIENCE: Duration = Duration::from_secs(1);

impl Routing {
    /// From now on, changes of the file are taken in by themselves, and SIGHUP reloads it, until `tasks` end.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        let hangups = signal(SignalKind::hangup())?;
        let touched = Arc::new(Notify::new());
        // The file may have changed between its first reading and the first event.
        touched.notify_one();
        let watcher = self.watch_folder(&touched);
        let (routing, token) = (self.clone(), tasks.token().clone());
        tasks.spawn_essential("shard map watch", async move {
            token.run_until_cancelled(routing.follow(hangups, &touched)).await;
            // Held until here: a watcher that is dropped sends no more events.
            drop(watcher);
        });
        Ok(())
    }

    async fn follow(&self, mut hangups: Signal, touched: &Notify) {
        loop {
            tokio::select! {
                // Stays pending for ever once there are no more signals to come.
                Some(()) = hangups.recv() => {
                    tracing::info!("SIGHUP: reloading the shard map");
                    // Reported where it happens.
                    let _ = self.reload().await;
                }
                () = touched.notified() => {
                    settle(touched).await;
                    self.reload_if_changed().await;
                }
                () = tokio::time::sleep(POLL_INTERVAL) => self.reload_if_changed().await,
            }
        }
    }

    fn watch_folder(&self, touched: &Arc<Notify>) -> Option<RecommendedWatcher> {
        let file = self.writer().file.clone()?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let touched = Arc::clone(touched);
        let on_event = move |event: notify::Result<Event>| {
            // Being read is no change: our own looking would wake us for ever. An error may hide a change.
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
                tracing::warn!(%folder, %error, interval_ms, "cannot watch the shard map's folder; looking at intervals only");
            })
            .ok()
    }
}

/// Waits until the folder is quiet, within reason.
async fn settle(touched: &Notify) {
    let latest = Instant::now() + PATIENCE;
    while Instant::now() < latest && timeout(QUIET, touched.notified()).await.is_ok() {}
}
