//! The process's bound on open files. The usual 1,024 is less than the connections this router is meant to hold; at the
//! bound nothing can be accepted any more, however cheap.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files a router has open beside its clients' connections: shards, listeners, log, shard map.
const OWN_FILES: u64 = 256;

/// Raises the soft bound to what the hard one allows, and warns where that is not enough for `connections`.
pub fn raise_limit(connections: usize) {
    let wanted = connections as u64 + OWN_FILES;
    let limit = getrlimit(Resource::Nofile);
    let Some(soft) = limit.current else { return };
    if soft >= wanted {
        return;
    }
    let raised = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    let outcome = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum });
    if outcome.is_err() || raised < wanted {
        tracing::warn!(
            limit = if outcome.is_ok() { raised } else { soft },
            wanted,
            "fewer files may be open than http.max_connections needs: raise the hard limit (ulimit -Hn)"
        );
    }
}
