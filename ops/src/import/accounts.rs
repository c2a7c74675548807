//! Accounts to open: `id`, `asset`, and optionally `overdraft`, `max_balance` and `metadata` (a JSON object of strings).

use ledger::{AccountId, AssetCode, AssetRegistry, Metadata, parse_minor};
use serde::Serialize;
use serde_json::Value;

use super::{ItemVerdict, Kind, rows::CsvRow};
use crate::{http_client::ItemAnswer, output::JsonObject};

/// The value of `overdraft` that means "no limit".
const UNLIMITED: &str = "unlimited";

/// The import of accounts.
pub struct Accounts {
    /// The assets that every router knows. Only the routers check the others.
    built_in: AssetRegistry,
}

/// An account as the API takes it.
#[derive(Debug, PartialEq, Serialize)]
pub struct NewAccount {
    id: String,
    asset: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    overdraft: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_balance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<JsonObject>,
}

impl Accounts {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { built_in: AssetRegistry::with_declared([])? })
    }
}

impl Kind for Accounts {
    type Item = NewAccount;

    const NAME: &'static str = "accounts";
    const REQUIRED: &'static [&'static str] = &["id", "asset"];
    const OPTIONAL: &'static [&'static str] = &["overdraft", "max_balance", "metadata"];
    const ROUTE: &'static str = "/v1/accounts:batch";
    const MEMBER: &'static str = "accounts";

    fn survey(&mut self, _row: &CsvRow) {}

    fn item(&self, row: &CsvRow) -> Result<Option<NewAccount>, String> {
        let (id, asset) = (row.get("id"), row.get("asset"));
        AccountId::client(id).map_err(|error| format!("id: {error}"))?;
        let code = AssetCode::new(asset).map_err(|error| format!("asset: {error}"))?;
        let limit = |column: &str| match row.given(column) {
            Some(UNLIMITED) if column == "overdraft" => Ok(Some(UNLIMITED.to_owned())),
            Some(text) => {
                let scale = self.built_in.scale(code).unwrap_or_else(|| decimals(text));
                parse_minor(text, scale).map_err(|error| format!("{column}: {error}"))?;
                Ok::<_, String>(Some(text.to_owned()))
            }
            None => Ok(None),
        };
        Ok(Some(NewAccount {
            id: id.to_owned(),
            asset: asset.to_owned(),
            overdraft: limit("overdraft")?,
            max_balance: limit("max_balance")?,
            metadata: row.given("metadata").map(metadata).transpose()?,
        }))
    }

    fn verdict(&self, _item: &mut NewAccount, answer: &ItemAnswer) -> ItemVerdict {
        match (answer.status.as_deref(), answer.code.as_deref()) {
            (Some("created"), _) => ItemVerdict::Confirmed { replayed: answer.replayed },
            (_, Some("account_exists")) => ItemVerdict::Refused(format!(
                "account_exists: the account exists with another {}",
                answer.field.as_deref().unwrap_or("content")
            )),
            _ => answer.not_confirmed(),
        }
    }

    fn pays(_item: &NewAccount) -> Option<(&str, i64)> {
        None
    }

    fn witness(item: &NewAccount) -> &str {
        &item.id
    }
}

/// The number of decimals in the text of an amount. An amount is checked with this number if only the routers know its asset.
fn decimals(text: &str) -> u32 {
    let written = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    u32::try_from(written).unwrap_or(u32::MAX).min(AssetRegistry::MAX_SCALE)
}

fn metadata(text: &str) -> Result<JsonObject, String> {
    let object: JsonObject =
        serde_json::from_str(text).map_err(|error| format!("metadata is no JSON object: {error}"))?;
    let mut map = std::collections::BTreeMap::new();
    for (name, value) in object.fields() {
        let Value::String(value) = value else {
            return Err(format!("metadata: the value of {name:?} is not a string"));
        };
        if map.insert(name.to_owned(), value.clone()).is_some() {
            return Err(format!("metadata: {name:?} is there twice"));
        }
    }
    Metadata::from_map(&map).map_err(|error| error.to_string())?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(cells: &[(&str, &str)]) -> Result<String, String> {
        let item = Accounts::new().unwrap().item(&CsvRow::of(cells))?;
        Ok(serde_json::to_string(&item.unwrap()).unwrap())
    }

    #[test]
    fn a_row_becomes_the_account_that_the_api_takes() {
        assert_eq!(item(&[("asset", "USD"), ("id", "alice")]).as_deref(), Ok(r#"{"id":"alice","asset":"USD"}"#));
        let all = [
            ("id", "{a}:x"),
            ("asset", "BTC"),
            ("overdraft", "unlimited"),
            ("max_balance", "0.12345678"),
            ("metadata", r#"{"z": "1", "a": "ü"}"#),
        ];
        assert_eq!(
            item(&all).as_deref(),
            Ok(
                r#"{"id":"{a}:x","asset":"BTC","overdraft":"unlimited","max_balance":"0.12345678","metadata":{"z":"1","a":"ü"}}"#
            )
        );
        let empty = [("id", "a"), ("asset", "USD"), ("overdraft", ""), ("max_balance", " "), ("metadata", "")];
        assert_eq!(item(&empty).as_deref(), Ok(r#"{"id":"a","asset":"USD"}"#));
    }

    #[test]
    fn a_malformed_row_is_refused_with_the_column() {
        let with = |column: &'static str, value: &'static str| {
            let mut cells = vec![("id", "a"), ("asset", "USD")];
            cells.retain(|(name, _)| *name != column);
            cells.push((column, value));
            item(&cells).unwrap_err()
        };
        for (column, value, reason) in [
            ("id", "", "id: an account id has 1 to 128"),
            ("id", "a b", "id: an account id consists of"),
            ("id", "@in-transit:USD", "reserved"),
            ("asset", "usd", "asset: "),
            ("overdraft", "1.234", "overdraft: the amount has more than the 2"),
            ("overdraft", "-1", "overdraft: an amount is a plain decimal"),
            ("max_balance", "unlimited", "max_balance: an amount is a plain decimal"),
            ("metadata", "[]", "metadata is no JSON object"),
            ("metadata", "{\"a\": 1}", "the value of \"a\" is not a string"),
            ("metadata", "{\"a\": \"1\", \"a\": \"2\"}", "\"a\" is there twice"),
            ("metadata", "{\"a\": \"\\u0000\"}", "NUL"),
        ] {
            let error = with(column, value);
            assert!(error.contains(reason), "{column}={value}: {error}");
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let verdict = |text: &str| {
            let accounts = Accounts::new().unwrap();
            let mut item = accounts.item(&CsvRow::of(&[("id", "a"), ("asset", "USD")])).unwrap().unwrap();
            accounts.verdict(&mut item, &serde_json::from_str(text).unwrap())
        };
        assert_eq!(
            verdict(r#"{"id":"a","status":"created","replayed":false}"#),
            ItemVerdict::Confirmed { replayed: false }
        );
        assert_eq!(
            verdict(r#"{"id":"a","status":"created","replayed":true}"#),
            ItemVerdict::Confirmed { replayed: true }
        );
        let exists = r#"{"id":"a","status":"failed","code":"account_exists","field":"asset"}"#;
        assert!(matches!(verdict(exists), ItemVerdict::Refused(reason) if reason.ends_with("another asset")));
        for uncertain in ["shard_unavailable", "overloaded", "outcome_unknown"] {
            let answer = format!(r#"{{"id":"a","status":"failed","code":"{uncertain}"}}"#);
            assert_eq!(verdict(&answer), ItemVerdict::Uncertain, "{uncertain}");
        }
    }
}
