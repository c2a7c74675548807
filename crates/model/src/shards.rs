//! Everything that where an account lives may change in an answer: `scope`, `steps`, and what a saga leaves in journals.

use std::collections::BTreeMap;

/// The shard of each account a client may name.
#[derive(Debug, Clone, Default)]
pub struct Shards(BTreeMap<String, String>);

impl Shards {
    pub fn new(shard_of: BTreeMap<String, String>) -> Self {
        Self(shard_of)
    }

    pub fn of(&self, account: &str) -> &str {
        self.0.get(account).map_or("", String::as_str)
    }

    /// Is a transfer between these two a saga?
    pub fn differ(&self, debit: &str, credit: &str) -> bool {
        self.of(debit) != self.of(credit)
    }

    pub fn scope(&self, debit: &str, credit: &str) -> &'static str {
        if self.differ(debit, credit) { "cross_shard" } else { "local" }
    }

    /// The debit account's journal line of a posted payment or reversal.
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
    /// By its debit side, before there was a saga.
    RefusedAtOnce,
    /// The source knew that it would be refused. The destination was asked all the same: its reasons go first.
    NeverReserved,
    Settled,
    Compensated,
}
