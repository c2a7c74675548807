//! The attacks. Each operation has requests that would read or move something of another tenant.

use http::Method;
use serde_json::{Value, json};
use testkit::client::escaped;
use uuid::Uuid;

use super::{
    super::api::{Call, NDJSON},
    Target, Tenants,
};

/// A request about a target, which must be refused as if the target did not exist.
pub struct Attack {
    /// The `operationId` in the description.
    pub operation: &'static str,
    /// The status and the code of the answer.
    pub expected: &'static str,
    pub request: fn(&Target) -> Call,
}

const AT: &str = "2026-01-01T00:00:00Z";
/// The filters of lists of transfers and holds.
const FILTERS: &str = "metadata=note=tell-nobody&from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&order=asc&limit=1";

impl Call {
    /// A batch of lines.
    fn lines(path: &str, items: &[Value]) -> Self {
        let body: String = items.iter().map(|item| format!("{item}\n")).collect();
        Self::bare(Method::POST, path, body).header("content-type", NDJSON)
    }

    fn csv(self) -> Self {
        self.header("accept", "text/csv")
    }
}

const fn attack(operation: &'static str, expected: &'static str, request: fn(&Target) -> Call) -> Attack {
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

/// A payment or hold of 1.00 without an id.
fn nameless(debit: &str, credit: &str) -> Value {
    json!({"debit": debit, "credit": credit, "amount": "1.00", "asset": "EUR"})
}

/// An item of a batch that the attacker may order, and one that it may not.
fn batch(target: &Target) -> [Value; 2] {
    let own = &target.own;
    [terms(target.new, &own[0], &own[1]), terms(Uuid::now_v7(), &target.account, &own[0])]
}

fn of_account(target: &Target, rest: &str) -> String {
    format!("/v1/accounts/{}{rest}", target.path())
}

fn of_own(own: &[String; 4], rest: &str) -> String {
    format!("/v1/accounts/{}{rest}", escaped(&own[0]))
}

pub const ATTACKS: &[Attack] = &[
    // === accounts ===
    attack("getAccount", NO_ACCOUNT, |it| Call::get(&of_account(it, ""))),
    attack("updateAccount", NO_ACCOUNT, |it| Call::patch(&of_account(it, ""), &json!({"status": "frozen"}))),
    attack("updateAccount", NO_ACCOUNT, |it| {
        Call::patch(&of_account(it, ""), &json!({"metadata": {"note": "mine"}}))
    }),
    attack("updateAccount", NO_ACCOUNT, |it| {
        Call::patch(&of_account(it, ""), &json!({"overdraft": "5.00", "max_balance": "1.00"}))
    }),
    attack("eraseAccountMetadata", NO_ACCOUNT, |it| Call::delete(&of_account(it, "/metadata"))),
    attack("getBalance", NO_ACCOUNT, |it| Call::get(&of_account(it, "/balance"))),
    attack("getBalance", NO_ACCOUNT, |it| Call::get(&of_account(it, &format!("/balance?at={AT}")))),
    attack("listEntries", NO_ACCOUNT, |it| Call::get(&of_account(it, "/entries"))),
    attack("listEntries", NO_ACCOUNT, |it| Call::get(&of_account(it, "/entries?include=metadata")).csv()),
    attack("listEntries", NO_ACCOUNT, |it| {
        let window = "from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";
        Call::get(&of_account(it, &format!("/entries?include=metadata&order=asc&limit=1&{window}")))
    }),
    attack("listEntries", INVALID, |it| {
        Call::get(&of_own(&it.own, &format!("/entries?limit=1&cursor={}", it.cursors.entries)))
    }),
    attack("openAccount", FORBIDDEN, |it| {
        Call::post("/v1/accounts", &json!({"id": it.account, "asset": "EUR", "metadata": {"note": "tell-nobody"}}))
    }),
    attack("openAccount", FORBIDDEN, |it| Call::post("/v1/accounts", &json!({"id": it.account, "asset": "USD"}))),
    attack("openAccounts", FORBIDDEN, |it| {
        let own = json!({"id": format!("{}{}", it.own[0], it.new), "asset": "EUR"});
        Call::post("/v1/accounts:batch", &json!({"accounts": [own, {"id": it.account, "asset": "EUR"}]}))
    }),
    attack("listAccounts", FORBIDDEN, |it| Call::get(&format!("/v1/accounts?prefix={}", it.path()))),
    attack("listAccounts", FORBIDDEN, |it| Call::get(&format!("/v1/accounts?prefix={}&limit=1", it.path()))),
    attack("listAccounts", FORBIDDEN, |it| Call::get(&format!("/v1/accounts?prefix={}", it.path())).csv()),
    attack("listAccounts", FORBIDDEN, |it| Call::get(&format!("/v1/accounts?prefix={}&at={AT}", it.path()))),
    attack("listAccounts", FORBIDDEN, |it| Call::get(&format!("/v1/accounts?prefix={}&at={AT}", it.path())).csv()),
    attack("listAccounts", INVALID, |it| Call::get(&format!("/v1/accounts?limit=1&cursor={}", it.cursors.accounts))),
    attack("sumBalances", FORBIDDEN, |it| Call::get(&format!("/v1/balances?prefix={}", it.path()))),
    attack("sumBalances", FORBIDDEN, |it| Call::get(&format!("/v1/balances?prefix={}&at={AT}", it.path()))),
    attack("sumBalances", FORBIDDEN, |it| Call::get(&format!("/v1/balances?prefix={}&at={AT}", it.path())).csv()),
    // === transfers ===
    attack("createTransfer", FORBIDDEN, |it| Call::post("/v1/transfers", &terms(it.new, &it.account, &it.own[0]))),
    attack("createTransfer", FORBIDDEN, |it| Call::post("/v1/transfers", &terms(it.new, &it.own[0], &it.account))),
    // The order has the id and the debit account of the rival's transfer. A replay would show that transfer.
    attack("createTransfer", FORBIDDEN, |it| Call::post("/v1/transfers", &terms(it.id, &it.account, &it.own[0]))),
    attack("createTransfer", FORBIDDEN, |it| {
        Call::post("/v1/transfers?dry_run=true", &terms(it.new, &it.account, &it.own[0]))
    }),
    attack("createTransfer", FORBIDDEN, |it| {
        Call::post("/v1/transfers?dry_run=true", &terms(it.new, &it.own[0], &it.account))
    }),
    attack("createTransfer", FORBIDDEN, |it| {
        Call::post("/v1/transfers", &nameless(&it.account, &it.own[0])).header("idempotency-key", &it.key)
    }),
    attack("createTransfers", FORBIDDEN, |it| {
        Call::post("/v1/transfers:batch", &json!({"transfers": batch(it), "atomic": false}))
    }),
    attack("createTransfers", FORBIDDEN, |it| {
        Call::post("/v1/transfers:batch", &json!({"transfers": batch(it), "atomic": true}))
    }),
    attack("createTransfers", FORBIDDEN, |it| {
        let items = [terms(it.new, &it.own[0], &it.own[1]), terms(it.id, &it.own[0], &it.account)];
        Call::post("/v1/transfers:batch", &json!({"transfers": items}))
    }),
    attack("createTransfers", FORBIDDEN, |it| Call::lines("/v1/transfers:batch", &batch(it))),
    attack("createTransfers", FORBIDDEN, |it| Call::lines("/v1/transfers:batch?atomic=true", &batch(it))),
    attack("getTransfer", NO_TRANSFER, |it| Call::get(&format!("/v1/transfers/{}", it.id))),
    attack("getTransfer", NO_TRANSFER, |it| Call::get(&format!("/v1/transfers/{}?debit={}", it.id, it.path()))),
    attack("getTransfer", NO_TRANSFER, |it| {
        Call::get(&format!("/v1/transfers/{}?debit={}", it.id, escaped(&it.own[0])))
    }),
    attack("reverseTransfer", NO_TRANSFER, |it| {
        Call::post(&format!("/v1/transfers/{}/reverse", it.id), &json!({"id": it.new}))
    }),
    attack("reverseTransfer", NO_TRANSFER, |it| {
        Call::post(&format!("/v1/transfers/{}/reverse", it.id), &json!({"id": it.id, "amount": "1.00"}))
    }),
    attack("reverseTransfer", NO_TRANSFER, |it| {
        Call::post(&format!("/v1/transfers/{}/reverse?debit={}", it.id, it.path()), &json!({}))
            .header("idempotency-key", &it.key)
    }),
    attack("listTransfers", NO_ACCOUNT, |it| Call::get(&format!("/v1/transfers?account={}", it.path()))),
    attack("listTransfers", NO_ACCOUNT, |it| {
        Call::get(&format!("/v1/transfers?account={}&status=posted&{FILTERS}", it.path()))
    }),
    attack("listTransfers", INVALID, |it| {
        Call::get(&format!("/v1/transfers?account={}&limit=1&cursor={}", escaped(&it.own[0]), it.cursors.transfers))
    }),
    // === holds ===
    attack("createHold", FORBIDDEN, |it| Call::post("/v1/holds", &terms(it.new, &it.account, &it.own[0]))),
    attack("createHold", FORBIDDEN, |it| Call::post("/v1/holds", &terms(it.new, &it.own[0], &it.account))),
    attack("createHold", FORBIDDEN, |it| Call::post("/v1/holds", &terms(it.id, &it.account, &it.own[0]))),
    attack("createHold", FORBIDDEN, |it| {
        Call::post("/v1/holds?dry_run=true", &terms(it.new, &it.account, &it.own[0]))
    }),
    attack("createHold", FORBIDDEN, |it| {
        Call::post("/v1/holds", &nameless(&it.account, &it.own[0])).header("idempotency-key", &it.key)
    }),
    attack("getHold", NO_HOLD, |it| Call::get(&format!("/v1/holds/{}", it.id))),
    attack("getHold", NO_HOLD, |it| Call::get(&format!("/v1/holds/{}?debit={}", it.id, it.path()))),
    attack("captureHold", NO_HOLD, |it| Call::post(&format!("/v1/holds/{}/capture", it.id), &json!({"id": it.new}))),
    attack("captureHold", NO_HOLD, |it| {
        let body = json!({"id": it.new, "amount": "1.00", "final": false});
        Call::post(&format!("/v1/holds/{}/capture?debit={}", it.id, it.path()), &body)
    }),
    attack("captureHold", NO_HOLD, |it| {
        Call::post(&format!("/v1/holds/{}/capture", it.id), &json!({})).header("idempotency-key", &it.key)
    }),
    attack("releaseHold", NO_HOLD, |it| Call::post(&format!("/v1/holds/{}/release", it.id), &json!({}))),
    attack("releaseHold", NO_HOLD, |it| {
        Call::post(&format!("/v1/holds/{}/release?debit={}", it.id, it.path()), &json!({}))
    }),
    attack("eraseHoldMetadata", NO_HOLD, |it| Call::delete(&format!("/v1/holds/{}/metadata", it.id))),
    attack("eraseHoldMetadata", NO_HOLD, |it| {
        Call::delete(&format!("/v1/holds/{}/metadata?debit={}", it.id, it.path()))
    }),
    attack("eraseTransferMetadata", NO_TRANSFER, |it| Call::delete(&format!("/v1/transfers/{}/metadata", it.id))),
    attack("eraseTransferMetadata", NO_TRANSFER, |it| {
        Call::delete(&format!("/v1/transfers/{}/metadata?debit={}", it.id, it.path()))
    }),
    attack("listHolds", NO_ACCOUNT, |it| Call::get(&format!("/v1/holds?account={}", it.path()))),
    attack("listHolds", NO_ACCOUNT, |it| {
        Call::get(&format!("/v1/holds?account={}&status=held&{FILTERS}", it.path()))
    }),
    attack("listHolds", INVALID, |it| {
        Call::get(&format!("/v1/holds?account={}&limit=1&cursor={}", escaped(&it.own[0]), it.cursors.holds))
    }),
];

/// A function that makes an order with this id.
type OfId = fn(&Tenants, Uuid) -> Call;

/// The attacker's own orders with an id that another tenant has used. Each debits an account of the attacker, for which the id is new.
pub const REUSED_IDS: &[(&str, OfId)] = &[
    ("createTransfer", |it, id| Call::post("/v1/transfers", &terms(id, &it.own[0], &it.own[1]))),
    ("createHold", |it, id| Call::post("/v1/holds", &terms(id, &it.own[1], &it.own[0]))),
    ("reverseTransfer", |it, id| {
        Call::post(&format!("/v1/transfers/{}/reverse", it.own_transfer), &json!({"id": id, "amount": "0.01"}))
    }),
    ("captureHold", |it, id| {
        let body = json!({"id": id, "amount": "0.01", "final": false});
        Call::post(&format!("/v1/holds/{}/capture", it.own_hold), &body)
    }),
];

/// The attacker's own order under this idempotency key.
pub fn under_key(it: &Tenants, key: &str) -> Call {
    Call::post("/v1/transfers", &nameless(&it.own[0], &it.own[1])).header("idempotency-key", key)
}

/// Reads that the attacker may send, and whose answers must have nothing of others.
pub const OWN_READS: &[fn(&Tenants) -> Call] = &[
    |_| Call::get("/v1/accounts"),
    |_| Call::get("/v1/accounts").csv(),
    |_| Call::get("/v1/accounts?at=2100-01-01T00:00:00Z"),
    |_| Call::get("/v1/balances"),
    |_| Call::get("/v1/balances?at=2100-01-01T00:00:00Z").csv(),
    |it| Call::get(&of_own(&it.own, "/entries?include=metadata&limit=500")),
    |it| Call::get(&of_own(&it.own, "/entries?include=metadata")).csv(),
    |it| Call::get(&format!("/v1/transfers?account={}&limit=500", escaped(&it.own[0]))),
    |it| Call::get(&format!("/v1/holds?account={}&limit=500", escaped(&it.own[0]))),
    |it| Call::get(&format!("/v1/transfers/{}?debit={}", it.own_transfer, escaped(&it.own[0]))),
    |it| Call::get(&format!("/v1/holds/{}?debit={}", it.own_hold, escaped(&it.own[3]))),
];
