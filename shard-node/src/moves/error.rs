//! Why a step of a move fails.

use crate::store::StoreError;

/// Why a step of a move failed.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{0}")]
    Store(StoreError),
    /// Another driver has taken over, or the move has gone on.
    #[error("another driver has taken over the move, or the move has gone on")]
    Superseded,
    /// The step cannot be taken. The text says why.
    #[error("{0}")]
    Refused(String),
    /// This node does not serve its database at present. That says nothing about the move.
    #[error("{0}")]
    NotServing(String),
    /// The cut-over would pause the slots for longer than the operator allows.
    #[error("{0}")]
    TooLong(String),
    /// The two sides differ.
    #[error("{0}")]
    Differs(String),
    /// The node of the source does not answer.
    #[error("shard {shard} does not answer: {reason}")]
    Unreachable { shard: String, reason: String },
}

impl From<sqlx::Error> for MoveError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<StoreError> for MoveError {
    fn from(error: StoreError) -> Self {
        if error.is_superseded_move() { Self::Superseded } else { Self::Store(error) }
    }
}
