//! The stored transfer or hold that a path names, and what a request orders of it.
//!
//! An id belongs to its debit account, so that an id in a path may name one thing, none, or several.

use futures_util::future::try_join_all;
use ledger::{AccountId, AssetRegistry, TransferId, operation::Purpose};
use wire::{
    TransferRecord,
    convert::{account_id, purpose_from_wire},
};

use super::{
    Edge,
    access::{Access, Touched},
    answer::nonsense,
    context::RequestDeadline,
    json::{
        Pointer, read_body,
        values::{self, GivenId, IdSource},
    },
    problem::{Code, Problem},
};
use crate::core::reply::{Found, FoundHold, FoundTransfer};

/// A transfer or hold that is found by its id.
pub trait Stored: Sized {
    const WHAT: &'static str;
    const NOT_FOUND: Code;

    fn debit(&self) -> &str;
    /// Names it in a problem.
    fn mark(problem: Problem, id: TransferId) -> Problem;
    fn may_be_read(&self, access: &Access) -> bool;
    /// The debit account of a capture or reversal of it.
    fn payer(&self) -> Result<AccountId, Problem>;
    /// Whether that transfer of its payer is a capture or reversal of it.
    fn is_origin_of(&self, made: &TransferRecord, purpose: Purpose) -> bool;
}

impl Stored for FoundTransfer {
    const WHAT: &'static str = "transfer";
    const NOT_FOUND: Code = Code::TransferNotFound;

    fn debit(&self) -> &str {
        &self.record.debit
    }

    fn mark(problem: Problem, id: TransferId) -> Problem {
        problem.with_transfer(id.0)
    }

    fn may_be_read(&self, access: &Access) -> bool {
        access.may_read_transfer(&self.record)
    }

    fn payer(&self) -> Result<AccountId, Problem> {
        account_id(&self.record.credit, "transfer.credit").map_err(nonsense)
    }

    fn is_origin_of(&self, made: &TransferRecord, purpose: Purpose) -> bool {
        let reversed = purpose.reversed_transfer().map(wire::convert::id_to_wire);
        reversed.as_ref() == Some(&self.record.id) && made.credit == self.record.debit
    }
}

impl Stored for FoundHold {
    const WHAT: &'static str = "hold";
    const NOT_FOUND: Code = Code::HoldNotFound;

    fn debit(&self) -> &str {
        self.key.debit.as_str()
    }

    fn mark(problem: Problem, id: TransferId) -> Problem {
        problem.with_hold(id.0)
    }

    fn may_be_read(&self, access: &Access) -> bool {
        access.may_read(&self.key.debit)
    }

    fn payer(&self) -> Result<AccountId, Problem> {
        Ok(self.key.debit.clone())
    }

    fn is_origin_of(&self, _: &TransferRecord, purpose: Purpose) -> bool {
        purpose.captured_hold() == Some(self.key.id)
    }
}

// === the one that is meant ===

/// The one to be shown. It is right whatever the shards have that did not answer.
pub fn to_show<T: Stored>(id: TransferId, found: Found<T>) -> Result<T, Problem> {
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

/// The one to be captured, released or reversed. Unless its debit account was given, all shards must have answered: otherwise money could move
/// because another one of that id is out of reach.
pub fn to_act_on<T: Stored>(id: TransferId, debit_given: bool, found: Found<T>) -> Result<T, Problem> {
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

pub fn not_found<T: Stored>(id: TransferId) -> Problem {
    T::mark(Problem::new(T::NOT_FOUND, format!("there is no {} {}", T::WHAT, id.0)), id)
}

/// More than these of one id are left ambiguous: each costs a read, and ids that are chosen as advised have one owner.
const MOST_OF_ONE_ID: usize = 16;

/// Keeps the one that an earlier sending of the same request captured or reversed, if there is one; else all of them. A replay comes before
/// `ambiguous_id`.
///
/// A capture or reversal is stored under an id of its own and names its hold or original. A request that is sent again is therefore known by
/// the transfer that it made, also if the id in its path has become ambiguous since: because another account uses it by now, or because the
/// reversal was given the id of its original.
pub async fn begun_before<T: Stored>(
    edge: &Edge,
    wanted: &FollowUp,
    mut found: Found<T>,
    deadline: RequestDeadline,
) -> Result<Found<T>, Problem> {
    if !(2..=MOST_OF_ONE_ID).contains(&found.found.len()) {
        return Ok(found);
    }
    let asked = found.found.iter().map(async |origin| {
        let payer = origin.payer()?;
        let made = edge.core.find_transfer(wanted.id(&payer), Some(&payer), |_| true, deadline.0).await?;
        for made in made.found {
            let purpose = purpose_from_wire(made.record.purpose.clone()).map_err(nonsense)?;
            if origin.is_origin_of(&made.record, purpose) {
                return Ok(true);
            }
        }
        Ok::<_, Problem>(false)
    });
    let begun = try_join_all(asked).await?;
    if begun.iter().filter(|begun| **begun).count() == 1 {
        let mut begun = begun.into_iter();
        found.found.retain(|_| begun.next().unwrap_or(false));
    }
    Ok(found)
}

// === what the key permits ===

impl Access {
    /// Leaves the holds that the key may read.
    pub fn readable(&self, mut found: Found<FoundHold>) -> Found<FoundHold> {
        found.found.retain(|hold| self.may_read(&hold.key.debit));
        found
    }

    /// Leaves the holds that the key may read, capture or release.
    pub fn in_sight(&self, mut found: Found<FoundHold>) -> Found<FoundHold> {
        found.found.retain(|hold| self.has_hold_in_sight(&hold.key.debit));
        found
    }

    /// Whether holds of this account may be read, captured or released.
    pub fn has_hold_in_sight(&self, debit: &AccountId) -> bool {
        self.may_read(debit) || self.may_debit(debit)
    }

    /// Checks the transfer that a request makes of something stored.
    ///
    /// # Errors
    /// 404 unless the key may read what is stored, 403 unless it may debit and credit these accounts.
    pub fn check_follow_up<T: Stored>(&self, id: TransferId, origin: &T, order: Touched<'_>) -> Result<(), Problem> {
        let Some(key) = self.key() else { return Ok(()) };
        let side = if !self.may_debit(order.debit) {
            "debit"
        } else if !self.may_credit(order.credit) {
            "credit"
        } else {
            return Ok(());
        };
        Err(if origin.may_be_read(self) {
            let detail = format!("the key {} may not {side} the account that this would {side}", key.name);
            T::mark(Problem::new(Code::NotPermitted, detail), id)
        } else {
            not_found::<T>(id)
        })
    }

    /// Checks the release of a hold.
    ///
    /// # Errors
    /// 403 unless the key may debit the debit account. The hold is in sight.
    pub fn check_release(&self, id: TransferId, hold: &FoundHold) -> Result<(), Problem> {
        match self.key() {
            Some(key) if !self.may_debit(&hold.key.debit) => {
                let detail = format!("the key {} may not debit the account of the hold", key.name);
                Err(Problem::new(Code::NotPermitted, detail).with_hold(id.0))
            }
            _ => Ok(()),
        }
    }
}

// === captures and reversals as ordered ===

/// A capture or reversal as ordered. The accounts and the asset are those of the hold or original. Until it is found, a derived id and the scale
/// of the amount are not known.
#[derive(Debug)]
pub struct FollowUp {
    id: GivenId,
    amount: Option<String>,
    /// Of a capture: whether it releases what is left of the hold.
    pub finalize: bool,
}

impl FollowUp {
    /// Reads a capture or reversal whose body has these members. Without an id of its own it takes the one derived from `key`.
    pub fn read(
        text: &str,
        assets: &AssetRegistry,
        known: &[&str],
        key: Option<&str>,
        finalizes_unless_told: bool,
    ) -> Result<Self, Problem> {
        read_body(text, assets, |reader, node| {
            let object = reader.object(node, Pointer::Root, known)?;
            let id = reader.transfer_id(object, IdSource::BodyOrKey(key));
            let amount = reader.amount_text(object);
            let finalize = reader.boolean(object, "final");
            Some(Self { id: id?, amount: amount?, finalize: finalize?.unwrap_or(finalizes_unless_told) })
        })
    }

    /// Its id as a transfer of this account.
    pub fn id(&self, debit: &AccountId) -> TransferId {
        self.id.of(debit)
    }

    /// The amount in minor units, now that the scale is known; `None`: all there is.
    pub fn amount(&self, scale: u32) -> Result<Option<i64>, Problem> {
        let Some(text) = &self.amount else { return Ok(None) };
        values::positive_amount(text, scale)
            .map(Some)
            .map_err(|detail| Problem::body(Code::InvalidAmount, "/amount", detail))
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
