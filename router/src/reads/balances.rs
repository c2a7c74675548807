//! Sums of balances over all shards. A shard that does not answer in time is left out and named.

use std::{str::FromStr, sync::Arc, time::Duration};

use ledger::AccountPrefix;
use tokio::time::Instant;

use super::every_shard::{self, Question, Said};
use crate::{
    service::{BalanceSum, BalanceSums, CallError, Core, Deadline},
    shard::{NodeClient, Shard},
};

/// The part of a request's time that is reserved for answering without late shards.
const ANSWER_SHARE: u32 = 10;
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

struct Sums<'a> {
    prefix: &'a AccountPrefix,
    at_us: Option<i64>,
}

/// The sums now, or as of a time in microseconds since the epoch.
pub async fn sum(
    core: &Core,
    prefix: &AccountPrefix,
    at_us: Option<i64>,
    deadline: Deadline,
) -> Result<BalanceSums, CallError> {
    let until = shards_deadline(Instant::now(), deadline);
    let mut sums = BalanceSums::default();
    let mut answered = false;
    for Said { shard, answer } in every_shard::ask(core, &Sums { prefix, at_us }, until).await {
        match answer {
            Ok(answer) => {
                answered = true;
                add(&mut sums, &shard, answer.sums)?;
            }
            Err(nonsense @ CallError::Internal { .. }) => return Err(nonsense),
            Err(error) => {
                sums.missing.push(shard);
                if at_us.is_some() {
                    note_late(&mut sums, error);
                }
            }
        }
    }
    // If two shards claim one slot, the sums would omit the accounts of one of them.
    for shard in core.routing.disputed() {
        if !sums.missing.contains(&shard) {
            sums.missing.push(shard);
        }
    }
    // Sums without any shard's part would look like those of a prefix without accounts.
    match sums.incomplete() {
        Some(error) if !answered => Err(error),
        _ => Ok(sums),
    }
}

/// Takes note of why a shard's part of the sums as of a time is late. That a node gave it up, which the client can do something about, counts
/// more than a turn that did not come.
fn note_late(sums: &mut BalanceSums, error: CallError) {
    match (&sums.late, &error) {
        (None | Some(CallError::Deadline { .. }), CallError::Unfinished { .. })
        | (None, CallError::Deadline { .. }) => {
            sums.late = Some(error);
        }
        _ => {}
    }
}

fn shards_deadline(now: Instant, deadline: Deadline) -> Instant {
    deadline - (deadline.saturating_duration_since(now) / ANSWER_SHARE).min(ANSWER_TIME_MAX)
}

fn add(sums: &mut BalanceSums, shard: &Arc<str>, more: Vec<wire::AssetSum>) -> Result<(), CallError> {
    for more in more {
        let number = |text: &str| i128::from_str(text).map_err(|reason| CallError::nonsense(shard, reason));
        let overflow = || CallError::nonsense(shard, "a sum of balances beyond 128 bits");
        let sum = sums.assets.entry(more.asset).or_default();
        *sum = BalanceSum {
            posted: sum.posted.checked_add(number(&more.posted)?).ok_or_else(overflow)?,
            held: sum.held.checked_add(number(&more.held)?).ok_or_else(overflow)?,
            accounts: sum.accounts.checked_add(more.accounts).ok_or_else(overflow)?,
        };
    }
    Ok(())
}

impl Question for Sums<'_> {
    type Answer = wire::SumBalancesResponse;

    async fn ask(
        &self,
        shard: &Shard,
        slots: Vec<wire::SlotRange>,
        deadline: Deadline,
    ) -> Result<wire::SumBalancesResponse, CallError> {
        let ask = |mut node: NodeClient| {
            let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis();
            let request = wire::SumBalancesRequest {
                prefix: self.prefix.as_str().to_owned(),
                slots: slots.clone(),
                timeout_ms: u32::try_from(left_ms).unwrap_or(u32::MAX),
                at_us: self.at_us,
            };
            async move { node.sum_balances(request).await }
        };
        match self.at_us {
            None => shard.scan(deadline, ask).await,
            Some(_) => shard.long_scan(deadline, ask).await,
        }
    }

    fn not_owner(answer: &wire::SumBalancesResponse) -> &[wire::NotOwner] {
        &answer.not_owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(asset: &str, posted: i128, held: i128, accounts: u64) -> wire::AssetSum {
        let asset = asset.to_owned();
        wire::AssetSum { asset, posted: posted.to_string(), held: held.to_string(), accounts }
    }

    #[test]
    fn sums_add_up_by_asset_beyond_64_bits() {
        let (shard, mut sums) = (Arc::from("s0"), BalanceSums::default());
        let large = i128::from(i64::MAX);
        add(&mut sums, &shard, vec![of("USD", large, 5, 2), of("EUR", -3, 0, 1)]).unwrap();
        add(&mut sums, &shard, vec![of("USD", large, 0, 1)]).unwrap();
        assert_eq!(sums.assets["USD"], BalanceSum { posted: 2 * large, held: 5, accounts: 3 });
        assert_eq!(sums.assets["EUR"], BalanceSum { posted: -3, held: 0, accounts: 1 });
        assert!(add(&mut sums, &shard, vec![of("USD", i128::MAX, 0, 1)]).is_err());
        let not_a_number = wire::AssetSum { posted: "1.5".to_owned(), held: "0".to_owned(), ..Default::default() };
        assert!(add(&mut sums, &shard, vec![not_a_number]).is_err());
    }

    #[test]
    fn a_sum_whose_turn_did_not_come_is_not_said_to_take_too_long() {
        let of = |errors: &[CallError]| {
            let mut sums = BalanceSums { missing: vec!["s0".into()], ..BalanceSums::default() };
            errors.iter().for_each(|error| note_late(&mut sums, error.clone()));
            sums.incomplete()
        };
        let late = CallError::Deadline { shard: "s0".into() };
        let unfinished = CallError::Unfinished { shard: "s1".into() };
        let silent = CallError::Unavailable { shard: "s0".into() };
        assert_eq!(of(std::slice::from_ref(&late)), Some(late.clone()));
        assert_eq!(of(&[late, unfinished.clone(), silent.clone()]), Some(unfinished));
        assert_eq!(of(std::slice::from_ref(&silent)), Some(silent));
    }

    #[test]
    fn the_answer_has_time_of_its_own() {
        let now = Instant::now();
        let left = |ms| shards_deadline(now, now + Duration::from_millis(ms)) - now;
        assert_eq!(left(1_000), Duration::from_millis(900));
        assert_eq!(left(30_000), Duration::from_millis(29_500));
        assert_eq!(left(0), Duration::ZERO);
    }
}
