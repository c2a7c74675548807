//! Reads: asked of the shard that owns the account, and asked again elsewhere when it turns out not to; those about many
//! accounts are asked of [`every_shard`].

mod account_list;
mod balances;
mod by_keys;
mod every_shard;
mod holds;
#[cfg(test)]
mod tests;
mod transfers;

use std::sync::Arc;

use ledger::{AccountId, outcome::NotOwner};
use tonic::{Response, Status};
use wire::{
    BalanceAtResponse, GetAccountResponse, ListEntriesResponse, balance_at_response, get_account_response,
    list_entries_response,
};

pub use self::{
    account_list::{page as list_accounts, page_at as list_accounts_at},
    balances::sum as sum_balances,
    by_keys::{holds_of, transfers_of},
    holds::find as find_hold,
    transfers::find as find_transfer,
};
use crate::{
    service::{CallError, Core, Deadline, Learnt, Load, Located, Reroutes},
    shard::{NodeClient, Shard},
};

/// What a shard says about something of one account.
enum Reading<T> {
    Found(T),
    NotFound,
    NotOwner(wire::NotOwner),
    /// The answer is empty.
    Nothing,
}

/// A question about one account.
trait Question: Clone + Send {
    type Answer: Send;
    type Value: Send;

    fn ask(self, node: NodeClient) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
    fn read(answer: Self::Answer) -> Reading<Self::Value>;
}

pub async fn account(
    core: &Core,
    id: &AccountId,
    deadline: Deadline,
) -> Result<Option<Located<wire::Account>>, CallError> {
    at_owner(core, id, wire::GetAccountRequest { id: id.to_string() }, deadline).await
}

pub async fn entries(
    core: &Core,
    id: &AccountId,
    request: wire::ListEntriesRequest,
    deadline: Deadline,
) -> Result<Option<wire::EntryPage>, CallError> {
    let page = at_owner(core, id, request, deadline).await?;
    Ok(page.map(|page| page.value))
}

pub async fn balance_at(
    core: &Core,
    id: &AccountId,
    at_us: i64,
    deadline: Deadline,
) -> Result<Option<wire::BalanceAt>, CallError> {
    let balance = at_owner(core, id, wire::BalanceAtRequest { account: id.to_string(), at_us }, deadline).await?;
    Ok(balance.map(|balance| balance.value))
}

/// Asks the shard that owns the account, following it when it has moved.
async fn at_owner<Q: Question>(
    core: &Core,
    account: &AccountId,
    question: Q,
    deadline: Deadline,
) -> Result<Option<Located<Q::Value>>, CallError> {
    let mut reroutes = Reroutes::new(deadline);
    loop {
        let view = core.view();
        let shard = view.shard(view.route(account));
        let learnt = match Q::read(ask(shard, &question, deadline).await?) {
            Reading::Found(value) => return Ok(Some(Located { shard: Arc::clone(shard.id()), value })),
            Reading::NotFound => return Ok(None),
            Reading::NotOwner(not_owner) => learn(core, shard, not_owner)?,
            Reading::Nothing => return Err(CallError::nonsense(shard.id(), "an empty answer")),
        };
        if !core.again(&mut reroutes, &learnt, Load::READ).await {
            return Err(CallError::Unavailable { shard: Arc::clone(shard.id()) });
        }
    }
}

/// Asks this shard, whether or not it owns the account.
async fn ask<Q: Question>(shard: &Shard, question: &Q, deadline: Deadline) -> Result<Q::Answer, CallError> {
    shard.read(deadline, |node| question.clone().ask(node)).await
}

fn learn(core: &Core, shard: &Shard, not_owner: wire::NotOwner) -> Result<Learnt, CallError> {
    let not_owner = NotOwner::try_from(not_owner).map_err(|error| CallError::nonsense(shard.id(), error))?;
    Ok(core.learn(shard.id(), &[not_owner]))
}

impl Question for wire::GetAccountRequest {
    type Answer = GetAccountResponse;
    type Value = wire::Account;

    async fn ask(self, mut node: NodeClient) -> Result<Response<GetAccountResponse>, Status> {
        node.get_account(self).await
    }

    fn read(answer: GetAccountResponse) -> Reading<wire::Account> {
        use get_account_response::Outcome;
        match answer.outcome {
            Some(Outcome::Account(account)) => Reading::Found(account),
            Some(Outcome::NotFound(_)) => Reading::NotFound,
            Some(Outcome::NotOwner(not_owner)) => Reading::NotOwner(not_owner),
            None => Reading::Nothing,
        }
    }
}

impl Question for wire::ListEntriesRequest {
    type Answer = ListEntriesResponse;
    type Value = wire::EntryPage;

    async fn ask(self, mut node: NodeClient) -> Result<Response<ListEntriesResponse>, Status> {
        node.list_entries(self).await
    }

    fn read(answer: ListEntriesResponse) -> Reading<wire::EntryPage> {
        use list_entries_response::Outcome;
        match answer.outcome {
            Some(Outcome::Page(page)) => Reading::Found(page),
            Some(Outcome::NotFound(_)) => Reading::NotFound,
            Some(Outcome::NotOwner(not_owner)) => Reading::NotOwner(not_owner),
            None => Reading::Nothing,
        }
    }
}

impl Question for wire::BalanceAtRequest {
    type Answer = BalanceAtResponse;
    type Value = wire::BalanceAt;

    async fn ask(self, mut node: NodeClient) -> Result<Response<BalanceAtResponse>, Status> {
        node.balance_at(self).await
    }

    fn read(answer: BalanceAtResponse) -> Reading<wire::BalanceAt> {
        use balance_at_response::Outcome;
        match answer.outcome {
            Some(Outcome::Balance(balance)) => Reading::Found(balance),
            Some(Outcome::NotFound(_)) => Reading::NotFound,
            Some(Outcome::NotOwner(not_owner)) => Reading::NotOwner(not_owner),
            None => Reading::Nothing,
        }
    }
}
