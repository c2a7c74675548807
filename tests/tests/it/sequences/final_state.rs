//! When a sequence has ended: every account, transfer, hold and journal line.

use model::{Account, Request};
use serde_json::Value;

use super::{
    compare,
    play::{Play, Stop, Stored},
    wire::Spelling,
};

/// What no later event changes in a transfer or hold.
const LASTING: [&str; 5] = ["created_at", "posted_at", "rejected_at", "expires_at", "debit_account"];

impl Play<'_> {
    pub async fn final_state(&mut self) -> Result<(), Stop> {
        self.transcript.note("in the end");
        let accounts: Vec<Account> = self.ledger.accounts().cloned().collect();
        let mut journals = Vec::new();
        let prefix = self.prefix.clone();
        self.exchange(&Request::ListAccounts { prefix: prefix.clone() }, Spelling::Full).await?;
        self.exchange(&Request::SumBalances { prefix }, Spelling::Full).await?;
        for account in &accounts {
            let page = self.get(Self::statement_path(&account.id)).await?;
            journals.push((account.id.clone(), self.check_statement(account, &page)?));
        }
        for named in self.script.transfers().to_vec() {
            let found = self.show(&Request::ShowTransfer(named.clone())).await?;
            self.check_lasting(&found, self.first_answer(Stored::Transfer, &named))?;
            if self.overlapping.contains(&(named.debit.clone().unwrap_or_default(), named.id.clone())) {
                check_balances_by_journal(&found, &journals)?;
            }
        }
        for named in self.script.holds().to_vec() {
            let found = self.show(&Request::ShowHold(named.clone())).await?;
            self.check_lasting(&found, self.first_answer(Stored::Hold, &named))?;
        }
        Ok(())
    }

    async fn show(&mut self, request: &Request) -> Result<Value, Stop> {
        Ok(self.exchange(request, Spelling::Full).await?.body)
    }

    fn check_statement(&self, account: &Account, page: &Value) -> Result<Vec<Value>, Stop> {
        let entries = page["data"].as_array().cloned().unwrap_or_default();
        let differences = compare::statements(account, &entries);
        if differences.is_empty() && page["has_more"] == false {
            return Ok(entries);
        }
        Err(Stop::Differs(format!("the statement of {}:\n{differences}", account.id)))
    }

    /// What was answered at first is what is there.
    fn check_lasting(&self, found: &Value, first: Option<&Value>) -> Result<(), Stop> {
        let Some(first) = first else { return Ok(()) };
        for member in LASTING {
            if !first[member].is_null() && first[member] != found[member] {
                return Err(Stop::Differs(format!("  {member} was {}, and is {}\n", first[member], found[member])));
            }
        }
        Ok(())
    }
}

/// `debit_account` is what the journal says at that version, whatever else the batch did to the account meanwhile. The last
/// line of a final capture is the release of its hold's rest. (A batch that is refused as a whole may name an id that a
/// final capture uses later.)
fn check_balances_by_journal(transfer: &Value, journals: &[(String, Vec<Value>)]) -> Result<(), Stop> {
    let after = &transfer["debit_account"];
    if after.is_null() {
        return Ok(());
    }
    let journal = journals.iter().find(|(account, _)| transfer["debit"] == account.as_str());
    let entries = journal.map_or(&[][..], |(_, entries)| entries);
    let entry = entries.iter().find(|entry| entry["version"] == after["version"]);
    let agrees = |entry: &Value| {
        let is_released_rest = entry["kind"] == "released" && entry["hold_id"] == transfer["hold"];
        (entry["transfer_id"] == transfer["id"] || is_released_rest)
            && ["posted", "held"].iter().all(|member| entry[*member] == after[*member])
    };
    if entry.is_some_and(agrees) {
        return Ok(());
    }
    Err(Stop::Differs(format!("  debit_account is {after}, and the journal line of that version {entry:?}\n")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_answer_of_a_final_capture_is_the_release_of_its_own_hold() {
        let after = json!({"posted": "-1.00", "held": "1.00", "version": 5});
        let capture = json!({"id": "c", "debit": "a", "hold": "h", "debit_account": after});
        let journal = |kind: &str, transfer: Option<&str>, hold: Option<&str>| {
            let entry = json!({
                "version": 5, "kind": kind, "transfer_id": transfer, "hold_id": hold, "posted": "-1.00", "held": "1.00"
            });
            [("a".to_owned(), vec![entry])]
        };
        assert!(check_balances_by_journal(&capture, &journal("captured", Some("c"), None)).is_ok());
        assert!(check_balances_by_journal(&capture, &journal("released", None, Some("h"))).is_ok());
        assert!(check_balances_by_journal(&capture, &journal("released", None, Some("other"))).is_err());
        assert!(check_balances_by_journal(&capture, &journal("posted", Some("other"), None)).is_err());
        let payment = json!({"id": "c", "debit": "a", "hold": null, "debit_account": after});
        assert!(check_balances_by_journal(&payment, &journal("released", None, Some("h"))).is_err());
    }
}
