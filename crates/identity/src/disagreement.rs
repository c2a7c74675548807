//! A fact on which two parties differ.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One compared fact: the expected value, the value found, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// The name of the fact, such as `cluster` or `synchronous_commit`. Names are stable, so programs may match on
    /// them.
    pub fact: String,
    pub expected: String,
    pub found: String,
    /// What the operator should do, as a sentence.
    pub remedy: String,
}

impl Disagreement {
    pub fn new(
        fact: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self { fact: fact.into(), expected: expected.to_string(), found: found.to_string(), remedy: remedy.into() }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fact, expected, found, remedy } = self;
        write!(f, "{fact}: expected {expected}, found {found}. {remedy}")
    }
}

/// At least one disagreement, as an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", Lines(.0))]
pub struct Disagreements(Vec<Disagreement>);

impl Disagreements {
    /// `Ok` if there is no disagreement.
    pub fn check(found: Vec<Disagreement>) -> Result<(), Self> {
        if found.is_empty() { Ok(()) } else { Err(Self(found)) }
    }

    pub fn list(&self) -> &[Disagreement] {
        &self.0
    }

    pub fn into_list(self) -> Vec<Disagreement> {
        self.0
    }
}

impl From<Disagreement> for Disagreements {
    fn from(one: Disagreement) -> Self {
        Self(vec![one])
    }
}

struct Lines<'a>(&'a [Disagreement]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, disagreement) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}{disagreement}")?;
        }
        Ok(())
    }
}
