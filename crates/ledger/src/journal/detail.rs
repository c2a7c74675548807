//! [`Entry::detail`](super::Entry::detail): what opening or changing an account left of its attributes, as JSON.

use serde_json::{Value, json};

use crate::{Account, AccountId, AssetCode, Limit, Metadata, operation::CreateAccount};

/// A detail is not what an opening leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableDetail {
    #[error("the detail of an opening is no JSON")]
    NotJson,
    #[error("the detail of an opening has no proper {0}")]
    Member(&'static str),
}

/// All attributes, so that the account row stays the fold of its journal.
pub fn write(account: &Account) -> String {
    json!({
        "asset": account.asset.as_str(),
        "status": account.status.as_str(),
        "overdraft": account.overdraft.to_nullable(),
        "max_balance": account.max_balance.to_nullable(),
        "metadata": account.metadata.as_str(),
    })
    .to_string()
}

/// What the account was opened with, from the detail of its first entry.
pub fn read_opening(account: &AccountId, detail: &str) -> Result<CreateAccount, UnreadableDetail> {
    let detail: Value = serde_json::from_str(detail).map_err(|_| UnreadableDetail::NotJson)?;
    Ok(CreateAccount {
        id: account.clone(),
        asset: AssetCode::new(text(&detail, "asset")?).map_err(|_| UnreadableDetail::Member("asset"))?,
        overdraft: limit(&detail, "overdraft")?,
        max_balance: limit(&detail, "max_balance")?,
        metadata: Metadata::from_canonical(text(&detail, "metadata")?),
    })
}

fn text<'d>(detail: &'d Value, name: &'static str) -> Result<&'d str, UnreadableDetail> {
    detail.get(name).and_then(Value::as_str).ok_or(UnreadableDetail::Member(name))
}

/// `null` is unlimited; a member that is missing is not.
fn limit(detail: &Value, name: &'static str) -> Result<Limit, UnreadableDetail> {
    match detail.get(name) {
        Some(Value::Null) => Ok(Limit::Unlimited),
        Some(value) => value.as_i64().map(Limit::AtMost).ok_or(UnreadableDetail::Member(name)),
        None => Err(UnreadableDetail::Member(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{AccountStatus, Position};

    fn id() -> AccountId {
        AccountId::client("alice").unwrap()
    }

    #[test]
    fn an_opening_is_read_as_it_was_written() {
        let tagged = BTreeMap::from([("ä \"key\"\\".to_owned(), "line\nbreak \u{1f600}".to_owned())]);
        let metadata = [Metadata::empty(), Metadata::from_map(&tagged).unwrap()];
        let limits = [Limit::Unlimited, Limit::ZERO, Limit::AtMost(i64::MAX)];
        for (overdraft, max_balance) in limits.into_iter().flat_map(|a| limits.map(|b| (a, b))) {
            for metadata in &metadata {
                let create = CreateAccount {
                    id: id(),
                    asset: AssetCode::new("USD").unwrap(),
                    overdraft,
                    max_balance,
                    metadata: metadata.clone(),
                };
                let account = Account {
                    id: id(),
                    asset: create.asset,
                    status: AccountStatus::Open,
                    posted: 0,
                    held: 0,
                    overdraft,
                    max_balance,
                    version: 1,
                    head: Position::first_of(0),
                    metadata: metadata.clone(),
                    created_at_us: 1,
                    updated_at_us: 1,
                };
                assert_eq!(read_opening(&id(), &write(&account)), Ok(create));
            }
        }
    }

    #[test]
    fn what_no_opening_leaves_is_not_taken_for_one() {
        let whole = json!({"asset": "USD", "status": "open", "overdraft": 0, "max_balance": null, "metadata": ""});
        assert!(read_opening(&id(), &whole.to_string()).is_ok());
        assert_eq!(read_opening(&id(), ""), Err(UnreadableDetail::NotJson));
        for name in ["asset", "overdraft", "max_balance", "metadata"] {
            let mut lacking = whole.clone();
            lacking.as_object_mut().unwrap().remove(name);
            assert_eq!(read_opening(&id(), &lacking.to_string()), Err(UnreadableDetail::Member(name)));
            let mut odd = whole.clone();
            odd[name] = json!({});
            assert_eq!(read_opening(&id(), &odd.to_string()), Err(UnreadableDetail::Member(name)));
        }
    }
}
