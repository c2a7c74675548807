//! The ledger: it takes one request and gives one answer. This file holds accounts and batches.

mod holds;
mod transfers;
mod views;

use std::{collections::BTreeMap, sync::Arc};

use rpds::RedBlackTreeMapSync;
use serde_json::{Value, json};

use crate::{
    Account, Changes, Id, Named, NewAccount, Payment, Request, Status, account::Entry, posting::Refusal,
    shards::Shards,
};

pub use self::{
    holds::{Hold, HoldState},
    transfers::{Fate, Order, Transfer},
};

/// The text that stands in the place of every time in an answer.
pub const TIME: &str = "TIME";

/// The debit account and the id.
type Key = (String, Id);

/// All accounts, transfers and holds. Clones share the maps until one of them changes, because a search for a serial order clones the
/// ledger for each request that it tries.
#[derive(Debug, Clone)]
pub struct Ledger {
    shards: Arc<Shards>,
    accounts: RedBlackTreeMapSync<String, Account>,
    transfers: RedBlackTreeMapSync<Key, Transfer>,
    holds: RedBlackTreeMapSync<Key, Hold>,
    /// The number of requests so far.
    requests: usize,
}

/// An answer as a client's program sees it: without texts for people, and with [`TIME`] in the place of times.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// The header `Idempotent-Replayed`.
    pub replayed: bool,
    pub body: Value,
}

/// The reason for a line of the journal.
#[derive(Default)]
struct Cause {
    transfer: Option<Id>,
    hold: Option<Id>,
    counterparty: Option<String>,
}

impl Ledger {
    /// An empty ledger. `shard_of` has the shard of each account that may be opened.
    pub fn new(shard_of: BTreeMap<String, String>) -> Self {
        Self {
            shards: Arc::new(Shards::new(shard_of)),
            accounts: RedBlackTreeMapSync::new_sync(),
            transfers: RedBlackTreeMapSync::new_sync(),
            holds: RedBlackTreeMapSync::new_sync(),
            requests: 0,
        }
    }

    pub fn apply(&mut self, request: &Request) -> Answer {
        self.requests += 1;
        match request {
            Request::OpenAccount(account) => self.open_account(account),
            Request::OpenAccounts(accounts) => self.open_accounts(accounts),
            Request::ChangeAccount { account, changes } => self.change_account(account, changes),
            Request::Pay { order, dry_run: false } => self.pay(order),
            Request::Pay { order, dry_run: true } => would_post(self.clone().pay(order)),
            Request::PayBatch { items, atomic: false } => self.pay_each(items),
            Request::PayBatch { items, atomic: true } => self.pay_all_or_none(items),
            Request::Hold { order, dry_run: false } => self.place_hold(order),
            Request::Hold { order, dry_run: true } => would_post(self.clone().place_hold(order)),
            Request::Capture(capture) => self.capture(capture),
            Request::Release(release) => self.release(release),
            Request::Reverse(reversal) => self.reverse(reversal),
            Request::ShowAccount(account) => self.show_account(account),
            Request::ListAccounts { prefix } => self.list_accounts(prefix),
            Request::SumBalances { prefix } => self.sum_balances(prefix),
            Request::ShowTransfer(named) => self.show_transfer(named),
            Request::ShowHold(named) => self.show_hold(named),
        }
    }

    /// The answer to a request that only reads. `None` for every other request.
    pub fn read(&self, request: &Request) -> Option<Answer> {
        match request {
            Request::ShowAccount(account) => Some(self.show_account(account)),
            Request::ListAccounts { prefix } => Some(self.list_accounts(prefix)),
            Request::SumBalances { prefix } => Some(self.sum_balances(prefix)),
            Request::ShowTransfer(named) => Some(self.show_transfer(named)),
            Request::ShowHold(named) => Some(self.show_hold(named)),
            _ => None,
        }
    }

    pub fn shard_of(&self, account: &str) -> &str {
        self.shards.of(account)
    }

    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    pub fn account(&self, id: &str) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// The transfer of this name, if there is exactly one.
    pub fn transfer(&self, named: &Named) -> Option<&Transfer> {
        self.find_transfer(named).ok()
    }

    /// The hold of this name, if there is exactly one.
    pub fn hold(&self, named: &Named) -> Option<&Hold> {
        self.find_hold(named).ok()
    }

    pub fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.transfers.values()
    }

    pub fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.holds.values()
    }

    /// Changes an account's balances and writes the line in its journal.
    fn book(&mut self, account: &str, kind: &'static str, posted: i64, held: i64, cause: Cause) {
        let Some(account) = self.accounts.get_mut(account) else { return };
        account.posted += posted;
        account.held += held;
        account.journal.push(Entry {
            request: self.requests,
            kind,
            transfer: cause.transfer,
            hold: cause.hold,
            counterparty: cause.counterparty,
            amount: posted,
            posted: account.posted,
            held: account.held,
        });
    }
}

impl Answer {
    fn ok(status: u16, body: Value) -> Self {
        Self { status, replayed: false, body }
    }

    fn replay(self) -> Self {
        let status = if self.status == 201 { 200 } else { self.status };
        Self { status, replayed: true, ..self }
    }

    fn problem(refusal: &Refusal) -> Self {
        let mut body = serde_json::json!({"status": refusal.status, "code": refusal.code});
        if let Some(side) = refusal.side {
            body["side"] = side.into();
        }
        Self::ok(refusal.status, body)
    }

    fn refused(status: u16, code: &'static str) -> Self {
        Self::problem(&Refusal::whole(status, code))
    }

    /// The id names something with other content.
    fn mismatch(field: &str) -> Self {
        Self::refused(422, "idempotency_mismatch").with("field", field)
    }

    fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.body[member] = value.into();
        self
    }
}

/// The answer to a dry run: a request that would succeed is answered `would_post`. Every other answer stays as it is.
fn would_post(mut answer: Answer) -> Answer {
    if answer.status == 201 {
        answer.status = 200;
        answer.body["status"] = "would_post".into();
        answer.body.as_object_mut().map(|members| members.remove("posted_at"));
    }
    answer
}

impl Ledger {
    fn open_account(&mut self, new: &NewAccount) -> Answer {
        match self.open(new) {
            Ok(created) => {
                let shown = self.show_account(&new.id);
                if created { Answer { status: 201, ..shown } } else { shown.replay() }
            }
            Err(field) => Answer::refused(409, "account_exists").with("field", field),
        }
    }

    fn open_accounts(&mut self, accounts: &[NewAccount]) -> Answer {
        let result = |new: &NewAccount, opened: Result<bool, &str>| match opened {
            Ok(created) => json!({"id": new.id, "status": "created", "replayed": !created}),
            Err(field) => {
                json!({"id": new.id, "status": "failed", "replayed": false, "code": "account_exists", "field": field})
            }
        };
        let results: Vec<Value> = accounts.iter().map(|new| result(new, self.open(new))).collect();
        Answer::ok(200, json!({"results": results}))
    }

    /// `true` if this request opens the account. `false` if the account is as the request says, or was opened by the same request. The
    /// field that differs in every other case.
    fn open(&mut self, new: &NewAccount) -> Result<bool, &'static str> {
        if let Some(there) = self.accounts.get(&new.id) {
            return match there.differs_from(new) {
                Some(_) if there.opening == *new => Ok(false),
                Some(field) => Err(field),
                None => Ok(false),
            };
        }
        let account = Account {
            id: new.id.clone(),
            asset: new.asset,
            status: Status::Open,
            posted: 0,
            held: 0,
            overdraft: new.overdraft,
            max_balance: new.max_balance,
            metadata: new.metadata.clone(),
            opening: new.clone(),
            journal: Vec::new(),
        };
        self.accounts.insert_mut(new.id.clone(), account);
        self.book(&new.id, "opened", 0, 0, Cause::default());
        Ok(true)
    }

    fn change_account(&mut self, id: &str, changes: &Changes) -> Answer {
        let Some(before) = self.accounts.get(id) else {
            return Answer::refused(404, "account_not_found");
        };
        let mut after = before.clone();
        after.status = changes.status.unwrap_or(before.status);
        after.overdraft = changes.overdraft.unwrap_or(before.overdraft);
        after.max_balance = changes.max_balance.unwrap_or(before.max_balance);
        after.metadata = changes.metadata.clone().unwrap_or_else(|| before.metadata.clone());

        if after.status == Status::Closed && (after.posted != 0 || after.held != 0) {
            return Answer::refused(409, "account_not_empty");
        }
        if after.available().is_some_and(|available| available < 0) {
            return Answer::refused(422, "insufficient_funds");
        }
        let same = after.status == before.status
            && after.overdraft == before.overdraft
            && after.max_balance == before.max_balance
            && after.metadata == before.metadata;
        if !same {
            self.accounts.insert_mut(id.to_owned(), after);
            self.book(id, "updated", 0, 0, Cause::default());
        }
        self.show_account(id)
    }
}

impl Ledger {
    fn pay_each(&mut self, items: &[Payment]) -> Answer {
        if let Some(answer) = malformed(items) {
            return answer;
        }
        let results: Vec<Value> = items.iter().map(|item| result(item, &self.pay(item))).collect();
        Answer::ok(200, json!({"results": results}))
    }

    fn pay_all_or_none(&mut self, items: &[Payment]) -> Answer {
        if let Some(answer) = malformed(items) {
            return answer;
        }
        let first = &items[0].debit;
        if items.iter().any(|item| self.shards.differ(first, &item.debit) || self.shards.differ(first, &item.credit))
        {
            return Answer::refused(422, "atomic_cross_shard");
        }
        let before = self.clone();
        let answers: Vec<Answer> = items.iter().map(|item| self.pay(item)).collect();
        let posted = |answer: &Answer| matches!(answer.status, 200 | 201);
        let results: Vec<Value> = match answers.iter().position(|answer| !posted(answer)) {
            None => items.iter().zip(&answers).map(|(item, answer)| result(item, answer)).collect(),
            Some(culprit) => {
                *self = before;
                // The request stores nothing under this id.
                let failed = |mut result: Value| {
                    result["status"] = "failed".into();
                    result
                };
                let one = |(index, item): (usize, &Payment)| match index == culprit {
                    // An earlier request was refused under this id, and that refusal stays stored.
                    true if answers[culprit].replayed => result(item, &answers[culprit]),
                    true => failed(result(item, &answers[culprit])),
                    false => failed(result(item, &Answer::refused(422, "batch_failed"))),
                };
                items.iter().enumerate().map(one).collect()
            }
        };
        Answer::ok(200, json!({"results": results}))
    }
}

fn malformed(items: &[Payment]) -> Option<Answer> {
    if items.iter().any(|item| item.debit == item.credit) {
        return Some(Answer::refused(400, "same_account"));
    }
    let twice = |(index, item): (usize, &Payment)| items[..index].iter().any(|earlier| earlier.id == item.id);
    items.iter().enumerate().any(twice).then(|| Answer::refused(400, "duplicate_id"))
}

/// The result of an item of a batch, made from the answer that the same transfer gets alone.
fn result(item: &Payment, answer: &Answer) -> Value {
    let code = answer.body["code"].as_str();
    let side = answer.body["side"].as_str();
    let status = match (code, side) {
        (None, _) => "posted",
        // The request stores nothing under this id.
        (Some("idempotency_mismatch"), _) | (Some("account_not_found"), Some("debit")) => "failed",
        (Some(_), _) => "rejected",
    };
    let mut result = json!({"id": item.id, "status": status, "replayed": answer.replayed});
    for member in ["code", "side", "field"] {
        if let Some(value) = answer.body.get(member) {
            result[member] = value.clone();
        }
    }
    result
}
