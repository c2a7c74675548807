//! Reads of one account: asked of the shard that owns it, and asked again elsewhere if the account has moved. [`find`] finds transfers and
//! holds, [`every_shard`] reads accounts over all shards.

mod every_shard;
mod find;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ledger::{AccountId, outcome::NotOwner};
use tonic::{Response, Status};
use wire::{
    BalanceAtResponse, GetAccountResponse, ListEntriesResponse, balance_at_response, get_account_response,
    list_entries_response,
};

use super::{
    Core,
    call::{CallError, Deadline},
    handover::Load,
    reply::Located,
    rerouting::{Learnt, Reroutes},
    shard::{NodeClient, Shard},
};

impl Core {
    /// An account as it is.
    pub async fn account(
        &self,
        id: &AccountId,
        deadline: Deadline,
    ) -> Result<Option<Located<wire::Account>>, CallError> {
        at_owner(self, id, wire::GetAccountRequest { id: id.to_string() }, deadline).await
    }

    /// A page of an account's journal.
    pub async fn entries(
        &self,
        request: wire::ListEntriesRequest,
        deadline: Deadline,
    ) -> Result<Option<wire::EntryPage>, CallError> {
        // A text that is not an account id names no account.
        let Ok(id) = AccountId::any(&request.account) else { return Ok(None) };
        let page = at_owner(self, &id, request, deadline).await?;
        Ok(page.map(|page| page.value))
    }

    /// What an account held at a time, in microseconds since the epoch.
    pub async fn balance_at(
        &self,
        id: &AccountId,
        at_us: i64,
        deadline: Deadline,
    ) -> Result<Option<wire::BalanceAt>, CallError> {
        let balance = at_owner(self, id, wire::BalanceAtRequest { account: id.to_string(), at_us }, deadline).await?;
        Ok(balance.map(|balance| balance.value))
    }
}

/// The answer of a shard about something of one account.
enum ReadAnswer<T> {
    Found(T),
    NotFound,
    NotOwner(wire::NotOwner),
    /// The answer is empty.
    Nothing,
}

/// A question about one account.
trait AccountQuestion: Clone + Send {
    type Answer: Send;
    type Value: Send;

    fn ask(self, node: NodeClient) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
    fn read(answer: Self::Answer) -> ReadAnswer<Self::Value>;
}

/// Asks the shard that owns the account, and the next owner if the account has moved.
async fn at_owner<Q: AccountQuestion>(
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
            ReadAnswer::Found(value) => return Ok(Some(Located { shard: Arc::clone(shard.id()), value })),
            ReadAnswer::NotFound => return Ok(None),
            ReadAnswer::NotOwner(not_owner) => learn(core, shard, not_owner)?,
            ReadAnswer::Nothing => return Err(CallError::nonsense(shard.id(), "an empty answer")),
        };
        if !core.again(&mut reroutes, &learnt, Load::READ).await {
            return Err(CallError::Unavailable { shard: Arc::clone(shard.id()) });
        }
    }
}

/// Asks this shard, whether or not it owns the account.
async fn ask<Q: AccountQuestion>(shard: &Shard, question: &Q, deadline: Deadline) -> Result<Q::Answer, CallError> {
    shard.read(deadline, |node| question.clone().ask(node)).await
}

fn learn(core: &Core, shard: &Shard, not_owner: wire::NotOwner) -> Result<Learnt, CallError> {
    let not_owner = NotOwner::try_from(not_owner).map_err(|error| CallError::nonsense(shard.id(), error))?;
    Ok(core.learn(shard.id(), &[not_owner]))
}

impl AccountQuestion for wire::GetAccountRequest {
    type Answer = GetAccountResponse;
    type Value = wire::Account;

    async fn ask(self, mut node: NodeClient) -> Result<Response<GetAccountResponse>, Status> {
        node.get_account(self).await
    }

    fn read(answer: GetAccountResponse) -> ReadAnswer<wire::Account> {
        use get_account_response::Outcome;
        match answer.outcome {
            Some(Outcome::Account(account)) => ReadAnswer::Found(account),
            Some(Outcome::NotFound(_)) => ReadAnswer::NotFound,
            Some(Outcome::NotOwner(not_owner)) => ReadAnswer::NotOwner(not_owner),
            None => ReadAnswer::Nothing,
        }
    }
}

impl AccountQuestion for wire::ListEntriesRequest {
    type Answer = ListEntriesResponse;
    type Value = wire::EntryPage;

    async fn ask(self, mut node: NodeClient) -> Result<Response<ListEntriesResponse>, Status> {
        node.list_entries(self).await
    }

    fn read(answer: ListEntriesResponse) -> ReadAnswer<wire::EntryPage> {
        use list_entries_response::Outcome;
        match answer.outcome {
            Some(Outcome::Page(page)) => ReadAnswer::Found(page),
            Some(Outcome::NotFound(_)) => ReadAnswer::NotFound,
            Some(Outcome::NotOwner(not_owner)) => ReadAnswer::NotOwner(not_owner),
            None => ReadAnswer::Nothing,
        }
    }
}

impl AccountQuestion for wire::BalanceAtRequest {
    type Answer = BalanceAtResponse;
    type Value = wire::BalanceAt;

    async fn ask(self, mut node: NodeClient) -> Result<Response<BalanceAtResponse>, Status> {
        node.balance_at(self).await
    }

    fn read(answer: BalanceAtResponse) -> ReadAnswer<wire::BalanceAt> {
        use balance_at_response::Outcome;
        match answer.outcome {
            Some(Outcome::Balance(balance)) => ReadAnswer::Found(balance),
            Some(Outcome::NotFound(_)) => ReadAnswer::NotFound,
            Some(Outcome::NotOwner(not_owner)) => ReadAnswer::NotOwner(not_owner),
            None => ReadAnswer::Nothing,
        }
    }
}
