//! The durable steps of a move, and a way for tests to stop the node before and after each of them.
//!
//! A node that was built without optimisation and started with `SHARDLEDGER_FAILPOINTS` in its environment writes the list of steps to
//! that folder. It stops at a point if the folder has a file with the point's name: it renames the file to `<point>.reached`, and goes
//! on when that file is gone. Meanwhile, the test kills the node or another process. Other builds do not look.

use std::{path::PathBuf, sync::LazyLock, time::Duration};

/// The environment variable with the path of the folder.
const VARIABLE: &str = "SHARDLEDGER_FAILPOINTS";
const LOOK: Duration = Duration::from_millis(5);

/// The scenario in which a node reaches a step: a move, an abort, or a reversal.
const MOVE: &str = "move";
const ABORT: &str = "abort";
const REVERSE: &str = "reverse";

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident $name:literal $scenario:ident,)*) => {
        /// One durable write of a move.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum DurableStep {
            $($(#[$doc])* $step,)*
        }

        impl DurableStep {
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)*
                }
            }
        }

        /// Name and scenario of each step.
        const STEPS: &[(&str, &str)] = &[$(($name, $scenario),)*];
    };
}

steps! {
    /// Target: the row of the move, which is the clean-up record.
    Start "start" MOVE,
    /// Source: the row of the move, or a higher driver epoch.
    Join "join" MOVE,
    /// Target: the slots are incoming.
    Announce "announce" MOVE,
    /// Target: a higher driver epoch.
    Claim "claim" MOVE,
    /// Target: a page of bookings.
    CopyBookings "copy_bookings" MOVE,
    /// Target: a page of rows of accounts.
    CopyAccounts "copy_accounts" MOVE,
    /// Target: the small tables.
    CopySmallTables "copy_small_tables" MOVE,
    /// Target: the sums over what has come.
    SumUp "sum_up" MOVE,
    /// Target: a page of bookings with its effect on other rows.
    FollowBookings "follow_bookings" MOVE,
    /// Source: the slots are given away.
    Release "release" MOVE,
    /// Target: the slots are owned.
    Take "take" MOVE,
    /// Target: how long the pause was.
    RecordPause "record_pause" MOVE,
    /// Target: the new map.
    PublishMap "publish_map" MOVE,
    /// Target: the version of the new map.
    RecordMap "record_map" MOVE,
    /// Source: rows of accounts, holds and sagas are deleted.
    CleanUpRows "clean_up_rows" MOVE,
    /// Source: a page of bookings is deleted.
    CleanUpBookings "clean_up_bookings" MOVE,
    /// Target: the move is finished.
    Finish "finish" MOVE,
    /// Source: the move is given up.
    Leave "leave" ABORT,
    /// Target: the move is being given up.
    Abort "abort" ABORT,
    /// Target: copied rows of accounts, holds and sagas are deleted.
    DiscardRows "discard_rows" ABORT,
    /// Target: a page of copied bookings is deleted.
    DiscardBookings "discard_bookings" ABORT,
    /// Target: the move is given up.
    EndAbort "end_abort" ABORT,
    /// Target of a reversal: only what was appended has to come.
    SkipCopy "skip_copy" REVERSE,
}

/// The folder, with the list of steps written to it.
static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    if !cfg!(debug_assertions) {
        return None;
    }
    let folder = PathBuf::from(std::env::var_os(VARIABLE)?);
    let list: String = STEPS.iter().map(|(name, scenario)| format!("{name} {scenario}\n")).collect();
    match std::fs::write(folder.join("steps"), list) {
        Ok(()) => Some(folder),
        Err(error) => {
            tracing::error!(%error, folder = %folder.display(), "the list of durable steps cannot be written");
            None
        }
    }
});

/// Makes a durable write, with a point before it and one after it.
///
/// # Errors
/// Those of the write.
pub async fn durable<T, E>(step: DurableStep, write: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    stop_at(step, "before").await;
    let written = write.await?;
    stop_at(step, "after").await;
    Ok(written)
}

/// Writes the list of steps, if a test wants it.
pub fn write_step_list() {
    LazyLock::force(&FOLDER);
}

async fn stop_at(step: DurableStep, edge: &str) {
    let Some(folder) = FOLDER.as_ref() else { return };
    let point = folder.join(format!("{}.{edge}", step.as_str()));
    let reached = folder.join(format!("{}.{edge}.reached", step.as_str()));
    if std::fs::rename(point, &reached).is_ok() {
        while reached.exists() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
