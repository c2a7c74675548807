//! Accounts in id order over all shards: each gives its first ones, and those that come first of all are the page.

use std::sync::Arc;

use ledger::AccountPrefix;

use super::every_shard::{self, Question, Said};
use crate::{
    service::{AccountPage, CallError, Core, Deadline, Located},
    shard::{NodeClient, Shard},
};

struct Page<'a> {
    prefix: &'a AccountPrefix,
    after: &'a str,
    limit: u32,
}

/// A shard out of reach fails the whole: a list with holes would look like any other.
pub async fn page(
    core: &Core,
    prefix: &AccountPrefix,
    after: &str,
    limit: u32,
    deadline: Deadline,
) -> Result<AccountPage, CallError> {
    let said = every_shard::ask(core, &Page { prefix, after, limit }, deadline).await;
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
        (Arc::from(shard), wire::ListAccountsResponse { accounts, has_more, not_owner: Vec::new() })
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
    fn one_shard_with_more_means_more() {
        let pages = vec![page("s0", &["a"], true), page("s1", &[], false)];
        assert_eq!(merged(pages, 1), ("a@s0".to_owned(), true));
    }
}
