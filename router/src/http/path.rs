//! Ids in paths, of requests and of what they made.

use axum::extract::{FromRequestParts, Path};
use http::{Request, Uri, request::Parts};
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

/// The target of a request as the client sent it, where [`normalize`] has changed it.
#[derive(Debug, Clone)]
pub struct AsSent(pub Uri);

/// Replaces percent-encoded characters of a request's path that need no encoding: `/v1/%61ccounts` is `/v1/accounts` (RFC 3986, section 2.3).
pub fn normalize<B>(request: &mut Request<B>) {
    if !request.uri().path().contains('%') || has_stray_percent(request.uri().path()) {
        return;
    }
    let as_sent = request.uri().clone();
    normalize_uri(request.uri_mut());
    if *request.uri() != as_sent {
        request.extensions_mut().insert(AsSent(as_sent));
    }
}

fn normalize_uri(uri: &mut Uri) {
    let path = decode_unreserved(uri.path());
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = std::mem::take(uri).into_parts();
    // The path has become shorter and holds no character that it did not hold before, encoded or not.
    parts.path_and_query = text.parse().ok();
    if let Ok(normalized) = Uri::from_parts(parts) {
        *uri = normalized;
    }
}

/// Whether a percent sign stands before something else than two hexadecimal digits. What is left of such a path after decoding could be
/// decoded once more.
fn has_stray_percent(path: &str) -> bool {
    let is_encoded =
        |rest: &str| rest.get(..2).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    path.split('%').skip(1).any(|rest| !is_encoded(rest))
}

fn decode_unreserved(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let byte = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
            Some(byte) => {
                decoded.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            None => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded + rest
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_encoding_is_decoded_and_nothing_else() {
        for (given, normal) in [
            ("/v1/%61ccounts/%61%4Cice", "/v1/accounts/aLice"),
            ("/v1/accounts?x=%61", "/v1/accounts?x=%61"),
            ("/v1/accounts/%7Bshop%7D%3aa%2Db?debit=%7B", "/v1/accounts/%7Bshop%7D%3aa-b?debit=%7B"),
            ("/v1/accounts/a%2Fb%252E%00", "/v1/accounts/a%2Fb%252E%00"),
            ("/%", "/%"),
            ("/%6", "/%6"),
            ("/%zz", "/%zz"),
            ("/v1/accounts/%%361", "/v1/accounts/%%361"),
        ] {
            let mut request = Request::builder().uri(given).body(()).unwrap();
            normalize(&mut request);
            assert_eq!(request.uri().to_string(), normal, "{given}");
            let as_sent = request.extensions().get::<AsSent>().map(|sent| sent.0.to_string());
            assert_eq!(as_sent.as_deref(), (given != normal).then_some(given));
        }
    }
}
