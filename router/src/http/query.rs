//! Query strings, read strictly: a parameter that the route does not have, or one given twice, is an error.

use std::future::Future;

use axum::extract::{FromRequestParts, Query};
use http::request::Parts;
use ledger::AccountId;
use utoipa::IntoParams;

use super::{
    openapi::values,
    problem::{Code, FieldError, Place, Problem},
};

/// The parameters of a request. Take those you know, then [`Parameters::finish`].
#[derive(Debug)]
pub struct Parameters {
    left: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

/// For routes that know `debit` alone, beside the transfer or hold that the path names.
#[derive(Debug, Clone, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DebitParameter {
    /// Its debit account.
    #[param(value_type = values::AccountId)]
    pub debit: Option<AccountId>,
}

/// For routes that know `dry_run` alone.
#[derive(Debug, Clone, Copy, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DryRunParameter {
    /// Answer what would happen (status `would_post`, or the refusal), and store nothing.
    pub dry_run: bool,
}

/// For routes that know no parameter.
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
