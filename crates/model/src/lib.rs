//! The ledger as the HTTP contract describes it. It is small and plain, so that a reader can check it, and it is in memory.
//!
//! The property tests play the same requests to this model and to real nodes, and every answer must be equal. The model therefore shares no
//! code with the `ledger` crate. It executes one request after another, counts minor units, and keeps a journal as a list. Only [`shards`]
//! knows that there are shards.
//!
//! Start at [`Ledger::apply`]; the rules of posting are in [`posting`]. [`linearizability`] looks for the serial order of a concurrent
//! history.

mod account;
mod ledger;
pub mod linearizability;
mod posting;
mod request;
mod shards;

pub use account::{Account, Asset, Entry, Status};
pub use ledger::{Answer, Fate, Hold, HoldState, Ledger, Order, TIME, Transfer};
pub use request::{Capture, Changes, Id, Metadata, Named, NewAccount, NewHold, Payment, Release, Request, Reversal};
