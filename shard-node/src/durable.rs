//! The durable steps of a node, and a way for tests to interrupt the node before and after each of them.
//!
//! A node that was built without optimisation and started with `SHARDLEDGER_FAILPOINTS` in its environment writes the list of steps to
//! that folder. It obeys the file of a point, `<step>.before` or `<step>.after`: it renames the file to `<point>.reached`, writes its
//! process id into it, and does what the file said:
//!
//! * nothing or `stop`: it waits until the renamed file is gone. Meanwhile, the test kills the node or another process.
//! * `abort`: the process ends at once.
//! * `fail`: the step reports an error. Before the step, nothing was written; after it, the write has happened and its answer is lost.
//!   Steps of moves take this for `stop`.
//!
//! Other builds do not look.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use ledger::{Booking, booking::BookingKind};

use crate::store::FoldStep;

/// The environment variable with the path of the folder.
const VARIABLE: &str = "SHARDLEDGER_FAILPOINTS";
const LOOK: Duration = Duration::from_millis(5);

/// What a node does when it makes a step: a move, an abort of a move, a reversal of a move, a commit of the lane, or a fold.
const MOVE: &str = "move";
const ABORT: &str = "abort";
const REVERSE: &str = "reverse";
const LANE: &str = "lane";
const FOLD: &str = "fold";

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident $name:literal $occasion:ident,)*) => {
        /// One durable write, or what one commit of the lane or the fold may contain.
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

        /// Name and occasion of each step.
        const STEPS: &[(&str, &str)] = &[$(($name, $occasion),)*];
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
    /// Any batch of the lane.
    Commit "commit" LANE,
    /// A batch with a booking that only shows that the lane can write: after a start, or after a lost commit.
    Mark "mark" LANE,
    /// A batch that opens an account.
    Open "open" LANE,
    /// A batch that changes an account.
    Update "update" LANE,
    /// A batch with a transfer between two accounts of the shard.
    Post "post" LANE,
    /// A batch with a refused transfer.
    Reject "reject" LANE,
    /// A batch with the first step of a saga.
    Reserve "reserve" LANE,
    /// A batch with the first step of a saga that reserves nothing.
    Presume "presume" LANE,
    /// A batch with a register that credits.
    Credit "credit" LANE,
    /// A batch with a register that refuses.
    Refuse "refuse" LANE,
    /// A batch with the last step of a saga whose register credits.
    Settle "settle" LANE,
    /// A batch with the last step of a saga whose register refuses.
    Compensate "compensate" LANE,
    /// A batch with the last step of a saga that reserved nothing.
    SettleRefused "settle_refused" LANE,
    /// A batch that places a hold.
    PlaceHold "place_hold" LANE,
    /// A batch with a refused hold.
    RejectHold "reject_hold" LANE,
    /// A batch in which a capture ends its hold.
    CaptureHold "capture_hold" LANE,
    /// A batch that releases a hold.
    ReleaseHold "release_hold" LANE,
    /// A batch that expires a hold.
    ExpireHold "expire_hold" LANE,
    /// A batch that erases the metadata of a transfer.
    EraseTransfer "erase_transfer" LANE,
    /// A batch that erases the metadata of a hold.
    EraseHold "erase_hold" LANE,
    /// A chunk of rows of accounts.
    FoldAccounts "fold_accounts" FOLD,
    /// The folded position.
    FoldPosition "fold_position" FOLD,
    /// The folded position, with waypoints.
    FoldWaypoints "fold_waypoints" FOLD,
    /// The folded position, with sagas that are under way.
    FoldSagasBegun "fold_sagas_begun" FOLD,
    /// The folded position, with sagas that have ended.
    FoldSagasEnded "fold_sagas_ended" FOLD,
}

/// The folder, with the list of steps written to it.
static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let folder = PathBuf::from(std::env::var_os(VARIABLE)?);
    let list: String = STEPS.iter().map(|(name, occasion)| format!("{name} {occasion}\n")).collect();
    match std::fs::write(folder.join("steps"), list) {
        Ok(()) => Some(folder),
        Err(error) => {
            tracing::error!(%error, folder = %folder.display(), "the list of durable steps cannot be written");
            None
        }
    }
});

/// The folder of a test that watches. The compiler removes all that depends on it from optimised builds.
fn folder() -> Option<&'static Path> {
    if cfg!(debug_assertions) { FOLDER.as_deref() } else { None }
}

/// Whether a write has been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Before,
    After,
}

impl Edge {
    fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// What the file of a point orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop,
    Abort,
    Fail,
}

impl Order {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "abort" => Self::Abort,
            "fail" => Self::Fail,
            _ => Self::Stop,
        }
    }
}

/// Makes a durable write, with a point before it and one after it.
///
/// # Errors
/// Those of the write.
pub async fn durable<T, E>(step: DurableStep, write: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    reach(step, Edge::Before).await;
    let written = write.await?;
    reach(step, Edge::After).await;
    Ok(written)
}

/// Makes a durable write that is several steps at once, with points before and after it. `failure` is what the caller would be told
/// if the write failed, or if its answer were lost.
///
/// # Errors
/// Those of the write, and `failure` where a test orders one.
pub async fn durable_steps<T, E>(
    steps: &[DurableStep],
    failure: impl Fn(Edge) -> E,
    write: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    for step in steps {
        if reach(*step, Edge::Before).await == Some(Order::Fail) {
            return Err(failure(Edge::Before));
        }
    }
    let written = write.await?;
    for step in steps {
        if reach(*step, Edge::After).await == Some(Order::Fail) {
            return Err(failure(Edge::After));
        }
    }
    Ok(written)
}

/// The steps that a batch of the lane makes with these bookings. Empty unless a test watches.
pub fn steps_of_batch(bookings: &[Booking]) -> Vec<DurableStep> {
    if folder().is_none() {
        return Vec::new();
    }
    let mut steps = vec![DurableStep::Commit];
    for step in bookings.iter().filter_map(|booking| step_of(booking.kind)) {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps
}

/// The step that a booking of the lane is part of. The bookings of moves have steps of their own.
fn step_of(kind: BookingKind) -> Option<DurableStep> {
    Some(match kind {
        BookingKind::Opened => DurableStep::Open,
        BookingKind::Updated => DurableStep::Update,
        BookingKind::Marker => DurableStep::Mark,
        BookingKind::Posted => DurableStep::Post,
        BookingKind::Rejected => DurableStep::Reject,
        BookingKind::Reserved => DurableStep::Reserve,
        BookingKind::Presumed => DurableStep::Presume,
        BookingKind::Settled => DurableStep::Settle,
        BookingKind::Compensated => DurableStep::Compensate,
        BookingKind::SettledRefused => DurableStep::SettleRefused,
        BookingKind::Credited => DurableStep::Credit,
        BookingKind::Refused => DurableStep::Refuse,
        BookingKind::HoldPlaced => DurableStep::PlaceHold,
        BookingKind::HoldRejected => DurableStep::RejectHold,
        BookingKind::HoldCaptured => DurableStep::CaptureHold,
        BookingKind::HoldReleased => DurableStep::ReleaseHold,
        BookingKind::HoldExpired => DurableStep::ExpireHold,
        BookingKind::TransferErased => DurableStep::EraseTransfer,
        BookingKind::HoldErased => DurableStep::EraseHold,
        BookingKind::MovedOut | BookingKind::MovedIn | BookingKind::SharesOut | BookingKind::SharesIn => return None,
    })
}

/// The steps that the end of a fold makes. Empty unless a test watches.
pub fn steps_of_fold(fold: &FoldStep) -> Vec<DurableStep> {
    if folder().is_none() {
        return Vec::new();
    }
    let parts = [
        (DurableStep::FoldPosition, true),
        (DurableStep::FoldWaypoints, !fold.waypoints.is_empty()),
        (DurableStep::FoldSagasBegun, !fold.begun.is_empty()),
        (DurableStep::FoldSagasEnded, !fold.ended.is_empty()),
    ];
    parts.into_iter().filter_map(|(step, is_part)| is_part.then_some(step)).collect()
}

/// Writes the list of steps, if a test wants it.
pub fn write_step_list() {
    let _ = folder();
}

/// Obeys the file of a point, if there is one.
async fn reach(step: DurableStep, edge: Edge) -> Option<Order> {
    let folder = folder()?;
    let point = folder.join(format!("{}.{}", step.as_str(), edge.as_str()));
    let reached = folder.join(format!("{}.{}.reached", step.as_str(), edge.as_str()));
    std::fs::rename(point, &reached).ok()?;
    let order = Order::parse(&std::fs::read_to_string(&reached).unwrap_or_default());
    // The name of this file says enough if its content cannot be written.
    let _ = std::fs::write(&reached, format!("{}\n", std::process::id()));
    match order {
        Order::Stop => wait_until_gone(&reached).await,
        Order::Abort => std::process::abort(),
        Order::Fail => {}
    }
    Some(order)
}

async fn wait_until_gone(reached: &Path) {
    while reached.exists() {
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_steps_share_a_name() {
        let names: HashSet<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), STEPS.len());
    }

    #[test]
    fn every_booking_of_the_lane_has_a_step_of_its_own() {
        let steps: Vec<DurableStep> = BookingKind::ALL.into_iter().filter_map(step_of).collect();
        let of_moves = BookingKind::ALL.into_iter().filter(|kind| kind.is_of_shard() && *kind != BookingKind::Marker);
        assert_eq!(steps.len(), BookingKind::ALL.len() - of_moves.count());
        let names: HashSet<&str> = steps.iter().map(|step| step.as_str()).collect();
        assert_eq!(names.len(), steps.len());
    }

    #[tokio::test]
    async fn without_a_folder_no_step_is_interrupted() {
        let fails = |edge: Edge| format!("failed {}", edge.as_str());
        let done = durable_steps(&[DurableStep::Commit], fails, async { Ok::<_, String>(7) }).await;
        assert_eq!(done, Ok(7));
    }
}
