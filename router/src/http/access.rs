//! Who sent a request, and what they may do with which account (ADR 15).
//!
//! A layer finds the key before anything else of the request is looked at, and checks the role that its method needs. Handlers
//! check the accounts. What the URL names and the key may not see is answered as if it did not exist; an account that the body
//! names is answered with `not_permitted`, which follows from the key alone.

use std::{future::Future, sync::Arc};

use axum::extract::{FromRequestParts, Request};
use governor::clock::{Clock, DefaultClock};
use http::{HeaderMap, Method, request::Parts};
use keys::{Key, Prefixes, Role};
use ledger::{
    AccountId, AccountPrefix, KeyName, Limit,
    operation::{CreateAccount, PlaceHold},
    outcome::TransferState,
};
use wire::TransferRecord;

use super::{
    context::single,
    metrics::{RefusalReason, count_refused},
    problem::{Code, FieldError, MAX_ERRORS, Place, Problem},
};
use crate::{core::reply::NewTransfer, keyring::Keyring, trace};

/// The only path that needs no key.
const PUBLIC_PATH: &str = "/openapi.json";
/// Opening accounts may be permitted by either of two roles.
const OPENING_PATHS: [&str; 2] = ["/v1/accounts", "/v1/accounts:batch"];
/// The longest text that is hashed. Keys are shorter.
const MAX_SECRET_LEN: usize = 256;

/// What the sender of a request may do.
#[derive(Debug, Clone)]
pub enum Access {
    /// This router has no keys.
    Everything,
    Of(Arc<Key>),
}

/// Finds the key of a request and leaves it in the request's extensions.
///
/// # Errors
/// 401 without a good key, 403 where it lacks the role, 429 beyond its rate.
pub fn authenticate(keyring: Option<&Keyring>, request: &mut Request) -> Result<(), Problem> {
    let access = match keyring {
        None => {
            if let Some(context) = trace::current() {
                let _ = context.needs_no_key.set(());
            }
            Access::Everything
        }
        Some(_) if is_public(request) => Access::Everything,
        Some(keyring) => {
            let secret = bearer(request.headers())?;
            let Some((key, limiter)) = keyring.find(secret) else {
                return Err(unauthenticated("the key is unknown, revoked or expired"));
            };
            if let Some(context) = trace::current() {
                // A request is authenticated once.
                let _ = context.key.set(Arc::clone(&key));
            }
            if let Some(limiter) = limiter
                && let Err(refused) = limiter.check()
            {
                count_refused(RefusalReason::KeyRateLimit);
                let wait = refused.wait_time_from(DefaultClock::default().now());
                return Err(
                    Problem::new(Code::RateLimited, "more requests than the rate of the key").with_retry_after(wait)
                );
            }
            check_role(&key, request)?;
            Access::Of(key)
        }
    };
    request.extensions_mut().insert(access);
    Ok(())
}

/// Whether a request needs no key.
pub fn is_public(request: &Request) -> bool {
    request.uri().path() == PUBLIC_PATH
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let Some(value) = single(headers, "Authorization")? else {
        return Err(unauthenticated("the request has no key: Authorization: Bearer slk_…"));
    };
    let (scheme, secret) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    let secret = secret.trim();
    if scheme.eq_ignore_ascii_case("bearer") && (1..=MAX_SECRET_LEN).contains(&secret.len()) {
        Ok(secret)
    } else {
        Err(unauthenticated("the header Authorization is not a Bearer key: Authorization: Bearer slk_…"))
    }
}

fn unauthenticated(detail: &'static str) -> Problem {
    count_refused(RefusalReason::Unauthenticated);
    Problem::new(Code::Unauthenticated, detail)
}

/// Every route needs a role. A route that is added later without checks of its own needs one, too.
fn check_role(key: &Key, request: &Request) -> Result<(), Problem> {
    let path = request.uri().path();
    let sufficient: &[Role] = match *request.method() {
        Method::GET | Method::HEAD => &[Role::Read],
        Method::PATCH | Method::DELETE => &[Role::Admin],
        _ if OPENING_PATHS.contains(&path) => &[Role::Write, Role::Admin],
        _ => &[Role::Write],
    };
    if sufficient.iter().any(|role| key.roles.contain(*role)) {
        return Ok(());
    }
    let roles: Vec<_> = sufficient.iter().map(|role| role.as_str()).collect();
    let detail = format!("the key {} lacks the role {}", key.name, roles.join(" or "));
    Err(Problem::new(Code::NotPermitted, detail))
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Problem;

    fn from_request_parts(parts: &mut Parts, _: &S) -> impl Future<Output = Result<Self, Problem>> + Send {
        std::future::ready(parts.extensions.get().cloned().ok_or_else(|| {
            tracing::error!("a route is not under the layer that finds keys");
            Problem::internal()
        }))
    }
}

/// The accounts that an order touches.
#[derive(Debug, Clone, Copy)]
pub struct Touched<'a> {
    pub debit: &'a AccountId,
    pub credit: &'a AccountId,
}

impl Access {
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Everything => None,
            Self::Of(key) => Some(key),
        }
    }

    /// The name under which the journal records what the sender of the request orders.
    pub fn ordered_by(&self) -> Option<KeyName> {
        self.key().map(|key| key.name.clone())
    }

    fn permits(&self, prefixes: fn(&Key) -> &Prefixes, account: &AccountId) -> bool {
        self.key().is_none_or(|key| prefixes(key).contain(account))
    }

    pub fn may_read(&self, account: &AccountId) -> bool {
        self.permits(|key| &key.read, account)
    }

    pub fn may_debit(&self, account: &AccountId) -> bool {
        self.permits(|key| &key.debit, account)
    }

    pub fn may_credit(&self, account: &AccountId) -> bool {
        self.permits(|key| &key.credit, account)
    }

    /// The same for an id that a shard sent. No key permits a text that is no account id.
    pub fn may_read_text(&self, account: &str) -> bool {
        self.key().is_none() || AccountId::any(account).is_ok_and(|account| self.may_read(&account))
    }

    // === orders ===

    /// Checks what one request orders.
    pub fn check_order<'a>(&self, order: impl Into<Touched<'a>>) -> Result<(), Problem> {
        self.check_orders([order], |_| String::new())
    }

    /// Checks what a batch orders. `pointer` is that of an item.
    ///
    /// # Errors
    /// Every account of the body that the key may not debit or credit, up to a hundred.
    pub fn check_orders<'a>(
        &self,
        orders: impl IntoIterator<Item = impl Into<Touched<'a>>>,
        pointer: impl Fn(usize) -> String,
    ) -> Result<(), Problem> {
        let Some(key) = self.key() else { return Ok(()) };
        let mut errors = Vec::new();
        for (index, order) in orders.into_iter().enumerate() {
            let order = order.into();
            for (side, account, permitted) in [
                ("debit", order.debit, self.may_debit(order.debit)),
                ("credit", order.credit, self.may_credit(order.credit)),
            ] {
                if !permitted && errors.len() < MAX_ERRORS {
                    errors.push(not_permitted(
                        format!("{}/{side}", pointer(index)),
                        format!("the key {} may not {side} {account}", key.name),
                    ));
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Problem::malformed(errors)) }
    }

    /// Checks accounts to open. `pointer` is that of an account.
    ///
    /// # Errors
    /// Every account that the key may not open, up to a hundred.
    pub fn check_openings<'a>(
        &self,
        accounts: impl IntoIterator<Item = &'a CreateAccount>,
        pointer: impl Fn(usize) -> String,
    ) -> Result<(), Problem> {
        let Some(key) = self.key() else { return Ok(()) };
        let mut errors = Vec::new();
        for (index, account) in accounts.into_iter().enumerate() {
            // The answer shows the account, which may have been there before.
            let missing = match (self.may_debit(&account.id), self.may_read(&account.id)) {
                (false, _) => Some("debit"),
                (true, false) => Some("read"),
                (true, true) => None,
            };
            let error = if let Some(list) = missing {
                not_permitted(
                    format!("{}/id", pointer(index)),
                    format!(
                        "the key {} may not open {}: it is under no {list} prefix of the key",
                        key.name, account.id
                    ),
                )
            } else if account.overdraft != Limit::AtMost(0) && !key.roles.contain(Role::Admin) {
                not_permitted(
                    format!("{}/overdraft", pointer(index)),
                    format!("the key {} lacks the role admin, which accounts with an overdraft need", key.name),
                )
            } else {
                continue;
            };
            if errors.len() < MAX_ERRORS {
                errors.push(error);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Problem::malformed(errors)) }
    }

    /// Checks an account to change.
    ///
    /// # Errors
    /// 404 unless the key may read it, because the answer shows it; 403 unless it may debit it.
    pub fn check_change(&self, account: &AccountId, missing: fn(&AccountId) -> Problem) -> Result<(), Problem> {
        self.check_read(account, missing)?;
        match self.key() {
            Some(key) if !self.may_debit(account) => {
                Err(Problem::new(Code::NotPermitted, format!("the key {} may not change {account}", key.name)))
            }
            _ => Ok(()),
        }
    }

    // === reads ===

    /// Checks an account to read.
    ///
    /// # Errors
    /// 404, as for an account that does not exist.
    pub fn check_read(&self, account: &AccountId, missing: fn(&AccountId) -> Problem) -> Result<(), Problem> {
        if self.may_read(account) { Ok(()) } else { Err(missing(account)) }
    }

    /// The prefix of accounts to list or to add up. `asked`: what the request asks for, the empty prefix unless it has one.
    ///
    /// # Errors
    /// 403 where that is more than the key may read.
    pub fn read_prefix(&self, asked: AccountPrefix) -> Result<AccountPrefix, Problem> {
        let Some(key) = self.key() else { return Ok(asked) };
        if key.read.cover(&asked) {
            return Ok(asked);
        }
        match key.read.only() {
            Some(only) if asked.as_str().is_empty() => Ok(only.clone()),
            _ => {
                let detail = format!(
                    "the key {} may not read every account of this prefix; the parameter prefix must begin with a read prefix of the key",
                    key.name
                );
                let place = Place::Parameter("prefix".to_owned());
                Err(Problem::malformed(vec![FieldError { code: Code::NotPermitted, place, detail }]))
            }
        }
    }

    /// Whether a transfer may be read. Its payee does not learn of transfers that were refused, which would tell of the payer's means.
    pub fn may_read_transfer(&self, record: &TransferRecord) -> bool {
        let is_rejected = record.status == u32::from(TransferState::REJECTED);
        self.may_read_text(&record.debit) || (!is_rejected && self.may_read_text(&record.credit))
    }

    /// Whether a transfer may be read or reversed. A reversal debits its credit account and credits its debit account.
    pub fn has_in_sight(&self, record: &TransferRecord) -> bool {
        let permits =
            |prefixes, text: &str| AccountId::any(text).is_ok_and(|account| self.permits(prefixes, &account));
        self.may_read_transfer(record)
            || (permits(|key| &key.debit, &record.credit) && permits(|key| &key.credit, &record.debit))
    }
}

impl<'a> From<&'a NewTransfer> for Touched<'a> {
    fn from(order: &'a NewTransfer) -> Self {
        Self { debit: &order.debit, credit: &order.credit }
    }
}

impl<'a> From<&'a PlaceHold> for Touched<'a> {
    fn from(order: &'a PlaceHold) -> Self {
        Self { debit: &order.debit, credit: &order.credit }
    }
}

fn not_permitted(pointer: String, detail: String) -> FieldError {
    FieldError { code: Code::NotPermitted, place: Place::Pointer(pointer), detail }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use keys::{Digest, KeyTable};
    use ledger::{AssetCode, Metadata};

    use super::*;

    /// A tenant that may pay fees to one account of the bank.
    fn tenant(roles: &str) -> Access {
        let file = format!(
            "[[key]]\nname = \"shop\"\nroles = [{roles}]\ndebit = [\"{{shop}}:\"]\ncredit = [\"{{shop}}:\", \"=fees\"]\nread = [\"{{shop}}:\"]\n\
             secrets = [{{ sha256 = \"{}\" }}]",
            Digest::of("secret")
        );
        Access::Of(Arc::clone(KeyTable::parse(&file).unwrap().find("secret", 0).unwrap()))
    }

    fn account(id: &str) -> AccountId {
        AccountId::client(id).unwrap()
    }

    fn code(result: Result<(), Problem>) -> &'static str {
        result.map_or_else(|problem| problem.code().as_str(), |()| "permitted")
    }

    fn missing(id: &AccountId) -> Problem {
        Problem::new(Code::AccountNotFound, format!("there is no account {id}"))
    }

    #[test]
    fn orders_need_the_debit_and_the_credit_of_the_key() {
        let access = tenant("\"write\"");
        for (debit, credit, errors) in [
            ("{shop}:a", "{shop}:b", vec![]),
            ("{shop}:a", "fees", vec![]),
            ("{shop}:a", "fees2", vec!["/credit"]),
            ("fees", "{shop}:a", vec!["/debit"]),
            ("{rival}:a", "{rival}:b", vec!["/debit", "/credit"]),
        ] {
            let (debit, credit) = (account(debit), account(credit));
            let order = Touched { debit: &debit, credit: &credit };
            let found = access.check_order(order).map_or_else(|problem| problem.errors().to_vec(), |()| Vec::new());
            let places: Vec<_> = found.iter().map(|error| error.place.clone()).collect();
            assert_eq!(places, errors.iter().map(|place| Place::Pointer((*place).to_owned())).collect::<Vec<_>>());
            assert!(Access::Everything.check_order(order).is_ok());
        }
    }

    #[test]
    fn reads_are_of_the_accounts_of_the_key_and_all_others_do_not_exist() {
        let access = tenant("\"read\"");
        assert_eq!(code(access.check_read(&account("{shop}:a"), missing)), "permitted");
        for foreign in ["fees", "{rival}:a", "{shop}"] {
            assert_eq!(code(access.check_read(&account(foreign), missing)), "account_not_found", "{foreign}");
            assert_eq!(code(access.check_change(&account(foreign), missing)), "account_not_found", "{foreign}");
        }
        let prefix = |text: &str| access.read_prefix(AccountPrefix::new(text).unwrap());
        assert_eq!(prefix("").unwrap().as_str(), "{shop}:");
        assert_eq!(prefix("{shop}:a").unwrap().as_str(), "{shop}:a");
        for wider in ["{shop}", "{", "{rival}:"] {
            assert_eq!(prefix(wider).unwrap_err().code(), Code::NotPermitted, "{wider}");
        }
    }

    #[test]
    fn a_transfer_is_in_sight_of_both_sides_and_a_rejected_one_of_the_payer_only() {
        let access = tenant("\"read\"");
        let record = |debit: &str, credit: &str, status: u8| TransferRecord {
            debit: debit.to_owned(),
            credit: credit.to_owned(),
            status: status.into(),
            ..Default::default()
        };
        for (debit, credit, status, seen) in [
            ("{shop}:a", "{rival}:a", TransferState::POSTED, true),
            ("{shop}:a", "{rival}:a", TransferState::REJECTED, true),
            ("{rival}:a", "{shop}:a", TransferState::POSTED, true),
            ("{rival}:a", "{shop}:a", TransferState::PENDING, true),
            ("{rival}:a", "{shop}:a", TransferState::REJECTED, false),
            ("{rival}:a", "{rival}:b", TransferState::POSTED, false),
            ("fees", "{rival}:b", TransferState::POSTED, false),
        ] {
            let record = record(debit, credit, status);
            assert_eq!(access.may_read_transfer(&record), seen, "{debit} {credit} {status}");
            assert_eq!(access.has_in_sight(&record), seen, "{debit} {credit} {status}");
            assert!(Access::Everything.has_in_sight(&record));
        }
        // Its reversal debits an account of the key and credits one that the key may credit, although it may read neither side.
        assert!(access.has_in_sight(&record("fees", "{shop}:a", TransferState::REJECTED)));
    }

    #[test]
    fn accounts_with_an_overdraft_are_opened_by_admin_only() {
        let opening = |id: &str, overdraft| CreateAccount {
            ordered_by: None,
            id: account(id),
            asset: AssetCode::new("EUR").unwrap(),
            overdraft,
            max_balance: Limit::Unlimited,
            metadata: Metadata::empty(),
        };
        for (roles, id, overdraft, expected) in [
            ("\"write\"", "{shop}:a", Limit::AtMost(0), "permitted"),
            ("\"write\"", "{shop}:a", Limit::AtMost(1), "not_permitted"),
            ("\"write\"", "{shop}:a", Limit::Unlimited, "not_permitted"),
            ("\"admin\"", "{shop}:a", Limit::Unlimited, "permitted"),
            ("\"admin\"", "{rival}:a", Limit::AtMost(0), "not_permitted"),
            ("\"admin\"", "fees", Limit::AtMost(0), "not_permitted"),
        ] {
            let opening = opening(id, overdraft);
            assert_eq!(code(tenant(roles).check_openings([&opening], |_| String::new())), expected, "{roles} {id}");
        }
    }

    #[test]
    fn every_method_needs_its_role() {
        for (method, path, roles) in [
            ("GET", "/v1/accounts", vec!["read"]),
            ("HEAD", "/v1/transfers/x", vec!["read"]),
            ("POST", "/v1/accounts", vec!["write", "admin"]),
            ("POST", "/v1/accounts:batch", vec!["write", "admin"]),
            ("PATCH", "/v1/accounts/x", vec!["admin"]),
            ("POST", "/v1/transfers", vec!["write"]),
            ("POST", "/v1/holds/x/release", vec!["write"]),
            ("DELETE", "/v1/transfers/x/metadata", vec!["admin"]),
            ("PUT", "/v1/to-come", vec!["write"]),
        ] {
            for role in ["read", "write", "admin"] {
                let Access::Of(key) = tenant(&format!("\"{role}\"")) else { unreachable!("a key was made") };
                let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
                assert_eq!(check_role(&key, &request).is_ok(), roles.contains(&role), "{method} {path} {role}");
            }
        }
    }
}
