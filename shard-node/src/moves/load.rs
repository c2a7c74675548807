//! What a shard has: in each slot, for the planner, and altogether, for its removal.

use std::{sync::PoisonError, time::Duration};

use tokio::time::Instant;

use super::{MoveError, Moves};
use crate::store::moves::{MoveConnection, MoveStore, load};

/// How long a shard that is being removed starts no move.
const CLOSED_FOR: Duration = Duration::from_secs(60);

impl<S: MoveStore> Moves<S> {
    /// Counts accounts and their legs by slot. Reads every row of `account`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(&self) -> Result<wire::LoadResponse, MoveError> {
        self.connection().await?.load().await
    }

    /// Counts the client data that is still on the shard. With `refuse_moves`, no move to the shard is started for a minute from before the count.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn count_client_data(&self, refuse_moves: bool) -> Result<wire::ClientDataResponse, MoveError> {
        if refuse_moves {
            let until = Instant::now() + CLOSED_FOR;
            *self.0.closed_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        // The pool of reads: a count must not take the connections of a cut-over.
        load::count_client_data(self.0.reads.pool()?, refuse_moves).await
    }

    /// Whether the shard is being removed.
    pub(super) fn is_closed_to_moves(&self) -> bool {
        let closed_until = *self.0.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        closed_until.is_some_and(|until| Instant::now() < until)
    }
}
