//! Ids in paths.

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

/// An account id as it stands in a URL. Of its characters only the braces need escaping.
pub fn escaped(account: &AccountId) -> String {
    account.as_str().replace('{', "%7B").replace('}', "%7D")
}

async fn text<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    Path::<String>::from_request_parts(parts, state)
        .await
        .map(|Path(text)| text)
        .map_err(|_| Problem::parameter(Code::InvalidId, "id", "the id is not UTF-8 once percent-decoded"))
}
