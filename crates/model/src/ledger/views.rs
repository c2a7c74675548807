//! The answers that show accounts, transfers and holds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Answer, Ledger, TIME,
    holds::{Hold, HoldState},
    transfers::{After, Fate, Purpose, Transfer, named},
};
use crate::{Account, Asset, Named};

impl Ledger {
    pub(super) fn show_account(&self, id: &str) -> Answer {
        let Some(account) = self.accounts.get(id) else {
            return Answer::refused(404, "account_not_found");
        };
        Answer::ok(200, self.account_view(account))
    }

    pub(super) fn list_accounts(&self, prefix: &str) -> Answer {
        let listed: Vec<Value> = self.beginning_with(prefix).map(|account| self.account_view(account)).collect();
        Answer::ok(200, json!({"data": listed, "has_more": false, "next_cursor": null}))
    }

    pub(super) fn sum_balances(&self, prefix: &str) -> Answer {
        let mut sums: BTreeMap<&str, (Asset, i128, i128, usize)> = BTreeMap::new();
        for account in self.beginning_with(prefix) {
            let (_, posted, held, accounts) = sums.entry(account.asset.code).or_insert((account.asset, 0, 0, 0));
            *posted += i128::from(account.posted);
            *held += i128::from(account.held);
            *accounts += 1;
        }
        let sum = |(asset, posted, held, accounts): (Asset, i128, i128, usize)| {
            json!({
                "asset": asset.code,
                "posted": asset.write(posted),
                "held": asset.write(held),
                "accounts": accounts,
            })
        };
        let data: Vec<Value> = sums.into_values().map(sum).collect();
        Answer::ok(200, json!({"data": data, "partial": false, "missing_shards": []}))
    }

    fn beginning_with(&self, prefix: &str) -> impl Iterator<Item = &Account> {
        self.accounts.values().filter(move |account| account.id.starts_with(prefix))
    }

    fn account_view(&self, account: &Account) -> Value {
        let asset = account.asset;
        json!({
            "id": account.id,
            "asset": asset.code,
            "status": account.status.word(),
            "posted": asset.write(account.posted.into()),
            "held": asset.write(account.held.into()),
            "available": write_available(asset, account.available()),
            "overdraft": account.overdraft.map_or("unlimited".to_owned(), |limit| asset.write(limit.into())),
            "max_balance": account.max_balance.map(|limit| asset.write(limit.into())),
            "version": account.version(),
            "shard": self.shards.of(&account.id),
            "metadata": account.metadata,
            "created_at": TIME,
            "updated_at": TIME,
        })
    }

    /// The answer to the request that made the transfer.
    pub(super) fn first_answer(&self, transfer: &Transfer) -> Answer {
        match &transfer.fate {
            Fate::Refused(refusal) => named(Answer::problem(refusal), &transfer.order),
            Fate::Posted(_) => Answer::ok(201, self.transfer_view(transfer)),
        }
    }

    pub(super) fn show_transfer(&self, named: &Named) -> Answer {
        let transfer = match self.find_transfer(named) {
            Ok(transfer) => transfer,
            Err(answer) => return answer,
        };
        let mut body = self.transfer_view(transfer);
        let order = &transfer.order;
        if let Some(steps) = self.shards.steps(&order.debit, &order.credit, transfer.saga) {
            let steps = steps.into_iter().map(|(step, shard)| json!({"step": step, "shard": shard, "at": TIME}));
            body["steps"] = steps.collect();
        }
        if transfer.reversed > 0 {
            body["reversed_amount"] = order.asset.write(transfer.reversed.into()).into();
            body["reversed_by"] = json!(transfer.reversed_by);
            if transfer.reversed == order.amount {
                body["status"] = "reversed".into();
            }
        }
        Answer::ok(200, body)
    }

    fn transfer_view(&self, transfer: &Transfer) -> Value {
        let order = &transfer.order;
        let mut body = json!({
            "id": order.id,
            "scope": self.shards.scope(&order.debit, &order.credit),
            "debit": order.debit,
            "credit": order.credit,
            "amount": order.asset.write(order.amount.into()),
            "asset": order.asset.code,
            "metadata": order.metadata,
            "created_at": TIME,
        });
        match &order.purpose {
            Purpose::Payment => {}
            Purpose::Capture { hold, is_final } => {
                body["hold"] = json!(hold);
                body["final"] = json!(is_final);
            }
            Purpose::Reversal { of } => body["reverses"] = json!(of),
        }
        match &transfer.fate {
            Fate::Posted(after) => {
                body["status"] = "posted".into();
                body["posted_at"] = TIME.into();
                body["debit_account"] = debit_account(order.asset, after);
            }
            Fate::Refused(refusal) => {
                body["status"] = "rejected".into();
                body["rejected_at"] = TIME.into();
                body["reject_code"] = refusal.code.into();
                if let Some(side) = refusal.side {
                    body["side"] = side.into();
                }
            }
        }
        body
    }

    /// The answer to the request that placed the hold.
    pub(super) fn first_answer_of_hold(&self, hold: &Hold) -> Answer {
        match &hold.state {
            HoldState::Refused(refusal) => Answer::problem(refusal).with("hold_id", &*hold.order.id),
            _ => Answer::ok(201, hold_view(&Hold { captured: 0, state: HoldState::Held, ..hold.clone() })),
        }
    }

    pub(super) fn show_hold(&self, named: &Named) -> Answer {
        match self.find_hold(named) {
            Ok(hold) => Answer::ok(200, hold_view(hold)),
            Err(answer) => answer,
        }
    }
}

impl Account {
    /// The account's statement, oldest line first.
    pub fn statement(&self) -> Vec<Value> {
        let asset = self.asset;
        let line = |(index, entry): (usize, &crate::Entry)| {
            json!({
                "version": index + 1,
                "kind": entry.kind,
                "transfer_id": entry.transfer,
                "hold_id": entry.hold,
                "counterparty": entry.counterparty,
                "amount": asset.write(entry.amount.into()),
                "posted": asset.write(entry.posted.into()),
                "held": asset.write(entry.held.into()),
                "created_at": TIME,
            })
        };
        self.journal.iter().enumerate().map(line).collect()
    }
}

fn hold_view(hold: &Hold) -> Value {
    let (order, asset) = (&hold.order, hold.order.asset);
    let status = match &hold.state {
        HoldState::Held => "held",
        HoldState::Captured => "captured",
        HoldState::Released => "released",
        HoldState::Expired => "expired",
        HoldState::Refused(_) => "rejected",
    };
    let mut body = json!({
        "id": order.id,
        "status": status,
        "debit": order.debit,
        "credit": order.credit,
        "asset": asset.code,
        "amount": asset.write(order.amount.into()),
        "captured": asset.write(hold.captured.into()),
        "remaining": asset.write(hold.remaining().into()),
        "metadata": order.metadata,
        "expires_at": order.expires_in_s.map(|_| TIME),
        "created_at": TIME,
    });
    if let Some(after) = &hold.after {
        body["debit_account"] = debit_account(asset, after);
    }
    if let HoldState::Refused(refusal) = &hold.state {
        body["reject_code"] = refusal.code.into();
        body["side"] = refusal.side.into();
    }
    if hold.state != HoldState::Held {
        body["ended_at"] = TIME.into();
    }
    body
}

fn debit_account(asset: Asset, after: &After) -> Value {
    json!({
        "posted": asset.write(after.posted.into()),
        "held": asset.write(after.held.into()),
        "available": write_available(asset, after.available),
        "version": after.version,
    })
}

fn write_available(asset: Asset, available: Option<i128>) -> String {
    available.map_or("unlimited".to_owned(), |available| asset.write(available))
}
