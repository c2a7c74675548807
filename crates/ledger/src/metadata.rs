//! Metadata of accounts and transfers: a small map of strings, kept in one canonical form so that contents compare.

use std::{collections::BTreeMap, sync::Arc};

/// A JSON object of strings with sorted keys; the empty map is the empty string. Erased metadata is the text [`Metadata::ERASED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(Option<Arc<str>>);

/// Why a map is no metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("metadata has at most {max} keys", max = Metadata::MAX_KEYS)]
    TooManyKeys,
    #[error("keys and values of metadata have at most {max} bytes together", max = Metadata::MAX_BYTES)]
    TooLarge,
    #[error("metadata must not contain the NUL character")]
    Nul,
}

impl Metadata {
    pub const MAX_KEYS: usize = 16;
    /// Keys and values together.
    pub const MAX_BYTES: usize = 4096;

    /// The stored form of erased metadata. No client can send it, because it is not a JSON object.
    pub const ERASED: &str = "-";

    pub const fn empty() -> Self {
        Self(None)
    }

    /// What stands in place of erased metadata.
    pub fn erased() -> Self {
        Self(Some(Arc::from(Self::ERASED)))
    }

    pub fn from_map(map: &BTreeMap<String, String>) -> Result<Self, MetadataError> {
        if map.is_empty() {
            return Ok(Self::empty());
        }
        if map.len() > Self::MAX_KEYS {
            return Err(MetadataError::TooManyKeys);
        }
        if map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > Self::MAX_BYTES {
            return Err(MetadataError::TooLarge);
        }
        // PostgreSQL text cannot hold NUL.
        if map.iter().any(|(k, v)| k.contains('\0') || v.contains('\0')) {
            return Err(MetadataError::Nul);
        }
        Ok(Self::from_canonical(&serde_json::to_string(map).unwrap_or_default()))
    }

    /// Text that [`Metadata::as_str`] gave, read back from the wire or the database.
    pub fn from_canonical(text: &str) -> Self {
        Self((!text.is_empty()).then(|| Arc::from(text)))
    }

    /// The canonical form; empty for no metadata.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The canonical form as readers see it: what was erased is shown as none.
    pub fn shown(&self) -> &str {
        if self.has_text() { self.as_str() } else { "" }
    }

    /// Whether there is something to erase.
    pub fn has_text(&self) -> bool {
        self.0.as_deref().is_some_and(|text| text != Self::ERASED)
    }

    /// Whether a repeated request has other metadata than the first one. Erased metadata equals any other.
    pub fn differs_from(&self, other: &Self) -> bool {
        let is_erased = |metadata: &Self| metadata.0.as_deref() == Some(Self::ERASED);
        !is_erased(self) && !is_erased(other) && self != other
    }
}
