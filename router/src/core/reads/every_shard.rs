//! Lists and sums over every shard. Each shard is asked about the slots that this router takes it for the owner of.
//!
//! A shard answers for all of its slots or names those it does not own; then all shards are asked again under the routes learnt. The answers
//! together therefore have each slot exactly once, also while slots move.

use std::{str::FromStr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use ledger::{AccountPrefix, outcome::NotOwner};
use tokio::time::Instant;

use crate::core::{
    Core,
    call::{CallError, Deadline},
    handover::Load,
    reply::{AccountPage, AccountsAtPage, BalanceSum, BalanceSums, Located},
    rerouting::{Learnt, Reroutes},
    shard::{NodeClient, Shard},
};

/// The part of a request's time that is reserved for answering without late shards.
const ANSWER_SHARE: u32 = 10;
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

impl Core {
    /// At most `limit` accounts over all shards whose ids have this prefix and come after `after`, in byte order. A shard out of reach
    /// fails the whole, because a list with holes would look complete.
    pub async fn list_accounts(
        &self,
        prefix: &AccountPrefix,
        after: &str,
        limit: u32,
        deadline: Deadline,
    ) -> Result<AccountPage, CallError> {
        let said = ask(self, &Page { prefix, after, limit, at_us: None }, deadline).await;
        let mut pages = Vec::with_capacity(said.len());
        for ShardAnswer { shard, answer } in said {
            let page = answer?;
            let in_range = |account: &wire::Account| prefix.begins(&account.id) && account.id.as_str() > after;
            if !page.accounts.iter().all(in_range) || !page.accounts.is_sorted_by(|one, next| one.id < next.id) {
                return Err(CallError::nonsense(&shard, "accounts that were not asked for, or not in order"));
            }
            pages.push((shard, page));
        }
        Ok(merge(pages, limit as usize))
    }

    /// The accounts after the id `after` as of a time, at least as far as the shard with the densest ids reaches in one page of `limit`.
    ///
    /// Every page asks all shards for what comes after one id, as [`Core::list_accounts`] does: ids that a shard gave beyond the page are asked for again,
    /// so that an account whose slot moves between two pages is in one of them.
    pub async fn list_accounts_at(
        &self,
        prefix: &AccountPrefix,
        after: &str,
        limit: u32,
        at_us: i64,
        deadline: Deadline,
    ) -> Result<AccountsAtPage, CallError> {
        let said = ask(self, &Page { prefix, after, limit, at_us: Some(at_us) }, deadline).await;
        let mut pages = Vec::with_capacity(said.len());
        for ShardAnswer { shard, answer } in said {
            let page = answer?;
            let in_range = |account: &wire::AccountAt| prefix.begins(&account.id) && account.id.as_str() > after;
            let goes_on = !page.has_more || page.last.as_str() > after;
            if !goes_on || !page.at.iter().all(in_range) || !page.at.is_sorted_by(|one, next| one.id < next.id) {
                return Err(CallError::nonsense(&shard, "accounts that were not asked for, or not in order"));
            }
            pages.push(page);
        }
        Ok(up_to_frontier(pages))
    }

    /// The sums of all accounts whose ids have this prefix, now or as of a time in microseconds since the epoch. A shard that does not answer
    /// in time is left out and named.
    pub async fn sum_balances(
        &self,
        prefix: &AccountPrefix,
        at_us: Option<i64>,
        deadline: Deadline,
    ) -> Result<BalanceSums, CallError> {
        let until = shards_deadline(Instant::now(), deadline);
        let mut sums = BalanceSums::default();
        let mut answered = false;
        for ShardAnswer { shard, answer } in ask(self, &Sums { prefix, at_us }, until).await {
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
        for shard in self.routing.disputed() {
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
}

// === questions to every shard ===

/// A question about the accounts of some slots.
trait SlotsQuestion: Sync {
    type Answer: Send;

    fn ask(
        &self,
        shard: &Shard,
        slots: Vec<wire::SlotRange>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Self::Answer, CallError>> + Send;

    /// The slots the shard does not own.
    fn not_owner(answer: &Self::Answer) -> &[wire::NotOwner];
}

/// The answer of one shard.
struct ShardAnswer<A> {
    shard: Arc<str>,
    answer: Result<A, CallError>,
}

/// Asks every shard that has slots.
async fn ask<Q: SlotsQuestion>(core: &Core, question: &Q, deadline: Deadline) -> Vec<ShardAnswer<Q::Answer>> {
    let mut reroutes = Reroutes::new(deadline);
    loop {
        let asked = core.view().shards_with_slots().into_iter().map(|(shard, slots)| async move {
            let answer = question.ask(&shard, slots.into_iter().map(wire::SlotRange::from).collect(), deadline).await;
            ShardAnswer { shard: Arc::clone(shard.id()), answer }
        });
        let mut said = join_all(asked).await;
        let (mut rerouted, mut learnt) = (false, Learnt::Owners);
        for ShardAnswer { shard, answer } in &mut said {
            let refusals = answer.as_ref().map_or(&[][..], Q::not_owner);
            if refusals.is_empty() {
                continue;
            }
            match refusals.iter().cloned().map(NotOwner::try_from).collect::<Result<Vec<_>, _>>() {
                Ok(refusals) => {
                    rerouted = true;
                    learnt = learnt.and(core.learn(shard, &refusals));
                    // This error stays if the routes cannot be put right in time.
                    *answer = Err(CallError::Unavailable { shard: Arc::clone(shard) });
                }
                Err(reason) => *answer = Err(CallError::nonsense(shard, reason)),
            }
        }
        if !rerouted || !core.again(&mut reroutes, &learnt, Load::READ).await {
            return said;
        }
    }
}

// === accounts in id order ===

struct Page<'a> {
    prefix: &'a AccountPrefix,
    after: &'a str,
    limit: u32,
    /// As of this time, in microseconds since the epoch.
    at_us: Option<i64>,
}

/// The first of all, where each shard gave at least its first `limit`.
fn merge(pages: Vec<(Arc<str>, wire::ListAccountsResponse)>, limit: usize) -> AccountPage {
    let mut has_more = pages.iter().any(|(_, page)| page.has_more);
    let mut accounts: Vec<Located<wire::Account>> = Vec::new();
    for (shard, page) in pages {
        accounts.extend(page.accounts.into_iter().map(|value| Located { shard: Arc::clone(&shard), value }));
    }
    // Runs in order are merged, not sorted anew. An id lives on one shard, so none is there twice.
    accounts.sort_by(|one, other| one.value.id.cmp(&other.value.id));
    has_more |= accounts.len() > limit;
    accounts.truncate(limit);
    AccountPage { accounts, has_more }
}

/// The accounts up to the last id that every shard's page covers.
fn up_to_frontier(pages: Vec<wire::ListAccountsResponse>) -> AccountsAtPage {
    let next = pages.iter().filter(|page| page.has_more).map(|page| page.last.clone()).min();
    let mut accounts: Vec<wire::AccountAt> = pages.into_iter().flat_map(|page| page.at).collect();
    if let Some(frontier) = &next {
        accounts.retain(|account| account.id <= *frontier);
    }
    accounts.sort_by(|one, other| one.id.cmp(&other.id));
    AccountsAtPage { accounts, next }
}

impl SlotsQuestion for Page<'_> {
    type Answer = wire::ListAccountsResponse;

    async fn ask(
        &self,
        shard: &Shard,
        slots: Vec<wire::SlotRange>,
        deadline: Deadline,
    ) -> Result<wire::ListAccountsResponse, CallError> {
        let request = wire::ListAccountsRequest {
            prefix: self.prefix.as_str().to_owned(),
            after: self.after.to_owned(),
            limit: self.limit,
            slots,
            at_us: self.at_us,
        };
        let ask = |mut node: NodeClient| {
            let request = request.clone();
            async move { node.list_accounts(request).await }
        };
        shard.read(deadline, ask).await
    }

    fn not_owner(answer: &wire::ListAccountsResponse) -> &[wire::NotOwner] {
        &answer.not_owner
    }
}

// === sums of balances ===

struct Sums<'a> {
    prefix: &'a AccountPrefix,
    at_us: Option<i64>,
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

impl SlotsQuestion for Sums<'_> {
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

    fn page(shard: &str, ids: &[&str], has_more: bool) -> (Arc<str>, wire::ListAccountsResponse) {
        let accounts = ids.iter().map(|id| wire::Account { id: (*id).to_owned(), ..Default::default() }).collect();
        (Arc::from(shard), wire::ListAccountsResponse { accounts, has_more, ..Default::default() })
    }

    fn merged(pages: Vec<(Arc<str>, wire::ListAccountsResponse)>, limit: usize) -> (String, bool) {
        let AccountPage { accounts, has_more } = merge(pages, limit);
        let ids: Vec<String> =
            accounts.iter().map(|account| format!("{}@{}", account.value.id, account.shard)).collect();
        (ids.join(" "), has_more)
    }

    #[test]
    fn the_first_of_all_are_the_page_in_the_order_of_bytes() {
        let pages =
            || vec![page("s0", &["B", "a", "c"], false), page("s1", &[], false), page("s2", &["A", "b"], false)];
        assert_eq!(merged(pages(), 10), ("A@s2 B@s0 a@s0 b@s2 c@s0".to_owned(), false));
        assert_eq!(merged(pages(), 5), ("A@s2 B@s0 a@s0 b@s2 c@s0".to_owned(), false));
        assert_eq!(merged(pages(), 3), ("A@s2 B@s0 a@s0".to_owned(), true));
        assert_eq!(merged(Vec::new(), 3), (String::new(), false));
    }

    #[test]
    fn a_page_at_a_time_ends_where_the_first_shard_ends() {
        let page = |ids: &[&str], last: &str, has_more| wire::ListAccountsResponse {
            at: ids.iter().map(|id| wire::AccountAt { id: (*id).to_owned(), ..Default::default() }).collect(),
            last: last.to_owned(),
            has_more,
            ..Default::default()
        };
        let read = |pages| {
            let AccountsAtPage { accounts, next } = up_to_frontier(pages);
            let ids: Vec<String> = accounts.into_iter().map(|account| account.id).collect();
            (ids.join(" "), next)
        };
        // `c` was opened later; the shard looked at it, and there is nothing to show of it.
        let pages =
            || vec![page(&["B", "a"], "c", true), page(&["A", "d", "e"], "e", false), page(&["b"], "g", true)];
        assert_eq!(read(pages()), ("A B a b".to_owned(), Some("c".to_owned())));
        assert_eq!(read(vec![page(&["b"], "b", false), page(&["a"], "a", false)]), ("a b".to_owned(), None));
        assert_eq!(read(vec![page(&[], "x", true), page(&["y"], "y", false)]), (String::new(), Some("x".to_owned())));
    }

    #[test]
    fn one_shard_with_more_means_more() {
        let pages = vec![page("s0", &["a"], true), page("s1", &[], false)];
        assert_eq!(merged(pages, 1), ("a@s0".to_owned(), true));
    }

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
