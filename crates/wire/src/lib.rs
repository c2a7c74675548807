//! The internal RPC: generated messages and services of `proto/shardledger.proto`, and [`convert`] between them and the
//! words of the ledger. No policy lives here.

pub mod convert;

/// What `proto/shardledger.proto` generates.
#[allow(clippy::all, clippy::pedantic, missing_docs, clippy::unwrap_used)]
mod generated {
    tonic::include_proto!("shardledger.v1");
}

pub use convert::Reply;
pub use generated::*;

/// Largest message either side accepts, in bytes: a full lane batch with the largest metadata fits several times over.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
