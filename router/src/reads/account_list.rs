//! Accounts in id order over all shards: each gives its first ones, and those that come first of all are the page.

use std::sync::Arc;

use ledger::AccountPrefix;

use super::every_shard::{self, Question, Said};
use crate::{
    service::{AccountPage, AccountsAtPage, CallError, Core, Deadline, Located},
    shard::{NodeClient, Shard},
};

struct Page<'a> {
    prefix: &'a AccountPrefix,
    after: &'a str,
    limit: u32,
    /// As of this time, in microseconds since the epoch.
    at_us: Option<i64>,
}

/// A shard out of reach fails the whole: a list with holes would look like any other.
pub async fn page(
    core: &Core,
    prefix: &AccountPrefix,
    after: &str,
    limit: u32,
    deadline: Deadline,
) -> Result<AccountPage, CallError> {
    let said = every_shard::ask(core, &Page { prefix, after, limit, at_us: None }, deadline).await;
    let mut pages = Vec::with_capacity(said.len());
    for Said { shard, answer } in said {
        let page = answer?;
        let in_range = |account: &wire::Account| prefix.begins(&account.id) && account.id.as_str() > after;
        if !page.accounts.iter().all(in_range) || !page.accounts.is_sorted_by(|one, next| one.id < next.id) {
            return Err(CallError::nonsense(&shard, "accounts that were not asked for, or not in order"));
        }
        pages.push((shard, page));
    }
    Ok(merge(pages, limit as usize))
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

/// The accounts after the id `after` as of a time, at least as far as the shard with the densest ids reaches in one page of `limit`.
///
/// Every page asks all shards for what comes after one id, as [`page`] does: ids that a shard gave beyond the page are asked for again,
/// so that an account whose slot moves between two pages is in one of them.
pub async fn page_at(
    core: &Core,
    prefix: &AccountPrefix,
    after: &str,
    limit: u32,
    at_us: i64,
    deadline: Deadline,
) -> Result<AccountsAtPage, CallError> {
    let said = every_shard::ask(core, &Page { prefix, after, limit, at_us: Some(at_us) }, deadline).await;
    let mut pages = Vec::with_capacity(said.len());
    for Said { shard, answer } in said {
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

impl Question for Page<'_> {
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
}
