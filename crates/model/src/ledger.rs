//! The ledger itself: a request, an answer.

mod accounts;
mod batches;
mod holds;
mod transfers;
mod views;

use std::{collections::BTreeMap, sync::Arc};

use rpds::RedBlackTreeMapSync;
use serde_json::Value;

pub use self::{
    holds::{Hold, HoldState},
    transfers::{Fate, Order, Transfer},
};
use crate::{Account, Id, Named, Request, account::Entry, posting::Refusal, shards::Shards};

/// Stands for every time in an answer.
pub const TIME: &str = "TIME";

/// (debit account, id)
type Key = (String, Id);

/// Everything there is. A clone shares what neither of the two changes: a search for a serial order makes one for each request that it tries.
#[derive(Debug, Clone)]
pub struct Ledger {
    shards: Arc<Shards>,
    accounts: RedBlackTreeMapSync<String, Account>,
    transfers: RedBlackTreeMapSync<Key, Transfer>,
    holds: RedBlackTreeMapSync<Key, Hold>,
    /// Requests so far.
    requests: usize,
}

/// What a client sees of an answer, with times as [`TIME`] and without what is for people to read.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// The header `Idempotent-Replayed`.
    pub replayed: bool,
    pub body: Value,
}

/// A journal line's reason.
#[derive(Default)]
struct Cause {
    transfer: Option<Id>,
    hold: Option<Id>,
    counterparty: Option<String>,
}

impl Ledger {
    /// Empty, with the shard of each account that may be opened.
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

    /// The answer to a request that changes nothing whatever is there; `None` for every other request.
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

    /// The one transfer of that name.
    pub fn transfer(&self, named: &Named) -> Option<&Transfer> {
        self.find_transfer(named).ok()
    }

    /// The one hold of that name.
    pub fn hold(&self, named: &Named) -> Option<&Hold> {
        self.find_hold(named).ok()
    }

    pub fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.transfers.values()
    }

    pub fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.holds.values()
    }

    /// Changes an account's money and writes its journal line.
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

    /// The id is taken, by other content.
    fn mismatch(field: &str) -> Self {
        Self::refused(422, "idempotency_mismatch").with("field", field)
    }

    fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.body[member] = value.into();
        self
    }
}

/// A dry run's answer: what would be posted or held is shown and not there; everything else is answered as it is.
fn would_post(mut answer: Answer) -> Answer {
    if answer.status == 201 {
        answer.status = 200;
        answer.body["status"] = "would_post".into();
        answer.body.as_object_mut().map(|members| members.remove("posted_at"));
    }
    answer
}
