//! The parameters of requests: ids in paths, and query strings, read strictly. A query parameter that the route does not have, or one that is
//! given twice, is an error.

use std::{future::Future, time::Duration};

use axum::extract::{FromRequestParts, Path, Query};
use http::request::Parts;
use ledger::{AccountId, AccountPrefix, TransferId};
use telemetry::clock;
use utoipa::IntoParams;

use super::{
    json::values,
    problem::{Code, FieldError, Place, Problem},
    schemas::{self, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE},
};

// === paths ===

/// The account a path names.
pub struct AccountPath(pub AccountId);

/// The transfer or hold a path names.
pub struct IdPath(pub TransferId);

impl<S: Send + Sync> FromRequestParts<S> for AccountPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = text_of_path(parts, state).await?;
        let id = AccountId::client(&text);
        id.map(Self).map_err(|reason| Problem::parameter(Code::InvalidId, "id", reason.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        transfer_id(&text_of_path(parts, state).await?).map(Self)
    }
}

/// A transfer id as a URL names it.
pub fn transfer_id(text: &str) -> Result<TransferId, Problem> {
    values::transfer_id(text).map_err(|reason| Problem::parameter(Code::InvalidId, "id", reason))
}

async fn text_of_path<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    Path::<String>::from_request_parts(parts, state)
        .await
        .map(|Path(text)| text)
        .map_err(|_| Problem::parameter(Code::InvalidId, "id", "the id is not UTF-8 once percent-decoded"))
}

// === queries ===

/// The parameters of a request. Take those you know, then [`Parameters::finish`].
#[derive(Debug)]
pub struct Parameters {
    left: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

/// The parameter of routes that have only `debit`, beside the transfer or hold that the path names.
#[derive(Debug, Clone, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DebitParameter {
    /// Its debit account.
    #[param(value_type = schemas::AccountId)]
    pub debit: Option<AccountId>,
}

/// The parameter of routes that have only `dry_run`.
#[derive(Debug, Clone, Copy, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DryRunParameter {
    /// Answer what would happen (status `would_post`, or the refusal), and store nothing.
    pub dry_run: bool,
}

/// Of routes without parameters.
#[derive(Debug, Clone, Copy)]
pub struct NoParameters;

impl Parameters {
    /// The parameter's text, where it is given.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let index = self.left.iter().position(|(key, _)| key == name)?;
        let (_, value) = self.left.remove(index);
        if self.left.iter().any(|(key, _)| key == name) {
            self.left.retain(|(key, _)| key != name);
            self.refuse(Code::InvalidParameter, name, "the parameter is given twice");
        }
        Some(value)
    }

    /// The parameter as `read` understands it. What it refuses is noted and answered by [`Parameters::finish`].
    pub fn take_as<T>(&mut self, name: &str, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.take(name)?;
        let value = read(&text);
        if value.is_none() {
            self.refuse(Code::InvalidParameter, name, expected);
        }
        value
    }

    /// Notes a mistake.
    pub fn refuse(&mut self, code: Code, name: &str, detail: &str) {
        let place = Place::Parameter(name.to_owned());
        self.errors.push(FieldError { code, place, detail: format!("{name}: {detail}") });
    }

    /// All mistakes, with the parameters that the route does not have.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.left) {
            self.refuse(Code::UnknownParameter, &name, "unknown parameter");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::malformed(self.errors)) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    fn from_request_parts(parts: &mut Parts, _: &S) -> impl Future<Output = Result<Self, Problem>> + Send {
        std::future::ready(match Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            Ok(Query(left)) => Ok(Self { left, errors: Vec::new() }),
            Err(_) => Err(Problem::new(Code::InvalidParameter, "the query string is malformed")),
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // Nearly every request has no query at all.
        if parts.uri.query().is_none() {
            return Ok(Self);
        }
        Parameters::from_request_parts(parts, state).await?.finish().map(|()| Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for DebitParameter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut parameters = Parameters::from_request_parts(parts, state).await?;
        let debit = match parameters.take("debit").map(|text| AccountId::client(&text)) {
            None => None,
            Some(Ok(debit)) => Some(debit),
            Some(Err(reason)) => {
                parameters.refuse(Code::InvalidId, "debit", &reason.to_string());
                None
            }
        };
        parameters.finish()?;
        Ok(Self { debit })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for DryRunParameter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.uri.query().is_none() {
            return Ok(Self { dry_run: false });
        }
        let mut parameters = Parameters::from_request_parts(parts, state).await?;
        let dry_run = parameters.take_as("dry_run", "true or false", |text| text.parse().ok());
        parameters.finish()?;
        Ok(Self { dry_run: dry_run.unwrap_or(false) })
    }
}

// === lists: how many at once, where to go on, and which accounts ===

/// The hint for a client that sends a wrong `cursor`.
pub const CURSOR_EXPECTED: &str = "next_cursor of the page before";

/// Takes `limit`.
pub fn limit(parameters: &mut Parameters) -> u32 {
    let limit = parameters.take_as("limit", "a number from 1 to 500", |text| {
        text.parse().ok().filter(|limit| (1..=MAX_PAGE_SIZE).contains(limit))
    });
    limit.unwrap_or(DEFAULT_PAGE_SIZE)
}

/// Takes `prefix`, the empty one unless it is given. `None`: it is wrong, which [`Parameters::finish`] answers.
pub fn prefix(parameters: &mut Parameters) -> Option<AccountPrefix> {
    let text = parameters.take("prefix").unwrap_or_default();
    let prefix = AccountPrefix::new(&text);
    if let Err(reason) = &prefix {
        parameters.refuse(Code::InvalidParameter, "prefix", &format!("the beginning of account ids; {reason}"));
    }
    prefix.ok()
}

/// The hint for a client that sends a wrong time.
pub const TIME_EXPECTED: &str = "a time in RFC 3339, such as 2026-01-31T12:00:00Z (a + in an offset is %2B)";

/// Takes `at`, in microseconds since the epoch. A time in the future counts as now, because nothing is known of it.
pub fn instant(parameters: &mut Parameters) -> Option<i64> {
    parameters.take_as("at", TIME_EXPECTED, clock::parse_rfc3339).map(|at_us| at_us.min(clock::now_us()))
}

/// The time after which no shard commits anything that is dated before: its lane dates a batch and commits it some milliseconds later, and
/// its clock may be a second behind that of this router.
const SETTLED_AFTER_US: i64 = 2_000_000;

/// Waits until an instant is settled, so that an answer as of it does not have one side of a payment and lack the other.
pub async fn settled(at_us: i64) {
    let wait_us = (at_us + SETTLED_AFTER_US - clock::now_us()).clamp(0, SETTLED_AFTER_US);
    tokio::time::sleep(Duration::from_micros(wait_us.unsigned_abs())).await;
}

/// Times before 1970 are before everything this ledger can know; 0 means "open" on the wire.
pub fn positive_time(text: &str) -> Option<i64> {
    clock::parse_rfc3339(text).map(|us| us.max(1))
}

/// Refuses the parameters of pages where the answer is whole.
pub fn refuse_pages(parameters: &mut Parameters, why: &str) {
    for name in ["limit", "cursor"] {
        if parameters.take(name).is_some() {
            parameters.refuse(Code::InvalidParameter, name, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parameters(query: &str) -> Parameters {
        let request = http::Request::builder().uri(format!("/x?{query}")).body(()).unwrap();
        Parameters::from_request_parts(&mut request.into_parts().0, &()).await.unwrap()
    }

    #[tokio::test]
    async fn every_parameter_is_known_and_there_once() {
        let mut good = parameters("limit=5&cursor=a%20b").await;
        assert_eq!(good.take_as("limit", "a number", |text| text.parse::<u32>().ok()), Some(5));
        assert_eq!(good.take("cursor").as_deref(), Some("a b"));
        assert!(good.finish().is_ok());

        let mut bad = parameters("limit=x&cursor=1&cursor=2&extra").await;
        bad.take_as("limit", "a number", |text| text.parse::<u32>().ok());
        bad.take("cursor");
        let problem = bad.finish().unwrap_err();
        assert_eq!(problem.code(), Code::UnknownParameter);
        assert_eq!(problem.errors().len(), 3);
    }
}
