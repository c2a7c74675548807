//! The attacks: for each operation, requests that would read or move what is another tenant's.

use http::Method;
use serde_json::{Value, json};
use testkit::client::escaped;
use uuid::Uuid;

use super::stage::{OWN, Stage, Target};

/// A request.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub method: Method,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// A request about a target, which must be refused as if the target did not exist.
pub struct Attack {
    /// The `operationId`.
    pub operation: &'static str,
    /// The status and the code of the answer.
    pub expected: &'static str,
    pub request: fn(&Target) -> Wanted,
}

const AT: &str = "2026-01-01T00:00:00Z";
/// The filters of lists of transfers and holds.
const FILTERS: &str = "metadata=note=tell-nobody&from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&order=asc&limit=1";

impl Wanted {
    pub fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), headers: Vec::new(), body: String::new() }
    }

    pub fn post(path: &str, body: Value) -> Self {
        Self { method: Method::POST, body: body.to_string(), ..Self::get(path) }
            .header("content-type", "application/json")
    }

    pub fn patch(path: &str, body: Value) -> Self {
        Self { method: Method::PATCH, ..Self::post(path, body) }
    }

    /// A batch of lines.
    fn lines(path: &str, items: &[Value]) -> Self {
        let body = items.iter().map(|item| format!("{item}\n")).collect();
        Self { method: Method::POST, body, ..Self::get(path) }.header("content-type", "application/x-ndjson")
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn csv(self) -> Self {
        self.header("accept", "text/csv")
    }

    pub fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name))
    }

    pub fn has_parameter(&self, name: &str) -> bool {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|parameter| parameter.split('=').next() == Some(name))
    }
}

const fn attack(operation: &'static str, expected: &'static str, request: fn(&Target) -> Wanted) -> Attack {
    Attack { operation, expected, request }
}

const NO_ACCOUNT: &str = "404 account_not_found";
const NO_TRANSFER: &str = "404 transfer_not_found";
const NO_HOLD: &str = "404 hold_not_found";
const FORBIDDEN: &str = "403 not_permitted";
const INVALID: &str = "400 invalid_parameter";

/// A payment or hold of 1.00.
fn terms(id: Uuid, debit: &str, credit: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": "1.00", "asset": "EUR"})
}

/// The same without an id.
fn nameless(debit: &str, credit: &str) -> Value {
    json!({"debit": debit, "credit": credit, "amount": "1.00", "asset": "EUR"})
}

/// An item of a batch that the attacker may order, and one that it may not.
fn batch(target: &Target) -> [Value; 2] {
    [terms(target.new, OWN[0], OWN[1]), terms(Uuid::now_v7(), &target.account, OWN[0])]
}

fn of_account(target: &Target, rest: &str) -> String {
    format!("/v1/accounts/{}{rest}", target.path())
}

fn of_own(rest: &str) -> String {
    format!("/v1/accounts/{}{rest}", escaped(OWN[0]))
}

pub const ATTACKS: &[Attack] = &[
    // === accounts ===
    attack("getAccount", NO_ACCOUNT, |it| Wanted::get(&of_account(it, ""))),
    attack("updateAccount", NO_ACCOUNT, |it| Wanted::patch(&of_account(it, ""), json!({"status": "frozen"}))),
    attack("updateAccount", NO_ACCOUNT, |it| {
        Wanted::patch(&of_account(it, ""), json!({"metadata": {"note": "mine"}}))
    }),
    attack("updateAccount", NO_ACCOUNT, |it| {
        Wanted::patch(&of_account(it, ""), json!({"overdraft": "5.00", "max_balance": "1.00"}))
    }),
    attack("getBalance", NO_ACCOUNT, |it| Wanted::get(&of_account(it, "/balance"))),
    attack("getBalance", NO_ACCOUNT, |it| Wanted::get(&of_account(it, &format!("/balance?at={AT}")))),
    attack("listEntries", NO_ACCOUNT, |it| Wanted::get(&of_account(it, "/entries"))),
    attack("listEntries", NO_ACCOUNT, |it| Wanted::get(&of_account(it, "/entries?include=metadata")).csv()),
    attack("listEntries", NO_ACCOUNT, |it| {
        let window = "from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";
        Wanted::get(&of_account(it, &format!("/entries?include=metadata&order=asc&limit=1&{window}")))
    }),
    attack("listEntries", INVALID, |it| {
        Wanted::get(&of_own(&format!("/entries?limit=1&cursor={}", it.cursors.entries)))
    }),
    attack("openAccount", FORBIDDEN, |it| {
        Wanted::post("/v1/accounts", json!({"id": it.account, "asset": "EUR", "metadata": {"note": "tell-nobody"}}))
    }),
    attack("openAccount", FORBIDDEN, |it| Wanted::post("/v1/accounts", json!({"id": it.account, "asset": "USD"}))),
    attack("openAccounts", FORBIDDEN, |it| {
        let own = json!({"id": format!("{{shop42}}:{}", it.new), "asset": "EUR"});
        Wanted::post("/v1/accounts:batch", json!({"accounts": [own, {"id": it.account, "asset": "EUR"}]}))
    }),
    attack("listAccounts", FORBIDDEN, |it| Wanted::get(&format!("/v1/accounts?prefix={}", it.path()))),
    attack("listAccounts", FORBIDDEN, |it| Wanted::get(&format!("/v1/accounts?prefix={}&limit=1", it.path()))),
    attack("listAccounts", FORBIDDEN, |it| Wanted::get(&format!("/v1/accounts?prefix={}", it.path())).csv()),
    attack("listAccounts", FORBIDDEN, |it| Wanted::get(&format!("/v1/accounts?prefix={}&at={AT}", it.path()))),
    attack("listAccounts", FORBIDDEN, |it| Wanted::get(&format!("/v1/accounts?prefix={}&at={AT}", it.path())).csv()),
    attack("listAccounts", INVALID, |it| {
        Wanted::get(&format!("/v1/accounts?limit=1&cursor={}", it.cursors.accounts))
    }),
    attack("sumBalances", FORBIDDEN, |it| Wanted::get(&format!("/v1/balances?prefix={}", it.path()))),
    attack("sumBalances", FORBIDDEN, |it| Wanted::get(&format!("/v1/balances?prefix={}&at={AT}", it.path()))),
    attack("sumBalances", FORBIDDEN, |it| Wanted::get(&format!("/v1/balances?prefix={}&at={AT}", it.path())).csv()),
    // === transfers ===
    attack("createTransfer", FORBIDDEN, |it| Wanted::post("/v1/transfers", terms(it.new, &it.account, OWN[0]))),
    attack("createTransfer", FORBIDDEN, |it| Wanted::post("/v1/transfers", terms(it.new, OWN[0], &it.account))),
    // The id of the rival's transfer, with the rival's debit account: a replay would show it.
    attack("createTransfer", FORBIDDEN, |it| Wanted::post("/v1/transfers", terms(it.id, &it.account, OWN[0]))),
    attack("createTransfer", FORBIDDEN, |it| {
        Wanted::post("/v1/transfers?dry_run=true", terms(it.new, &it.account, OWN[0]))
    }),
    attack("createTransfer", FORBIDDEN, |it| {
        Wanted::post("/v1/transfers?dry_run=true", terms(it.new, OWN[0], &it.account))
    }),
    attack("createTransfer", FORBIDDEN, |it| {
        Wanted::post("/v1/transfers", nameless(&it.account, OWN[0])).header("idempotency-key", &it.key)
    }),
    attack("createTransfers", FORBIDDEN, |it| {
        Wanted::post("/v1/transfers:batch", json!({"transfers": batch(it), "atomic": false}))
    }),
    attack("createTransfers", FORBIDDEN, |it| {
        Wanted::post("/v1/transfers:batch", json!({"transfers": batch(it), "atomic": true}))
    }),
    attack("createTransfers", FORBIDDEN, |it| {
        let items = [terms(it.new, OWN[0], OWN[1]), terms(it.id, OWN[0], &it.account)];
        Wanted::post("/v1/transfers:batch", json!({"transfers": items}))
    }),
    attack("createTransfers", FORBIDDEN, |it| Wanted::lines("/v1/transfers:batch", &batch(it))),
    attack("createTransfers", FORBIDDEN, |it| Wanted::lines("/v1/transfers:batch?atomic=true", &batch(it))),
    attack("getTransfer", NO_TRANSFER, |it| Wanted::get(&format!("/v1/transfers/{}", it.id))),
    attack("getTransfer", NO_TRANSFER, |it| Wanted::get(&format!("/v1/transfers/{}?debit={}", it.id, it.path()))),
    attack("getTransfer", NO_TRANSFER, |it| {
        Wanted::get(&format!("/v1/transfers/{}?debit={}", it.id, escaped(OWN[0])))
    }),
    attack("reverseTransfer", NO_TRANSFER, |it| {
        Wanted::post(&format!("/v1/transfers/{}/reverse", it.id), json!({"id": it.new}))
    }),
    attack("reverseTransfer", NO_TRANSFER, |it| {
        Wanted::post(&format!("/v1/transfers/{}/reverse", it.id), json!({"id": it.id, "amount": "1.00"}))
    }),
    attack("reverseTransfer", NO_TRANSFER, |it| {
        Wanted::post(&format!("/v1/transfers/{}/reverse?debit={}", it.id, it.path()), json!({}))
            .header("idempotency-key", &it.key)
    }),
    attack("listTransfers", NO_ACCOUNT, |it| Wanted::get(&format!("/v1/transfers?account={}", it.path()))),
    attack("listTransfers", NO_ACCOUNT, |it| {
        Wanted::get(&format!("/v1/transfers?account={}&status=posted&{FILTERS}", it.path()))
    }),
    attack("listTransfers", INVALID, |it| {
        Wanted::get(&format!("/v1/transfers?account={}&limit=1&cursor={}", escaped(OWN[0]), it.cursors.transfers))
    }),
    // === holds ===
    attack("createHold", FORBIDDEN, |it| Wanted::post("/v1/holds", terms(it.new, &it.account, OWN[0]))),
    attack("createHold", FORBIDDEN, |it| Wanted::post("/v1/holds", terms(it.new, OWN[0], &it.account))),
    attack("createHold", FORBIDDEN, |it| Wanted::post("/v1/holds", terms(it.id, &it.account, OWN[0]))),
    attack("createHold", FORBIDDEN, |it| Wanted::post("/v1/holds?dry_run=true", terms(it.new, &it.account, OWN[0]))),
    attack("createHold", FORBIDDEN, |it| {
        Wanted::post("/v1/holds", nameless(&it.account, OWN[0])).header("idempotency-key", &it.key)
    }),
    attack("getHold", NO_HOLD, |it| Wanted::get(&format!("/v1/holds/{}", it.id))),
    attack("getHold", NO_HOLD, |it| Wanted::get(&format!("/v1/holds/{}?debit={}", it.id, it.path()))),
    attack("captureHold", NO_HOLD, |it| Wanted::post(&format!("/v1/holds/{}/capture", it.id), json!({"id": it.new}))),
    attack("captureHold", NO_HOLD, |it| {
        let body = json!({"id": it.new, "amount": "1.00", "final": false});
        Wanted::post(&format!("/v1/holds/{}/capture?debit={}", it.id, it.path()), body)
    }),
    attack("captureHold", NO_HOLD, |it| {
        Wanted::post(&format!("/v1/holds/{}/capture", it.id), json!({})).header("idempotency-key", &it.key)
    }),
    attack("releaseHold", NO_HOLD, |it| Wanted::post(&format!("/v1/holds/{}/release", it.id), json!({}))),
    attack("releaseHold", NO_HOLD, |it| {
        Wanted::post(&format!("/v1/holds/{}/release?debit={}", it.id, it.path()), json!({}))
    }),
    attack("listHolds", NO_ACCOUNT, |it| Wanted::get(&format!("/v1/holds?account={}", it.path()))),
    attack("listHolds", NO_ACCOUNT, |it| {
        Wanted::get(&format!("/v1/holds?account={}&status=held&{FILTERS}", it.path()))
    }),
    attack("listHolds", INVALID, |it| {
        Wanted::get(&format!("/v1/holds?account={}&limit=1&cursor={}", escaped(OWN[0]), it.cursors.holds))
    }),
];

/// An order with this id.
type OfId = fn(&Stage, Uuid) -> Wanted;

/// Orders of the attacker's own with an id that another tenant has used. Each debits an account of its own, where the id is new.
pub const REUSED_IDS: &[(&str, OfId)] = &[
    ("createTransfer", |_, id| Wanted::post("/v1/transfers", terms(id, OWN[0], OWN[1]))),
    ("createHold", |_, id| Wanted::post("/v1/holds", terms(id, OWN[1], OWN[0]))),
    ("reverseTransfer", |stage, id| {
        Wanted::post(&format!("/v1/transfers/{}/reverse", stage.own_transfer), json!({"id": id, "amount": "0.01"}))
    }),
    ("captureHold", |stage, id| {
        let body = json!({"id": id, "amount": "0.01", "final": false});
        Wanted::post(&format!("/v1/holds/{}/capture", stage.own_hold), body)
    }),
];

/// An order of the attacker's own under a key of idempotency.
pub fn under_key(key: &str) -> Wanted {
    Wanted::post("/v1/transfers", nameless(OWN[0], OWN[1])).header("idempotency-key", key)
}

/// What the attacker may read, and what must have nothing of others in it.
pub const OWN_READS: &[fn(&Stage) -> Wanted] = &[
    |_| Wanted::get("/v1/accounts"),
    |_| Wanted::get("/v1/accounts").csv(),
    |_| Wanted::get("/v1/accounts?at=2100-01-01T00:00:00Z"),
    |_| Wanted::get("/v1/balances"),
    |_| Wanted::get("/v1/balances?at=2100-01-01T00:00:00Z").csv(),
    |_| Wanted::get(&of_own("/entries?include=metadata&limit=500")),
    |_| Wanted::get(&of_own("/entries?include=metadata")).csv(),
    |_| Wanted::get(&format!("/v1/transfers?account={}&limit=500", escaped(OWN[0]))),
    |_| Wanted::get(&format!("/v1/holds?account={}&limit=500", escaped(OWN[0]))),
    |stage| Wanted::get(&format!("/v1/transfers/{}?debit={}", stage.own_transfer, escaped(OWN[0]))),
    |stage| Wanted::get(&format!("/v1/holds/{}?debit={}", stage.own_hold, escaped(OWN[3]))),
];
