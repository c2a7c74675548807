//! The id of a cluster.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identifies one cluster. The cluster's map, databases, nodes and routers all carry the id, and each refuses a party
/// with another one. It is generated once, when the cluster is created, and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(Uuid);

/// A text that is not a cluster id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a cluster id: a UUID such as 0190d7c0-0000-7000-8000-000000000001, not all zeros")]
pub struct InvalidClusterId(pub String);

impl ClusterId {
    /// Generates a new, unique id.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl TryFrom<Uuid> for ClusterId {
    type Error = InvalidClusterId;

    fn try_from(id: Uuid) -> Result<Self, InvalidClusterId> {
        if id.is_nil() { Err(InvalidClusterId(id.to_string())) } else { Ok(Self(id)) }
    }
}

/// The id's 16 bytes, as on the wire.
impl TryFrom<&[u8]> for ClusterId {
    type Error = InvalidClusterId;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidClusterId> {
        Uuid::from_slice(bytes).map_err(|_| InvalidClusterId(format!("{bytes:02x?}")))?.try_into()
    }
}

impl TryFrom<String> for ClusterId {
    type Error = InvalidClusterId;

    fn try_from(text: String) -> Result<Self, InvalidClusterId> {
        text.parse()
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.to_string()
    }
}

impl FromStr for ClusterId {
    type Err = InvalidClusterId;

    fn from_str(text: &str) -> Result<Self, InvalidClusterId> {
        // Other spellings (braces, URN, no hyphens) would give one id several texts.
        Uuid::try_parse(text)
            .ok()
            .filter(|id| id.to_string().eq_ignore_ascii_case(text))
            .and_then(|id| Self::try_from(id).ok())
            .ok_or_else(|| InvalidClusterId(text.to_owned()))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_as_it_prints_and_has_one_spelling() {
        let id = ClusterId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        assert_eq!(ClusterId::try_from(id.as_bytes().as_slice()), Ok(id));
        let plain = id.as_uuid().simple().to_string();
        for bad in ["", "s0", "00000000-0000-0000-0000-000000000000", plain.as_str(), &format!("{{{id}}}")] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?}");
        }
        assert!(ClusterId::try_from([1_u8, 2].as_slice()).is_err());
    }
}
