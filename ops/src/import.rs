//! `shardctl import`: accounts and opening balances out of a CSV file, through the batch routes of the HTTP API.
//!
//! A file is read twice. The first reading ([`Kind::survey`]) checks every row, adds up amounts and computes the file's
//! SHA-256; the second sends the rows in batches, several at once, and takes the answers in the file's order. So one place
//! in the file ([`rows::Place`]) says what is confirmed, [`progress_file`] keeps it beside the file, and a run that was
//! interrupted goes on there. What is sent again all the same is a replay: the ids of accounts are the file's, those of
//! opening balances follow from the import's name and the account ([`balances`]).
//!
//! [`rows`] reads rows, [`accounts`] and [`balances`] make requests of them, [`sender`] repeats each batch until its outcome
//! is certain, [`rejects`] lists the rows that are left out, [`run`](mod@run) puts it together.

pub mod accounts;
pub mod balances;
pub mod payers;
pub mod progress_file;
pub mod rejects;
pub mod rows;
pub mod run;
pub mod sender;
pub mod survey;

use serde::{Deserialize, Serialize};

use rows::Row;
use sender::ItemAnswer;

/// What a file's rows are.
pub trait Kind {
    /// One item of a batch, as the API takes it.
    type Item: Serialize;

    /// The kind's name in progress files and summaries.
    const NAME: &'static str;
    /// Columns that the header must have.
    const REQUIRED: &'static [&'static str];
    /// Columns that the header may have.
    const OPTIONAL: &'static [&'static str];
    /// The batch route.
    const ROUTE: &'static str;
    /// The member of the batch's body that has the items.
    const MEMBER: &'static str;

    /// Looks at a row in the first reading, before any row is sent.
    fn survey(&mut self, row: &Row);

    /// The item of a row. `None`: there is nothing to send. The error is the reason why the row is left out.
    fn item(&self, row: &Row) -> Result<Option<Self::Item>, String>;

    /// What an answer means. May change the item, where [`Verdict::Next`] says so.
    fn verdict(&self, item: &mut Self::Item, answer: &ItemAnswer) -> Verdict;

    /// What the item pays, in minor units, by asset.
    fn pays(item: &Self::Item) -> Option<(&str, i64)>;

    /// An account that is there once the item is confirmed. It tells one cluster from another.
    fn witness(item: &Self::Item) -> &str;
}

/// What the answer to one item means for the import.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the ledger. `replayed`: by an earlier request.
    Confirmed { replayed: bool },
    /// It is not in the ledger, and sending it again does not help.
    Refused(String),
    /// Nothing is certain, or a shard is out of reach: send it again.
    Uncertain,
    /// The item was changed: send the changed one.
    Next,
}

/// How many rows came to what.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All rows so far.
    pub rows: u64,
    /// New in the ledger by this import.
    pub done: u64,
    /// Found in the ledger, by an earlier run or request.
    pub replayed: u64,
    /// With nothing to send: balances of zero.
    pub empty: u64,
    /// Left out, and listed in the file of rejected rows.
    pub rejected: u64,
}
