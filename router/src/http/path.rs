//! Ids in paths, of requests and of what they made.

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use ledger::{AccountId, TransferId};

use super::{
    parse,
    problem::{Code, Problem},
};

/// The account a path names.
pub struct AccountPath(pub AccountId);

/// The transfer or hold a path names.
pub struct IdPath(pub TransferId);

impl<S: Send + Sync> FromRequestParts<S> for AccountPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        parse::account_id_parameter(&text(parts, state).await?).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        transfer_id(&text(parts, state).await?).map(Self)
    }
}

/// A transfer id as a URL names it.
pub fn transfer_id(text: &str) -> Result<TransferId, Problem> {
    parse::transfer_id_parameter(text)
}

/// Where to read an account.
pub fn of_account(id: &AccountId) -> String {
    format!("/v1/accounts/{}", escaped(id))
}

/// Where to read a transfer. With the debit account, so that it goes straight to its shard and is never ambiguous.
pub fn of_transfer(id: TransferId, debit: &AccountId) -> String {
    of_owned("transfers", id, debit)
}

/// Where to read a hold; with the debit account, too.
pub fn of_hold(id: TransferId, debit: &AccountId) -> String {
    of_owned("holds", id, debit)
}

fn of_owned(collection: &str, id: TransferId, debit: &AccountId) -> String {
    format!("/v1/{collection}/{}?debit={}", id.0, escaped(debit))
}

/// An account id as it stands in a URL. Of its characters only the braces need escaping.
fn escaped(account: &AccountId) -> String {
    account.as_str().replace('{', "%7B").replace('}', "%7D")
}

async fn text<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    Path::<String>::from_request_parts(parts, state)
        .await
        .map(|Path(text)| text)
        .map_err(|_| Problem::parameter(Code::InvalidId, "id", "the id is not UTF-8 once percent-decoded"))
}
