//! Opening balances: `account`, `asset`, `amount`, and optionally `id`. Each opening balance is one transfer from the account that pays for
//! the asset.
//!
//! The id of a row's transfer follows from the import's name and the account, never from the amount. The ledger therefore refuses a row that
//! was changed after it was paid (`idempotency_mismatch`), and does not pay it again. A refusal is stored permanently under its id. The ids
//! of an account form a sequence, so that a refused row can be paid after its cause is corrected. The import uses the next id only when the
//! ledger answers that the attempt of an earlier run was refused. At most one id of the sequence is ever paid.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ledger::{AccountId, AssetCode, format_minor, parse_minor};
use serde::Serialize;
use uuid::Uuid;

use super::{ItemVerdict, Kind, rows::CsvRow};
use crate::http_client::ItemAnswer;

/// Namespace of the transfers' ids. Never change it: a repeated import would then pay twice.
const NAMESPACE: Uuid = Uuid::from_u128(0x2e4b_6f0c_83a1_4d5e_9b7a_c1f0_5d38_7e92);
/// The number of runs that may try a refused row under one name.
const MAX_ATTEMPTS: u32 = 100;

/// The import of opening balances.
pub struct Balances {
    name: String,
    payers: BTreeMap<String, Payer>,
    seen: RepeatedHashes,
    /// The sums of the file by asset. They include rows that are rejected for a reason other than their amount.
    pub in_file: BTreeMap<String, i128>,
    /// The sums by asset of the rows without a fault of their own.
    pub payable: BTreeMap<String, i128>,
    /// The number of rows whose amount cannot be read.
    pub unreadable: u64,
}

/// An account that pays the balances of its asset.
#[derive(Debug, Clone)]
pub struct Payer {
    pub account: Arc<str>,
    /// The number of decimals of the asset.
    pub scale: u32,
}

/// The accounts and ids of the file as hashes, to find repetitions. Each takes 17 bytes, and the sets reserve up to as much again.
#[derive(Default)]
struct RepeatedHashes {
    once: HashSet<u128>,
    more: HashSet<u128>,
}

/// A transfer as the API takes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Opening {
    id: Uuid,
    debit: Arc<str>,
    credit: String,
    amount: String,
    asset: String,
    #[serde(skip)]
    minor: i64,
    /// The index of the id in the account's sequence. `None`: the file has the id.
    #[serde(skip)]
    attempt: Option<u32>,
}

impl Balances {
    /// The name is set after the first reading, because it may be the file's hash.
    pub fn new(payers: BTreeMap<String, Payer>) -> Self {
        Self {
            name: String::new(),
            payers,
            seen: RepeatedHashes::default(),
            in_file: BTreeMap::new(),
            payable: BTreeMap::new(),
            unreadable: 0,
        }
    }

    /// The number of decimals of an asset that is paid here.
    pub fn scale(&self, asset: &str) -> u32 {
        self.payers.get(asset).map_or(0, |payer| payer.scale)
    }

    /// Ends the first reading. From now on, rows become transfers under this name.
    pub fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        self.seen.once = HashSet::new();
    }

    /// The id of the account's transfer in its `attempt`-th attempt. NUL separates the parts, because no part can contain it.
    fn id(&self, account: &str, attempt: u32) -> Uuid {
        let name = [self.name.as_bytes(), b"\0", account.as_bytes(), b"\0", attempt.to_string().as_bytes()].concat();
        Uuid::new_v5(&NAMESPACE, &name)
    }

    fn amount(&self, row: &CsvRow) -> Result<(&Payer, i64), String> {
        let (asset, amount) = (row.get("asset"), row.get("amount"));
        AssetCode::new(asset).map_err(|error| format!("asset: {error}"))?;
        let payer =
            self.payers.get(asset).ok_or_else(|| format!("asset: no account named by --from holds {asset}"))?;
        if amount.starts_with('-') {
            return Err("amount: it is negative, and an import pays to accounts only".to_owned());
        }
        let minor = parse_minor(amount, payer.scale).map_err(|error| format!("amount: {error}"))?;
        Ok((payer, minor))
    }

    fn opening(&self, row: &CsvRow) -> Result<Option<Opening>, String> {
        let account = row.get("account");
        AccountId::client(account).map_err(|error| format!("account: {error}"))?;
        let (payer, minor) = self.amount(row)?;
        if *payer.account == *account {
            return Err("account: it is the account that pays".to_owned());
        }
        let given = row.given("id").map(|text| match Uuid::try_parse(text) {
            Ok(id) if !id.is_nil() && text.len() == 36 => Ok(id),
            _ => Err("id: it is no UUID of 36 characters".to_owned()),
        });
        let given = given.transpose()?;
        if minor == 0 {
            return Ok(None);
        }
        Ok(Some(Opening {
            id: given.unwrap_or_else(|| self.id(account, 0)),
            debit: Arc::clone(&payer.account),
            credit: account.to_owned(),
            amount: format_minor(minor, payer.scale),
            asset: row.get("asset").to_owned(),
            minor,
            attempt: if given.is_some() { None } else { Some(0) },
        }))
    }

    /// The reason why a row that is well-formed by itself contradicts other rows.
    fn clash(&self, row: &CsvRow) -> Option<String> {
        if self.seen.more.contains(&account_key(row)) {
            return Some("account: several rows of the file name it, and none of them is paid".to_owned());
        }
        let id = id_key(row)?;
        self.seen
            .more
            .contains(&id)
            .then(|| "id: several rows of the file have it, and none of them is paid".to_owned())
    }
}

impl RepeatedHashes {
    fn add(&mut self, key: u128) {
        if !self.once.insert(key) {
            self.more.insert(key);
        }
    }
}

fn account_key(row: &CsvRow) -> u128 {
    Uuid::new_v5(&NAMESPACE, row.get("account").as_bytes()).as_u128()
}

fn id_key(row: &CsvRow) -> Option<u128> {
    row.given("id").and_then(|text| Uuid::try_parse(text).ok()).map(|id| id.as_u128())
}

impl Kind for Balances {
    type Item = Opening;

    const NAME: &'static str = "balances";
    const REQUIRED: &'static [&'static str] = &["account", "asset", "amount"];
    const OPTIONAL: &'static [&'static str] = &["id"];
    const ROUTE: &'static str = "/v1/transfers:batch";
    const MEMBER: &'static str = "transfers";

    fn survey(&mut self, row: &CsvRow) {
        if row.fault.is_some() {
            self.unreadable += 1;
            return;
        }
        self.seen.add(account_key(row));
        if let Some(id) = id_key(row) {
            self.seen.add(id);
        }
        match self.amount(row) {
            Ok((_, minor)) => *self.in_file.entry(row.get("asset").to_owned()).or_default() += i128::from(minor),
            Err(_) => self.unreadable += 1,
        }
        if let Ok(Some(opening)) = self.opening(row) {
            *self.payable.entry(opening.asset).or_default() += i128::from(opening.minor);
        }
    }

    fn item(&self, row: &CsvRow) -> Result<Option<Opening>, String> {
        let opening = self.opening(row)?;
        match self.clash(row) {
            Some(clash) => Err(clash),
            None => Ok(opening),
        }
    }

    fn verdict(&self, item: &mut Opening, answer: &ItemAnswer) -> ItemVerdict {
        match (answer.status.as_deref(), answer.code.as_deref()) {
            (Some("posted" | "reversed"), _) => ItemVerdict::Confirmed { replayed: answer.replayed },
            (Some("rejected"), code) => {
                let code = code.unwrap_or("rejected");
                let side = answer.side.as_deref().map_or(String::new(), |side| format!(" ({side} account)"));
                match item.attempt {
                    Some(attempt) if answer.replayed && attempt + 1 < MAX_ATTEMPTS => {
                        item.attempt = Some(attempt + 1);
                        item.id = self.id(&item.credit, attempt + 1);
                        ItemVerdict::Next
                    }
                    Some(_) if answer.replayed => ItemVerdict::Refused(format!(
                        "{code}{side}: {MAX_ATTEMPTS} attempts under the name {:?} were refused",
                        self.name
                    )),
                    Some(_) => ItemVerdict::Refused(format!("{code}{side}; correct this and import the file again")),
                    None => ItemVerdict::Refused(format!(
                        "{code}{side}; the id is used up, another attempt needs a new one"
                    )),
                }
            }
            (_, Some("idempotency_mismatch")) => ItemVerdict::Refused(format!(
                "idempotency_mismatch: the id {} has paid with another {}",
                item.id,
                answer.field.as_deref().unwrap_or("content")
            )),
            _ => answer.not_confirmed(),
        }
    }

    fn pays(item: &Opening) -> Option<(&str, i64)> {
        Some((&item.asset, item.minor))
    }

    fn witness(item: &Opening) -> &str {
        &item.debit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balances(name: &str) -> Balances {
        let payer = |account: &str, scale| Payer { account: account.into(), scale };
        let payers = [("USD".to_owned(), payer("opening", 2)), ("BTC".to_owned(), payer("opening-btc", 8))];
        let mut balances = Balances::new(payers.into());
        balances.set_name(name);
        balances
    }

    fn row(account: &str, asset: &str, amount: &str, id: &str) -> CsvRow {
        CsvRow::of(&[("account", account), ("asset", asset), ("amount", amount), ("id", id)])
    }

    fn opening(account: &str, asset: &str, amount: &str) -> Result<Option<Opening>, String> {
        balances("june").item(&row(account, asset, amount, ""))
    }

    fn answer(text: &str) -> ItemAnswer {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn ids_are_pinned_and_depend_on_name_account_and_attempt_alone() {
        let id = |name: &str, account: &str, amount: &str| {
            balances(name).item(&row(account, "USD", amount, "")).unwrap().unwrap().id
        };
        assert_eq!(id("june", "alice", "1.5").to_string(), "4a203292-eb0e-5bae-bb36-e8a423f5c2fc");
        assert_eq!(id("june", "alice", "1.5"), id("june", "alice", "2"));
        assert_ne!(id("june", "alice", "1.5"), id("july", "alice", "1.5"));
        assert_ne!(id("june", "alice", "1.5"), id("june", "bob", "1.5"));
        assert_ne!(balances("june").id("alice", 0), balances("june").id("alice", 1));
    }

    #[test]
    fn a_row_becomes_a_transfer_from_the_account_of_its_asset() {
        let usd = opening("alice", "USD", "12.3").unwrap().unwrap();
        assert_eq!((&*usd.debit, usd.amount.as_str(), usd.minor), ("opening", "12.30", 1230));
        let btc = opening("alice", "BTC", "0.5").unwrap().unwrap();
        assert_eq!((&*btc.debit, btc.amount.as_str()), ("opening-btc", "0.50000000"));
        assert_eq!(opening("alice", "USD", "0.00"), Ok(None));
        let given = "0190d7c0-0000-7000-8000-000000000001";
        let own = balances("june").item(&row("alice", "USD", "1", given)).unwrap().unwrap();
        assert_eq!(own.id.to_string(), given);
    }

    #[test]
    fn a_malformed_row_is_refused_with_the_column() {
        for (account, asset, amount, reason) in [
            ("", "USD", "1", "account: "),
            ("a b", "USD", "1", "account: "),
            ("opening", "USD", "1", "account: it is the account that pays"),
            ("alice", "EUR", "1", "asset: no account named by --from holds EUR"),
            ("alice", "usd", "1", "asset: "),
            ("alice", "USD", "1.234", "amount: the amount has more than the 2"),
            ("alice", "USD", "-1", "amount: it is negative"),
            ("alice", "USD", "1,000", "amount: "),
            ("alice", "USD", "", "amount: "),
        ] {
            let error = opening(account, asset, amount).unwrap_err();
            assert!(error.contains(reason), "{account},{asset},{amount}: {error}");
        }
        let error = balances("june").item(&row("alice", "USD", "1", "4711")).unwrap_err();
        assert!(error.contains("id: "), "{error}");
    }

    #[test]
    fn of_an_account_or_id_that_is_there_twice_no_row_is_paid() {
        let id = "0190d7c0-0000-7000-8000-000000000001";
        let rows = [
            row("alice", "USD", "1", ""),
            row("bob", "USD", "2", ""),
            row("alice", "USD", "4", ""),
            row("carol", "USD", "8", id),
            row("dave", "USD", "16", id),
        ];
        let mut balances = balances("june");
        rows.iter().for_each(|row| balances.survey(row));
        let paid: Vec<bool> = rows.iter().map(|row| balances.item(row).is_ok()).collect();
        assert_eq!(paid, [false, true, false, false, false]);
        assert_eq!(balances.in_file["USD"], 3100);
    }

    #[test]
    fn the_sum_of_the_file_counts_rows_that_are_left_out_and_names_those_without_an_amount() {
        let mut balances = balances("june");
        let bad = CsvRow { fault: Some("2 values".to_owned()), ..row("x", "USD", "1", "") };
        for row in [row("alice", "USD", "1.50", ""), row("b b", "USD", "2", ""), row("c", "USD", "x", ""), bad] {
            balances.survey(&row);
        }
        assert_eq!((balances.in_file["USD"], balances.payable["USD"], balances.unreadable), (350, 150, 2));
    }

    #[test]
    fn a_refusal_of_an_earlier_run_is_followed_by_the_next_id_and_one_of_this_run_is_not() {
        let balances = balances("june");
        let mut item = balances.item(&row("alice", "USD", "1", "")).unwrap().unwrap();
        let earlier =
            answer(r#"{"id":"1","status":"rejected","replayed":true,"code":"account_not_found","side":"credit"}"#);
        assert_eq!(balances.verdict(&mut item, &earlier), ItemVerdict::Next);
        assert_eq!(item.id, balances.id("alice", 1));
        let now =
            answer(r#"{"id":"1","status":"rejected","replayed":false,"code":"limit_exceeded","side":"credit"}"#);
        assert!(matches!(balances.verdict(&mut item, &now), ItemVerdict::Refused(_)));
        assert_eq!(item.id, balances.id("alice", 1));
        let mut attempts = 1;
        while balances.verdict(&mut item, &earlier) == ItemVerdict::Next {
            attempts += 1;
        }
        assert_eq!(attempts, 99);
    }

    #[test]
    fn nothing_but_a_stored_refusal_leads_to_another_id() {
        let balances = balances("june");
        let mut item = balances.item(&row("alice", "USD", "1", "")).unwrap().unwrap();
        let before = item.clone();
        for (text, expected) in [
            (r#"{"id":"1","status":"posted","replayed":false}"#, ItemVerdict::Confirmed { replayed: false }),
            (r#"{"id":"1","status":"posted","replayed":true}"#, ItemVerdict::Confirmed { replayed: true }),
            (r#"{"id":"1","status":"reversed","replayed":true}"#, ItemVerdict::Confirmed { replayed: true }),
            (r#"{"id":"1","status":"pending","replayed":true}"#, ItemVerdict::Uncertain),
            (r#"{"id":"1","status":"unknown","code":"outcome_unknown"}"#, ItemVerdict::Uncertain),
            (r#"{"id":"1","status":"failed","code":"shard_unavailable"}"#, ItemVerdict::Uncertain),
            (r#"{"id":"1","status":"failed","code":"undetermined"}"#, ItemVerdict::Uncertain),
        ] {
            assert_eq!(balances.verdict(&mut item, &answer(text)), expected, "{text}");
        }
        let mismatch = answer(r#"{"id":"1","status":"failed","code":"idempotency_mismatch","field":"amount"}"#);
        assert!(
            matches!(balances.verdict(&mut item, &mismatch), ItemVerdict::Refused(reason) if reason.contains("amount"))
        );
        let no_payer = answer(r#"{"id":"1","status":"failed","code":"account_not_found","side":"debit"}"#);
        assert!(matches!(balances.verdict(&mut item, &no_payer), ItemVerdict::Refused(_)));
        assert_eq!(item, before);
    }
}
