//! What an id in a path turned out to name: one thing, none, or several, since an id belongs to its debit account.

mod replay;

use ledger::TransferId;

pub use replay::begun_before;

use super::problem::{Code, Problem};
use crate::core::reply::{Found, FoundHold, FoundTransfer};

/// Something that is found by its id.
pub trait Identified {
    const WHAT: &'static str;
    const NOT_FOUND: Code;

    fn debit(&self) -> &str;
    /// Says in a problem which one it is about.
    fn mark(problem: Problem, id: TransferId) -> Problem;
}

/// The one to be shown. What shards that did not answer may have in addition does not make it wrong.
pub fn to_show<T: Identified>(id: TransferId, found: Found<T>) -> Result<T, Problem> {
    let Found { mut found, unreachable } = found;
    if found.len() > 1 {
        let debits: Vec<_> = found.iter().map(T::debit).collect();
        let detail =
            format!("{}s of several accounts have this id; say which with ?debit=: {}", T::WHAT, debits.join(", "));
        return Err(T::mark(Problem::new(Code::AmbiguousId, detail), id));
    }
    match (found.pop(), unreachable.first()) {
        (Some(found), _) => Ok(found),
        (None, None) => Err(not_found::<T>(id)),
        (None, Some(shard)) => {
            let detail = "not found on the shards that answered, and not every shard did";
            Err(T::mark(Problem::new(Code::ShardUnavailable, detail).with_shard(&**shard), id))
        }
    }
}

/// The one to be acted on. Unless its debit account was given, all shards must have answered: money must not move because
/// another of that id is out of sight.
pub fn to_act_on<T: Identified>(id: TransferId, debit_given: bool, found: Found<T>) -> Result<T, Problem> {
    let unseen = found.unreachable.first().filter(|_| !debit_given).cloned();
    let found = to_show(id, found)?;
    match unseen {
        Some(shard) => {
            let detail = "not every shard answered whether it has this id too; with ?debit= only one is asked";
            Err(T::mark(Problem::new(Code::ShardUnavailable, detail).with_shard(&*shard), id))
        }
        None => Ok(found),
    }
}

pub fn not_found<T: Identified>(id: TransferId) -> Problem {
    T::mark(Problem::new(T::NOT_FOUND, format!("there is no {} {}", T::WHAT, id.0)), id)
}

impl Identified for FoundTransfer {
    const WHAT: &'static str = "transfer";
    const NOT_FOUND: Code = Code::TransferNotFound;

    fn debit(&self) -> &str {
        &self.record.debit
    }

    fn mark(problem: Problem, id: TransferId) -> Problem {
        problem.with_transfer(id.0)
    }
}

impl Identified for FoundHold {
    const WHAT: &'static str = "hold";
    const NOT_FOUND: Code = Code::HoldNotFound;

    fn debit(&self) -> &str {
        self.key.debit.as_str()
    }

    fn mark(problem: Problem, id: TransferId) -> Problem {
        problem.with_hold(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: &[&str] = &["s1"];

    fn found(debits: &[&str], unreachable: &[&str]) -> Found<FoundTransfer> {
        let transfer = |debit: &&str| FoundTransfer {
            record: wire::TransferRecord { debit: (*debit).to_owned(), ..Default::default() },
            shard: "s0".into(),
            register: None,
            verdict_unread: false,
        };
        Found {
            found: debits.iter().map(transfer).collect(),
            unreachable: unreachable.iter().map(|shard| (*shard).into()).collect(),
        }
    }

    #[test]
    fn an_id_must_name_one_thing() {
        let id = TransferId(uuid::Uuid::from_u128(7));
        let code = |result: Result<FoundTransfer, Problem>| result.map(|_| "found").map_err(|p| p.code().as_str());
        assert_eq!(code(to_show(id, found(&["a"], DOWN))), Ok("found"));
        assert_eq!(code(to_show(id, found(&["a", "b"], &[]))), Err("ambiguous_id"));
        assert_eq!(code(to_show(id, found(&[], &[]))), Err("transfer_not_found"));
        assert_eq!(code(to_show(id, found(&[], DOWN))), Err("shard_unavailable"));

        assert_eq!(code(to_act_on(id, false, found(&["a"], &[]))), Ok("found"));
        assert_eq!(code(to_act_on(id, true, found(&["a"], DOWN))), Ok("found"));
        assert_eq!(code(to_act_on(id, false, found(&["a"], DOWN))), Err("shard_unavailable"));
    }
}
