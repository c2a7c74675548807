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

    /// A transfer its debit side allows and something else refuses takes the money and gives it back if it is a saga: two
    /// lines in the debit account's journal. On one shard it leaves none.
    pub fn refusal_leaves_lines(&self, debit: &str, credit: &str) -> bool {
        self.differ(debit, credit)
    }

    /// The durable steps of a saga, with their shards.
    pub fn steps(&self, debit: &str, credit: &str, fate: SagaFate) -> Option<Vec<(&'static str, &str)>> {
        let (source, destination) = (self.of(debit), self.of(credit));
        let end = match fate {
            _ if source == destination => return None,
            SagaFate::RefusedAtOnce => return Some(Vec::new()),
            SagaFate::Settled => "settle",
            SagaFate::Compensated => "compensate",
        };
        Some(vec![("reserve", source), ("decide", destination), (end, source)])
    }
}

/// How a saga ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaFate {
    /// By its debit side, before there was a saga.
    RefusedAtOnce,
    Settled,
    Compensated,
}
