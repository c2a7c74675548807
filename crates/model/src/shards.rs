//! The parts of an answer that depend on the shard of an account: `scope`, `steps`, and the lines of a saga in journals.

use std::collections::BTreeMap;

/// The shard of each account that a client may name.
#[derive(Debug, Clone, Default)]
pub struct Shards(BTreeMap<String, String>);

impl Shards {
    pub fn new(shard_of: BTreeMap<String, String>) -> Self {
        Self(shard_of)
    }

    pub fn of(&self, account: &str) -> &str {
        self.0.get(account).map_or("", String::as_str)
    }

    /// Whether the two accounts are on different shards, so that a transfer between them is a saga.
    pub fn differ(&self, debit: &str, credit: &str) -> bool {
        self.of(debit) != self.of(credit)
    }

    pub fn scope(&self, debit: &str, credit: &str) -> &'static str {
        if self.differ(debit, credit) { "cross_shard" } else { "local" }
    }

    /// The kind of the debit account's journal line for a posted payment or reversal.
    pub fn kind_of_debit(&self, debit: &str, credit: &str) -> &'static str {
        if self.differ(debit, credit) { "reserved" } else { "posted" }
    }

    /// The durable steps of a saga, with their shards.
    pub fn steps(&self, debit: &str, credit: &str, fate: SagaFate) -> Option<Vec<(&'static str, &str)>> {
        let (source, destination) = (self.of(debit), self.of(credit));
        let (reserve, decide) = (("reserve", source), ("decide", destination));
        match fate {
            _ if source == destination => None,
            SagaFate::RefusedAtOnce => Some(vec![]),
            SagaFate::NeverReserved => Some(vec![decide, ("settle", source)]),
            SagaFate::Settled => Some(vec![reserve, decide, ("settle", source)]),
            SagaFate::Compensated => Some(vec![reserve, decide, ("compensate", source)]),
        }
    }
}

/// How a saga ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaFate {
    /// The debit side refused the transfer, and no saga began.
    RefusedAtOnce,
    /// The source knew that the transfer would be refused. The destination was asked nevertheless, because its reasons come first.
    NeverReserved,
    Settled,
    Compensated,
}
