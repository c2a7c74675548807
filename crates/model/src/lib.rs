//! The ledger as the HTTP contract describes it: small, in memory, and so plain that one sees that it is right.
//!
//! The property tests play the same requests to this model and to real nodes, and every answer has to be equal. So nothing in
//! here shares code with the `ledger` crate, and nothing is clever: one request after another, amounts in minor units, a
//! journal that is a list. What only exists because there are shards is in [`shards`] and nowhere else.
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
