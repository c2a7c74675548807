//! Every metric of the shard-node, in one place. Labels are bounded: never an id. Every series also has the label `shard`.
//!
//! [`crate::gauges`] sets the gauges; the others are counted where it happens.

use ledger::{BookingKind, Refusal};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{moves::phase::Phase, rpc, store::error::Remedy};

// === what this node serves ===

pub const DATABASE_ACCEPTED: &str = "shardledger_database_accepted_ratio";
pub const READS_SERVING: &str = "shardledger_reads_serving_ratio";
pub const LANE_SERVING: &str = "shardledger_lane_serving_ratio";
pub const NODE_ACTIVE: &str = "shardledger_node_active_ratio";
pub const FOLLOWING_BEHIND: &str = "shardledger_following_behind_bookings";
pub const CLOCK_DIFFERENCE_SECONDS: &str = "shardledger_clock_difference_seconds";
/// Label `method`.
pub const RPC_REQUESTS: &str = "shardledger_rpc_requests_total";

// === money ===

/// Label `kind`: a [`BookingKind`], as [`kind_label`] names it.
pub const BOOKINGS: &str = "shardledger_bookings_total";
/// Label `code`: a [`Refusal`].
pub const REJECTIONS: &str = "shardledger_rejections_total";
pub const SAGAS_OPEN: &str = "shardledger_sagas_open";
pub const OLDEST_SAGA_SECONDS: &str = "shardledger_oldest_saga_age_seconds";
/// Label `asset`: an asset of an account of the shard.
pub const IN_TRANSIT: &str = "shardledger_in_transit_minor_units";
pub const HOLDS_OVERDUE: &str = "shardledger_holds_overdue";
pub const OLDEST_OVERDUE_HOLD_SECONDS: &str = "shardledger_oldest_overdue_hold_seconds";
pub const HOLDS_EXPIRED: &str = "shardledger_holds_expired_total";
/// Label `phase`: a [`Phase`], as [`phase_label`] names it.
pub const SLOT_MOVES: &str = "shardledger_slot_moves";
pub const SLOT_MOVE_FAILURES: &str = "shardledger_slot_move_failures_total";

// === the lane and the fold ===

pub const LANE_QUEUE_OPERATIONS: &str = "shardledger_lane_queue_operations";
pub const LANE_QUEUE_FULL: &str = "shardledger_lane_queue_full_total";
pub const LANE_BATCH_OPERATIONS: &str = "shardledger_lane_batch_operations";
pub const LANE_BATCH_SECONDS: &str = "shardledger_lane_batch_seconds";
pub const LANE_DECIDE_SECONDS: &str = "shardledger_lane_decide_seconds";
pub const LANE_COMMIT_SECONDS: &str = "shardledger_lane_commit_seconds";
/// Label `result`: hit or miss.
pub const LANE_CACHE_LOOKUPS: &str = "shardledger_lane_cache_lookups_total";
pub const LANE_CACHED_ACCOUNTS: &str = "shardledger_lane_cached_accounts";
/// Label `remedy`: reconnect, redecide, catch_up or report.
pub const LANE_ROLLBACKS: &str = "shardledger_lane_rollbacks_total";
pub const LANE_FENCE_LOSSES: &str = "shardledger_lane_fence_losses_total";
pub const LANE_REPLAYS: &str = "shardledger_lane_replays_total";
pub const FOLD_TAIL_ROWS: &str = "shardledger_fold_tail_rows";
pub const FOLD_LAG_SECONDS: &str = "shardledger_fold_lag_seconds";
pub const FOLD_SECONDS: &str = "shardledger_fold_seconds";
pub const FOLD_ACCOUNTS: &str = "shardledger_fold_accounts_total";
/// Label `reason`: certificate, name, plaintext, tls, connection, timeout or gave_way.
pub const RPC_CALLERS_REFUSED: &str = "shardledger_rpc_callers_refused_total";

/// Describes every metric, and makes every series of a counter or histogram exist. The gauges exist from the first rendering.
pub fn describe() {
    describe_service();
    describe_money();
    describe_lane();
    register();
}

fn describe_service() {
    describe_gauge!(DATABASE_ACCEPTED, "1 while the database is accepted as the shard, else 0.");
    describe_gauge!(READS_SERVING, "1 while reads work, as /readyz says, else 0.");
    describe_gauge!(LANE_SERVING, "1 while writes work, as /readyz says, else 0.");
    describe_gauge!(NODE_ACTIVE, "1 while this node acts for its shard, 0 while it follows another node.");
    describe_gauge!(FOLLOWING_BEHIND, "Bookings of the active node that a follower has found and not applied yet.");
    describe_gauge!(
        CLOCK_DIFFERENCE_SECONDS,
        Unit::Seconds,
        "How far the median of all compared clocks is ahead of this machine's."
    );
    describe_counter!(RPC_REQUESTS, "Calls of routers and other nodes, by method.");
}

fn describe_money() {
    describe_counter!(
        BOOKINGS,
        "Rows that this node has committed to the journal, by kind. A cross-shard transfer is a reserved row and a settled or compensated \
         one at its source, and a credited or refused one at its destination."
    );
    describe_counter!(
        REJECTIONS,
        "Transfers and holds that this node has refused for good, by code. The code of a cross-shard transfer is counted at the shard of \
         its credit account."
    );
    describe_gauge!(SAGAS_OPEN, "Cross-shard transfers of this shard's debit accounts that have not ended.");
    describe_gauge!(
        OLDEST_SAGA_SECONDS,
        Unit::Seconds,
        "Age of the oldest cross-shard transfer of this shard's debit accounts that has not ended; 0 without any."
    );
    describe_gauge!(
        IN_TRANSIT,
        "What cross-shard transfers under way have reserved, by asset, in minor units: it has left the debit accounts and is not settled."
    );
    describe_gauge!(
        HOLDS_OVERDUE,
        "Holds that should have expired more than a second ago and have not, counted up to 10000 every 5 seconds."
    );
    describe_gauge!(
        OLDEST_OVERDUE_HOLD_SECONDS,
        Unit::Seconds,
        "How long ago the oldest overdue hold should have expired; 0 without any."
    );
    describe_counter!(HOLDS_EXPIRED, "Holds that the node expired because their time was over.");
    describe_gauge!(
        SLOT_MOVES,
        "Moves of slots that this shard takes or took part in, by the phase that this shard has recorded; counted every 5 seconds."
    );
    describe_counter!(SLOT_MOVE_FAILURES, "Steps of moves to this shard that failed and are tried again.");
}

fn describe_lane() {
    describe_gauge!(LANE_QUEUE_OPERATIONS, "Operations waiting for the lane, the batch in progress included.");
    describe_counter!(LANE_QUEUE_FULL, "Refusals because the lane's queue or the tail was full.");
    describe_histogram!(LANE_BATCH_OPERATIONS, "Operations in one batch, replays included.");
    describe_histogram!(LANE_BATCH_SECONDS, Unit::Seconds, "Load, decide and commit of a batch.");
    describe_histogram!(LANE_DECIDE_SECONDS, Unit::Seconds, "Deciding a batch in memory.");
    describe_histogram!(LANE_COMMIT_SECONDS, Unit::Seconds, "Fence, rows and COMMIT of a batch, in one message.");
    describe_counter!(LANE_CACHE_LOOKUPS, "Accounts looked up for a batch: found in memory or loaded.");
    describe_gauge!(LANE_CACHED_ACCOUNTS, "Accounts in memory.");
    describe_counter!(LANE_ROLLBACKS, "Batches rolled back, by what was done about it.");
    describe_counter!(
        LANE_FENCE_LOSSES,
        "Batches that another writer of the shard, or a change of its slots, came before; they were decided again."
    );
    describe_counter!(LANE_REPLAYS, "Operations answered from what was stored before.");
    describe_gauge!(FOLD_TAIL_ROWS, "Bookings that are committed and not folded.");
    describe_gauge!(
        FOLD_LAG_SECONDS,
        Unit::Seconds,
        "For how long something is committed and not folded; 0 while everything is folded."
    );
    describe_histogram!(FOLD_SECONDS, Unit::Seconds, "One fold: accounts, sagas, waypoints and folded_position.");
    describe_counter!(FOLD_ACCOUNTS, "Accounts written by folds.");
    describe_counter!(
        RPC_CALLERS_REFUSED,
        "Connections to the RPC port that were closed in their handshake, by the reason."
    );
}

fn register() {
    for kind in BookingKind::ALL {
        counter!(BOOKINGS, "kind" => kind_label(kind)).absolute(0);
    }
    for refusal in Refusal::ALL {
        counter!(REJECTIONS, "code" => refusal.as_str()).absolute(0);
    }
    for result in ["hit", "miss"] {
        counter!(LANE_CACHE_LOOKUPS, "result" => result).absolute(0);
    }
    for remedy in Remedy::ALL {
        counter!(LANE_ROLLBACKS, "remedy" => remedy.as_str()).absolute(0);
    }
    for method in rpc::METHODS {
        counter!(RPC_REQUESTS, "method" => method).absolute(0);
    }
    for reason in ["certificate", "name", "plaintext", "tls", "connection", "timeout", "gave_way"] {
        counter!(RPC_CALLERS_REFUSED, "reason" => reason).absolute(0);
    }
    for name in [HOLDS_EXPIRED, SLOT_MOVE_FAILURES, LANE_QUEUE_FULL, LANE_FENCE_LOSSES, LANE_REPLAYS, FOLD_ACCOUNTS] {
        counter!(name).absolute(0);
    }
    // The first look at the database comes later.
    for name in [HOLDS_OVERDUE, OLDEST_OVERDUE_HOLD_SECONDS] {
        gauge!(name).set(0.0);
    }
    for phase in Phase::ALL {
        gauge!(SLOT_MOVES, "phase" => phase_label(phase)).set(0.0);
    }
    for name in [LANE_BATCH_OPERATIONS, LANE_BATCH_SECONDS, LANE_DECIDE_SECONDS, LANE_COMMIT_SECONDS, FOLD_SECONDS] {
        // A histogram exists as soon as it is named.
        let _ = histogram!(name);
    }
}

pub fn kind_label(kind: BookingKind) -> &'static str {
    match kind {
        BookingKind::Opened => "opened",
        BookingKind::Updated => "updated",
        BookingKind::Marker => "marker",
        BookingKind::MovedOut => "moved_out",
        BookingKind::MovedIn => "moved_in",
        BookingKind::SharesOut => "shares_out",
        BookingKind::SharesIn => "shares_in",
        BookingKind::TransferErased => "transfer_erased",
        BookingKind::HoldErased => "hold_erased",
        BookingKind::Posted => "posted",
        BookingKind::Rejected => "rejected",
        BookingKind::Reserved => "reserved",
        BookingKind::Presumed => "presumed",
        BookingKind::Settled => "settled",
        BookingKind::Compensated => "compensated",
        BookingKind::SettledRefused => "settled_refused",
        BookingKind::Credited => "credited",
        BookingKind::Refused => "refused",
        BookingKind::HoldPlaced => "hold_placed",
        BookingKind::HoldRejected => "hold_rejected",
        BookingKind::HoldCaptured => "hold_captured",
        BookingKind::HoldReleased => "hold_released",
        BookingKind::HoldExpired => "hold_expired",
    }
}

pub fn phase_label(phase: Phase) -> String {
    phase.as_str().replace(' ', "_")
}
