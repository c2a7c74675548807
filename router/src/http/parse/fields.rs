//! How the fast reader takes single fields: straight into the ledger's types, from borrowed text where the JSON allows.
//!
//! Its errors are never shown (the explaining reader runs instead), so they carry no text.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use ledger::{AccountId, AccountStatus, AssetCode, Metadata, TransferId};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{MAX_BATCH_ITEMS, rules};

/// A JSON object as `T`. serde alone would also take an array of the fields' values for one.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

fn text<'de, D: Deserializer<'de>, T>(deserializer: D, read: fn(&str) -> Option<T>) -> Result<T, D::Error> {
    struct Text<T>(fn(&str) -> Option<T>);

    impl<T> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).ok_or_else(|| E::custom(""))
        }
    }

    deserializer.deserialize_str(Text(read))
}

/// An absent field and `null` are one.
fn nullable<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    read: fn(&str) -> Option<T>,
) -> Result<Option<T>, D::Error> {
    struct Nullable<T>(fn(&str) -> Option<T>);

    impl<'de, T> Visitor<'de> for Nullable<T> {
        type Value = Option<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string or null")
        }

        fn visit_none<E>(self) -> Result<Option<T>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
            text(deserializer, self.0).map(Some)
        }
    }

    deserializer.deserialize_option(Nullable(read))
}

pub fn account_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AccountId, D::Error> {
    text(deserializer, |text| AccountId::client(text).ok())
}

pub fn transfer_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TransferId>, D::Error> {
    nullable(deserializer, |text| rules::transfer_id(text).ok())
}

pub fn asset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AssetCode, D::Error> {
    text(deserializer, |text| AssetCode::new(text).ok())
}

pub fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AccountStatus>, D::Error> {
    text(deserializer, AccountStatus::parse).map(Some)
}

/// A string that `null` cannot stand for.
pub fn some_text<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    #[derive(Deserialize)]
    struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
    Borrowed::deserialize(deserializer).map(|text| Some(text.0))
}

/// Seconds to expire; `null` is none.
pub fn expires_in_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let Some(seconds) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let whole = seconds.as_u64().or_else(|| seconds.as_f64().and_then(rules::whole));
    let seconds = whole.ok_or_else(|| D::Error::custom(""))?;
    rules::expires_in_s(seconds).map(Some).map_err(D::Error::custom)
}

/// Tells an absent field (outer `None`, by `default`) from `null` (inner `None`).
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A map of strings in canonical form; a key given twice is refused. `null` is the empty map: in a change it clears.
pub fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Metadata>, D::Error> {
    struct MetadataVisitor;

    impl<'de> Visitor<'de> for MetadataVisitor {
        type Value = Option<Metadata>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object of strings or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Some(Metadata::empty()))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = members.next_entry::<String, String>()? {
                if map.len() == Metadata::MAX_KEYS || map.insert(key, value).is_some() {
                    return Err(A::Error::custom(""));
                }
            }
            rules::metadata(&map).map(Some).map_err(A::Error::custom)
        }
    }

    deserializer.deserialize_any(MetadataVisitor)
}

/// The items of a batch: one at least, [`MAX_BATCH_ITEMS`] at most.
pub fn items<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Items<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(Object(item)) = sequence.next_element()? {
                if items.len() == MAX_BATCH_ITEMS {
                    return Err(A::Error::custom(""));
                }
                items.push(item);
            }
            if items.is_empty() { Err(A::Error::custom("")) } else { Ok(items) }
        }
    }

    deserializer.deserialize_seq(Items(PhantomData))
}
