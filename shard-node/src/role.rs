//! The role of this node among the nodes of its shard: it acts for the shard, or it follows the node that does
//! (`docs/adr/0014`).
//!
//! A following node reads what the shard's active node commits, and writes nothing. It becomes active as soon as a router uses it,
//! or when the database has no session of another active node. An active node that no router uses becomes a follower while
//! another node is active. The fence protects the shard's money; the role does not. Two nodes that are active at the same time cost
//! time, and no money.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::store::session::WRITER;

/// A node is in use if a router sent it a request or heartbeat within this time. Heartbeats come once a second; with many shards, less
/// often.
const IN_USE_FOR: Duration = Duration::from_secs(3);
/// Most looks without another active node before a follower acts without a router. Each time, the number is drawn anew from 2 up to
/// this one: two followers of one shard then seldom begin at the same look.
const MOST_FREE_LOOKS: u32 = 6;

/// What this node does for its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Commits, folds, expires holds and drives moves of slots.
    Active,
    /// Follows the journal and writes nothing.
    Following {
        /// Bookings that the last look found and that are not applied yet.
        behind: i64,
    },
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Following { behind: 1 } => f.write_str("following, 1 booking behind"),
            Self::Following { behind } => write!(f, "following, {behind} bookings behind"),
        }
    }
}

/// Shared by everything that writes, by the monitor and by the service.
#[derive(Debug, Clone)]
pub struct NodeRole(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the tasks that wait for another role.
    changed: Notify,
    /// The `application_name` of the sessions that this process writes with. No other process has the same name.
    writer: String,
}

#[derive(Debug)]
struct State {
    role: Role,
    /// When a router last used this node.
    used: Option<Instant>,
    /// Looks without another active node that are left before this node acts.
    free_looks_left: u32,
    /// The last look of this active node found another active one. One look is not enough: the session of a node that ended may last a
    /// little longer than the node.
    has_seen_another: bool,
}

impl NodeRole {
    /// A follower that acts at the first look without another active node.
    pub fn new() -> Self {
        let state =
            State { role: Role::Following { behind: 0 }, used: None, free_looks_left: 1, has_seen_another: false };
        let writer = format!("{WRITER}-{}", uuid::Uuid::now_v7().simple());
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new(), writer }))
    }

    /// A node that acts, with no other node on the shard.
    #[cfg(test)]
    pub fn active() -> Self {
        let role = Self::new();
        role.use_now();
        role
    }

    /// Follows, as after some seconds without traffic beside another active node.
    #[cfg(test)]
    pub fn step_back(&self) {
        self.state().used = None;
        self.looked(true);
        self.looked(true);
    }

    pub fn now(&self) -> Role {
        self.state().role
    }

    pub fn is_active(&self) -> bool {
        self.now() == Role::Active
    }

    /// A router uses this node, or an operator or another shard has it move slots: this node acts from now on.
    pub fn use_now(&self) {
        let mut state = self.state();
        state.used = Some(Instant::now());
        if state.role != Role::Active {
            tracing::info!("a router uses this node: it acts for the shard");
            self.activate(&mut state);
        }
    }

    /// Takes note of a look at the sessions of the database. `others`: another active node of the shard has a session.
    pub fn looked(&self, others: bool) {
        let mut state = self.state();
        let in_use = state.used.is_some_and(|used| used.elapsed() < IN_USE_FOR);
        let again = std::mem::replace(&mut state.has_seen_another, others);
        match state.role {
            Role::Active if others && again && !in_use => {
                tracing::info!("another node acts for the shard, and no router uses this node: it follows");
                state.role = Role::Following { behind: 0 };
                state.free_looks_left = free_looks();
                self.0.changed.notify_waiters();
            }
            Role::Active => {}
            Role::Following { .. } if others => state.free_looks_left = free_looks(),
            Role::Following { .. } => {
                state.free_looks_left = state.free_looks_left.saturating_sub(1);
                if state.free_looks_left == 0 {
                    tracing::info!("no other node acts for the shard: this node does");
                    self.activate(&mut state);
                }
            }
        }
    }

    fn activate(&self, state: &mut State) {
        state.role = Role::Active;
        self.0.changed.notify_waiters();
    }

    /// Resolves when this node is no longer active, or no longer a follower.
    pub async fn wait_until_not(&self, active: bool) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_active() != active {
                return;
            }
            changed.await;
        }
    }

    /// Records how many bookings of the active node are not applied yet.
    pub fn set_behind(&self, bookings: i64) {
        let mut state = self.state();
        if let Role::Following { behind } = &mut state.role {
            *behind = bookings;
        }
    }

    /// The `application_name` of every session that this process writes with. A session that opens or ends while this node looks for
    /// others is therefore never taken for that of another node.
    pub fn writer(&self) -> &str {
        &self.0.writer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn free_looks() -> u32 {
    let random = uuid::Uuid::now_v7().as_u128();
    2 + u32::try_from(random % u128::from(MOST_FREE_LOOKS - 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starting_node_without_another_one_acts_at_its_first_look() {
        let role = NodeRole::new();
        assert!(!role.is_active());
        role.looked(false);
        assert!(role.is_active());
    }

    #[test]
    fn a_starting_node_beside_an_active_one_follows_until_a_router_uses_it() {
        let role = NodeRole::new();
        for _ in 0..20 {
            role.looked(true);
        }
        role.set_behind(3);
        assert_eq!(role.now().to_string(), "following, 3 bookings behind");
        role.use_now();
        assert_eq!(role.now().to_string(), "active");
        role.set_behind(5);
        role.looked(true);
        role.looked(true);
        assert!(role.is_active(), "a router uses both nodes: the fence decides between them");
    }

    #[test]
    fn an_active_node_out_of_use_gives_way_only_to_another_active_node() {
        let role = NodeRole::new();
        role.looked(false);
        role.looked(false);
        assert!(role.is_active());
        role.looked(true);
        assert!(role.is_active(), "the other node may have ended before its session");
        role.looked(true);
        assert!(!role.is_active());
    }

    #[test]
    fn each_process_writes_under_a_name_of_its_own() {
        let (one, other) = (NodeRole::new(), NodeRole::new());
        for role in [&one, &other] {
            assert!(role.writer().starts_with(WRITER), "another node does not recognise {}", role.writer());
            assert!(role.writer().len() < 64, "PostgreSQL cuts longer names");
        }
        assert_ne!(one.writer(), other.writer());
        assert_eq!(one.writer(), one.clone().writer(), "each session of one process has the same name");
    }

    #[test]
    fn a_follower_acts_after_some_looks_in_a_row_without_an_active_node() {
        let role = NodeRole::new();
        role.looked(true);
        role.looked(false);
        assert!(!role.is_active(), "the active node may only be connecting to its database anew");
        role.looked(true);
        for _ in 0..MOST_FREE_LOOKS {
            role.looked(false);
        }
        assert!(role.is_active());
    }
}
