//! Every metric of the shard-node, in one place. Labels are bounded: never an id.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// 1 while the database is accepted as the shard, else 0.
pub const DATABASE_ACCEPTED: &str = "shardledger_database_accepted_ratio";
/// 1 while reads work, else 0.
pub const READS_SERVING: &str = "shardledger_reads_serving_ratio";
/// How far the median clock is ahead of this machine's.
pub const CLOCK_DIFFERENCE_SECONDS: &str = "shardledger_clock_difference_seconds";
/// 1 while the lane can write, else 0.
pub const LANE_SERVING: &str = "shardledger_lane_serving_ratio";
/// 1 while this node acts for its shard, 0 while it follows another node.
pub const NODE_ACTIVE: &str = "shardledger_node_active_ratio";
/// Bookings of the active node that a follower has found and not applied yet.
pub const FOLLOWING_BEHIND: &str = "shardledger_following_behind_bookings";
pub const LANE_QUEUE_OPERATIONS: &str = "shardledger_lane_queue_operations";
pub const LANE_QUEUE_FULL: &str = "shardledger_lane_queue_full_total";
pub const LANE_BATCH_OPERATIONS: &str = "shardledger_lane_batch_operations";
pub const LANE_BATCH_SECONDS: &str = "shardledger_lane_batch_seconds";
pub const LANE_DECIDE_SECONDS: &str = "shardledger_lane_decide_seconds";
pub const LANE_COMMIT_SECONDS: &str = "shardledger_lane_commit_seconds";
/// Label `result`: hit or miss.
pub const LANE_CACHE_LOOKUPS: &str = "shardledger_lane_cache_lookups_total";
pub const LANE_CACHED_ACCOUNTS: &str = "shardledger_lane_cached_accounts";
/// Label `remedy`: reconnect, redecide, reload or report.
pub const LANE_ROLLBACKS: &str = "shardledger_lane_rollbacks_total";
pub const LANE_REPLAYS: &str = "shardledger_lane_replays_total";
pub const FOLD_TAIL_ROWS: &str = "shardledger_fold_tail_rows";
pub const FOLD_SECONDS: &str = "shardledger_fold_seconds";
pub const FOLD_ACCOUNTS: &str = "shardledger_fold_accounts_total";
pub const HOLDS_EXPIRED: &str = "shardledger_holds_expired_total";
/// Label `method`.
pub const RPC_REQUESTS: &str = "shardledger_rpc_requests_total";
/// Label `reason`: certificate, name, plaintext, tls, connection or timeout.
pub const RPC_CALLERS_REFUSED: &str = "shardledger_rpc_callers_refused_total";

pub fn describe() {
    describe_gauge!(DATABASE_ACCEPTED, "1 while the database is accepted as the shard, else 0.");
    describe_gauge!(READS_SERVING, "1 while reads work, else 0.");
    describe_gauge!(
        CLOCK_DIFFERENCE_SECONDS,
        Unit::Seconds,
        "How far the median of all compared clocks is ahead of this machine's."
    );
    describe_gauge!(LANE_SERVING, "1 while the lane can write to its database, else 0.");
    describe_gauge!(NODE_ACTIVE, "1 while this node acts for its shard, 0 while it follows another node.");
    describe_gauge!(FOLLOWING_BEHIND, "Bookings of the active node that a follower has found and not applied yet.");
    describe_gauge!(LANE_QUEUE_OPERATIONS, "Operations waiting for the lane, the batch in progress included.");
    describe_counter!(LANE_QUEUE_FULL, "Refusals because the lane's queue or the tail was full.");
    describe_histogram!(LANE_BATCH_OPERATIONS, "Operations in one batch, replays included.");
    describe_histogram!(LANE_BATCH_SECONDS, Unit::Seconds, "Load, decide and commit of a batch.");
    describe_histogram!(LANE_DECIDE_SECONDS, Unit::Seconds, "Deciding a batch in memory.");
    describe_histogram!(LANE_COMMIT_SECONDS, Unit::Seconds, "Fence, rows and COMMIT of a batch, in one message.");
    describe_counter!(LANE_CACHE_LOOKUPS, "Accounts looked up for a batch: found in memory or loaded.");
    describe_gauge!(LANE_CACHED_ACCOUNTS, "Accounts in memory.");
    describe_counter!(LANE_ROLLBACKS, "Batches rolled back, by what was done about it.");
    describe_counter!(LANE_REPLAYS, "Operations answered from what was stored before.");
    describe_gauge!(FOLD_TAIL_ROWS, "Bookings that are committed and not folded.");
    describe_histogram!(FOLD_SECONDS, Unit::Seconds, "One fold: accounts, sagas, waypoints and folded_position.");
    describe_counter!(FOLD_ACCOUNTS, "Accounts written by folds.");
    describe_counter!(
        RPC_CALLERS_REFUSED,
        "Connections to the RPC port that were closed in their handshake, by the reason."
    );
    describe_counter!(HOLDS_EXPIRED, "Holds that the node expired because their time was over.");
    describe_counter!(RPC_REQUESTS, "Requests of routers, by method.");
}
