//! Opening and changing accounts.

use serde_json::{Value, json};

use super::{Answer, Cause, Ledger};
use crate::{Account, Changes, NewAccount, Status};

impl Ledger {
    pub(super) fn open_account(&mut self, new: &NewAccount) -> Answer {
        match self.open(new) {
            Ok(created) => {
                let shown = self.show_account(&new.id);
                if created { Answer { status: 201, ..shown } } else { shown.replay() }
            }
            Err(field) => Answer::refused(409, "account_exists").with("field", field),
        }
    }

    pub(super) fn open_accounts(&mut self, accounts: &[NewAccount]) -> Answer {
        let result = |new: &NewAccount, opened: Result<bool, &str>| match opened {
            Ok(created) => json!({"id": new.id, "status": "created", "replayed": !created}),
            Err(field) => {
                json!({"id": new.id, "status": "failed", "replayed": false, "code": "account_exists", "field": field})
            }
        };
        let results: Vec<Value> = accounts.iter().map(|new| result(new, self.open(new))).collect();
        Answer::ok(200, json!({"results": results}))
    }

    /// `true` if it is new, `false` if it is there just so or was opened just so, or the field in which it differs now.
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

    pub(super) fn change_account(&mut self, id: &str, changes: &Changes) -> Answer {
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
