//! The model's requests as HTTP.

use std::fmt;

use http::Method;
use model::{Asset, Metadata, Named, NewAccount, NewHold, Payment, Request};
use serde_json::{Value, json};
use testkit::client::{account_path, escaped};

/// One HTTP request.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
}

/// How amounts are written; both mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// `5.00`
    Full,
    /// `5`
    Shortest,
}

impl Call {
    fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: None }
    }

    fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body) }
    }

    /// `asset` is that of what the URL names: the body of such a request does not say in which its amounts are.
    pub fn of(request: &Request, spelling: Spelling, asset: Asset) -> Self {
        match request {
            Request::OpenAccount(account) => Self::post("/v1/accounts", opening(account, spelling)),
            Request::OpenAccounts(accounts) => {
                let accounts: Vec<Value> = accounts.iter().map(|account| opening(account, spelling)).collect();
                Self::post("/v1/accounts:batch", json!({"accounts": accounts}))
            }
            Request::ChangeAccount { account, changes } => {
                let mut body = json!({});
                if let Some(status) = changes.status {
                    body["status"] = status.word().into();
                }
                if let Some(overdraft) = changes.overdraft {
                    body["overdraft"] = limit(overdraft, asset, spelling).unwrap_or("unlimited".to_owned()).into();
                }
                if let Some(max_balance) = changes.max_balance {
                    body["max_balance"] = limit(max_balance, asset, spelling).into();
                }
                if let Some(metadata) = &changes.metadata {
                    body["metadata"] = json!(metadata);
                }
                Self { method: Method::PATCH, path: account_path(account), body: Some(body) }
            }
            Request::Pay { order, dry_run } => {
                Self::post(format!("/v1/transfers{}", dry_run_query(*dry_run)), payment(order, spelling))
            }
            Request::PayBatch { items, atomic } => {
                let items: Vec<Value> = items.iter().map(|item| payment(item, spelling)).collect();
                Self::post("/v1/transfers:batch", json!({"transfers": items, "atomic": atomic}))
            }
            Request::Hold { order, dry_run } => {
                Self::post(format!("/v1/holds{}", dry_run_query(*dry_run)), hold(order, spelling))
            }
            Request::Capture(capture) => {
                let mut body = json!({"id": capture.id});
                if let Some(amount) = capture.amount {
                    body["amount"] = written(amount, asset, spelling).into();
                }
                // What is said by default may be left out.
                if !(capture.is_final && spelling == Spelling::Shortest) {
                    body["final"] = capture.is_final.into();
                }
                Self::post(action("holds", &capture.hold, "/capture"), body)
            }
            Request::Release(release) => Self::post(action("holds", &release.hold, "/release"), json!({})),
            Request::Reverse(reversal) => {
                let mut body = json!({"id": reversal.id});
                if let Some(amount) = reversal.amount {
                    body["amount"] = written(amount, asset, spelling).into();
                }
                Self::post(action("transfers", &reversal.transfer, "/reverse"), body)
            }
            Request::ShowAccount(account) => Self::get(account_path(account)),
            Request::ListAccounts { prefix } => {
                Self::get(format!("/v1/accounts?prefix={}&limit=500", escaped(prefix)))
            }
            Request::SumBalances { prefix } => Self::get(format!("/v1/balances?prefix={}", escaped(prefix))),
            Request::ShowTransfer(named) => Self::get(action("transfers", named, "")),
            Request::ShowHold(named) => Self::get(action("holds", named, "")),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        self.body.as_ref().map_or(Ok(()), |body| write!(f, " {body}"))
    }
}

fn dry_run_query(dry_run: bool) -> &'static str {
    if dry_run { "?dry_run=true" } else { "" }
}

fn action(collection: &str, named: &Named, action: &str) -> String {
    let debit = named.debit.as_ref().map(|debit| format!("?debit={}", escaped(debit)));
    format!("/v1/{collection}/{}{action}{}", named.id, debit.unwrap_or_default())
}

fn opening(account: &NewAccount, spelling: Spelling) -> Value {
    let mut body = json!({"id": account.id, "asset": account.asset.code});
    let overdraft = limit(account.overdraft, account.asset, spelling).unwrap_or("unlimited".to_owned());
    if !(account.overdraft == Some(0) && spelling == Spelling::Shortest) {
        body["overdraft"] = overdraft.into();
    }
    if let Some(max_balance) = limit(account.max_balance, account.asset, spelling) {
        body["max_balance"] = max_balance.into();
    }
    with_metadata(body, &account.metadata)
}

fn payment(order: &Payment, spelling: Spelling) -> Value {
    let amount = written(order.amount, order.asset, spelling);
    let body = json!({"id": order.id, "debit": order.debit, "credit": order.credit, "amount": amount,
        "asset": order.asset.code});
    with_metadata(body, &order.metadata)
}

fn hold(order: &NewHold, spelling: Spelling) -> Value {
    let amount = written(order.amount, order.asset, spelling);
    let mut body = json!({"id": order.id, "debit": order.debit, "credit": order.credit, "amount": amount,
        "asset": order.asset.code});
    if let Some(seconds) = order.expires_in_s {
        body["expires_in_s"] = seconds.into();
    }
    with_metadata(body, &order.metadata)
}

fn with_metadata(mut body: Value, metadata: &Metadata) -> Value {
    if !metadata.is_empty() {
        body["metadata"] = json!(metadata);
    }
    body
}

fn limit(limit: Option<i64>, asset: Asset, spelling: Spelling) -> Option<String> {
    limit.map(|minor| written(minor, asset, spelling))
}

fn written(minor: i64, asset: Asset, spelling: Spelling) -> String {
    let full = asset.write(minor.into());
    match spelling {
        Spelling::Shortest if full.contains('.') => full.trim_end_matches('0').trim_end_matches('.').to_owned(),
        Spelling::Full | Spelling::Shortest => full,
    }
}
