//! Turns the model's requests into HTTP, and writes transcripts of requests and answers for readers.

use std::fmt;

use http::Method;
use model::{Answer, Asset, Metadata, Named, NewAccount, NewHold, Payment, Request};
use serde_json::{Value, json};
use testkit::client::{account_path, escaped};

/// One HTTP request.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
}

/// How amounts are written. Both spellings mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// Writes all decimal places, such as `5.00`.
    Full,
    /// Writes the shortest form, such as `5`.
    Shortest,
}

impl HttpRequest {
    fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: None }
    }

    fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body) }
    }

    /// The request in HTTP. `asset` is the asset of the account or hold in the URL, because the body of such a request does not name the
    /// asset of its amounts.
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
                // A default value may be left out.
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

impl fmt::Display for HttpRequest {
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

/// The requests and answers so far. When it is printed, accounts are letters and ids are numbers.
#[derive(Debug, Default)]
pub struct Transcript {
    events: Vec<Event>,
    /// The names with their short forms.
    names: Vec<(String, String)>,
    ids: usize,
}

#[derive(Debug)]
enum Event {
    Note(String),
    Read(HttpRequest),
    Exchange { call: HttpRequest, expected: Answer, found: Answer },
}

impl Transcript {
    /// From now on `name` is written as `short`.
    pub fn call(&mut self, name: &str, short: &str) {
        self.names.push((escaped(name), short.to_owned()));
        self.names.push((name.to_owned(), short.to_owned()));
    }

    pub fn note(&mut self, text: &str) {
        self.events.push(Event::Note(text.to_owned()));
    }

    pub fn exchange(&mut self, call: HttpRequest, expected: &Answer, found: &Answer) {
        self.name_ids(&call);
        self.events.push(Event::Exchange { call, expected: expected.clone(), found: found.clone() });
    }

    pub fn read(&mut self, call: HttpRequest) {
        self.events.push(Event::Read(call));
    }

    fn name_ids(&mut self, call: &HttpRequest) {
        let Some(body) = &call.body else { return };
        let items = body["transfers"].as_array().into_iter().flatten();
        let ids: Vec<String> =
            items.chain([body]).filter_map(|item| item["id"].as_str()).map(str::to_owned).collect();
        for id in ids {
            if uuid::Uuid::parse_str(&id).is_ok() && !self.names.iter().any(|(name, _)| *name == id) {
                self.ids += 1;
                self.names.push((id, format!("#{}", self.ids)));
            }
        }
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            let long = event.to_string();
            let short = self.names.iter().fold(long, |text, (name, short)| text.replace(name, short));
            writeln!(f, "{short}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(text) => write!(f, "-- {text}"),
            Self::Read(call) => write!(f, "{call}"),
            Self::Exchange { call, expected, found } => {
                write!(f, "{call}\n    model:  {}\n    router: {}", in_short(expected), in_short(found))
            }
        }
    }
}

/// The status of an answer, and the members of its body that matter, in one line.
fn in_short(answer: &Answer) -> String {
    let mut line = answer.status.to_string();
    for member in ["code", "status", "side", "field", "amount", "posted", "held", "version"] {
        if let Some(value) = answer.body.get(member).filter(|value| **value != answer.status) {
            line += &format!(" {member}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    for result in answer.body["results"].as_array().into_iter().flatten() {
        let words = ["status", "code", "side", "field"].iter().filter_map(|member| result[*member].as_str());
        line += &format!(" [{}]", words.collect::<Vec<_>>().join(" "));
    }
    if let Some(after) = answer.body.get("debit_account") {
        line += &format!(" debit_account={after}");
    }
    if answer.replayed { line + " replayed" } else { line }
}
