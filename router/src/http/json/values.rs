//! The rules for single values of a body, and how the [`Reader`] takes each from its object.
//!
//! A method returns `None` if the value is wrong; the error is then in the reader. A member that may be absent is an `Option` within.

use std::collections::BTreeMap;

use ledger::{AccountId, AccountStatus, AssetCode, AssetRegistry, Limit, Metadata, TransferId, parse_minor};
use uuid::Uuid;

use super::{Node, Object, Pointer, Reader, expected};
use crate::http::{problem::Code, schemas::UNLIMITED};

/// Ids of transfers and holds are derived in this namespace. It must never change: old keys would name new transfers.
const DERIVED_IDS: Uuid = Uuid::from_u128(0x6f0e_2a51_9c1d_4c0f_8a54_7d1b_3e9f_c2a7);
/// Length of the hyphenated form. No other form is accepted, so that a transfer has one spelling.
const UUID_TEXT_LEN: usize = 36;
/// The longest time that a hold can be asked to last, in seconds: a leap year.
const MAX_EXPIRES_IN_S: u32 = 366 * 24 * 60 * 60;

/// How a limit that is written in a scale is read.
pub type LimitRule = fn(&str, u32) -> Result<Limit, String>;

/// Where the id of a transfer or hold may come from.
#[derive(Debug, Clone, Copy)]
pub enum IdSource<'k> {
    /// The body only: an item of a batch.
    Body,
    /// The body, else the header `Idempotency-Key` if the request has one.
    BodyOrKey(Option<&'k str>),
}

/// The id of a transfer or hold as its request names it.
#[derive(Debug, Clone)]
pub enum GivenId {
    Id(TransferId),
    /// The header `Idempotency-Key`.
    Key(String),
}

/// What a transfer and a hold have in common.
pub struct Terms {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units.
    pub amount: i64,
}

impl GivenId {
    /// The id as one of this debit account.
    pub fn of(&self, debit: &AccountId) -> TransferId {
        match self {
            Self::Id(id) => *id,
            Self::Key(key) => derived_transfer_id(debit, key),
        }
    }
}

// === rules ===

/// The id of a transfer or hold.
pub fn transfer_id(text: &str) -> Result<TransferId, &'static str> {
    if text.len() != UUID_TEXT_LEN {
        return Err("an id is a UUID of 36 characters such as \"01890a5d-ac96-774b-bcce-b302099a8057\"");
    }
    match Uuid::try_parse(text) {
        Ok(id) if id.is_nil() => Err("the nil UUID is no id"),
        Ok(id) => Ok(TransferId(id)),
        Err(_) => Err("an id is a UUID such as \"01890a5d-ac96-774b-bcce-b302099a8057\""),
    }
}

/// The id of a transfer or hold ordered with an idempotency key. NUL separates the two parts, because neither can contain it.
pub fn derived_transfer_id(debit: &AccountId, key: &str) -> TransferId {
    let name = [debit.as_str().as_bytes(), b"\0", key.as_bytes()].concat();
    TransferId(Uuid::new_v5(&DERIVED_IDS, &name))
}

/// A well-formed asset code that this installation knows, with its scale.
fn asset(text: &str, assets: &AssetRegistry) -> Result<(AssetCode, u32), String> {
    let code = AssetCode::new(text).map_err(|reason| reason.to_string())?;
    let scale =
        assets.scale(code).ok_or_else(|| format!("the asset {code} is not known here; declare it in [assets]"))?;
    Ok((code, scale))
}

/// The scale in which an amount is written. An amount is checked against it where the asset is not known.
fn written_scale(text: &str) -> u32 {
    let places = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    u32::try_from(places).unwrap_or(u32::MAX).min(AssetRegistry::MAX_SCALE)
}

/// The amount of a transfer or hold, in minor units.
pub fn positive_amount(text: &str, scale: u32) -> Result<i64, String> {
    match parse_minor(text, scale) {
        Ok(0) => Err("the amount must be greater than zero".to_owned()),
        Ok(minor) => Ok(minor),
        Err(reason) => Err(reason.to_string()),
    }
}

/// An overdraft: an amount, or `unlimited`.
pub fn overdraft(text: &str, scale: u32) -> Result<Limit, String> {
    if text == UNLIMITED {
        return Ok(Limit::Unlimited);
    }
    max_balance(text, scale)
}

/// A largest balance. An account without one has JSON `null`, which is not a string.
pub fn max_balance(text: &str, scale: u32) -> Result<Limit, String> {
    parse_minor(text, scale).map(Limit::AtMost).map_err(|reason| reason.to_string())
}

/// The value of a JSON number that was not written as an integer. JSON has one kind of number: `60.0` and `6e1` are whole.
pub fn whole(number: f64) -> Option<u64> {
    // Only a whole number prints without a point, and only one that fits parses as a u64.
    number.to_string().parse().ok()
}

/// When a hold expires, in seconds from when it is placed.
fn expires_in_s(seconds: u64) -> Result<u32, String> {
    match u32::try_from(seconds) {
        Ok(seconds @ 1..=MAX_EXPIRES_IN_S) => Ok(seconds),
        _ => Err(format!("a hold expires after 1 to {MAX_EXPIRES_IN_S} seconds")),
    }
}

// === members ===

impl Reader<'_> {
    /// What a transfer and a hold have in common. Returns the id from the body also if another member is wrong.
    pub fn terms(&mut self, object: Object<'_, '_>, source: IdSource<'_>) -> (Option<TransferId>, Option<Terms>) {
        let given = self.transfer_id(object, source);
        let debit = self.account_id(object, "debit");
        let credit = self.account_id(object, "credit");
        if debit.is_some() && debit == credit {
            self.add(Code::SameAccount, object.place_of("credit"), "debit and credit must be two accounts");
        }
        let asset = self.asset(object);
        let amount = self.positive_amount(object, asset.map(|(_, scale)| scale));
        let id = match given {
            Some(GivenId::Id(id)) => Some(id),
            _ => None,
        };
        let terms = || {
            let (debit, (asset, _)) = (debit?, asset?);
            Some(Terms { id: given?.of(&debit), debit, credit: credit?, asset, amount: amount? })
        };
        (id, terms())
    }

    pub fn account_id(&mut self, object: Object<'_, '_>, name: &str) -> Option<AccountId> {
        let text = self.required_text(object, name, Code::InvalidId)?;
        self.checked(object, name, Code::InvalidId, AccountId::client(text))
    }

    pub fn transfer_id(&mut self, object: Object<'_, '_>, source: IdSource<'_>) -> Option<GivenId> {
        match object.get("id") {
            None | Some(Node::Null) => {
                let detail = match source {
                    IdSource::BodyOrKey(Some(key)) => return Some(GivenId::Key(key.to_owned())),
                    IdSource::BodyOrKey(None) => "give an id, or the header Idempotency-Key",
                    IdSource::Body => "each item of a batch needs its own id",
                };
                self.add(Code::IdempotencyRequired, object.place_of("id"), detail);
                None
            }
            Some(Node::String(text)) => {
                self.checked(object, "id", Code::InvalidId, transfer_id(text)).map(GivenId::Id)
            }
            other => {
                self.add(Code::InvalidId, object.place_of("id"), expected("a string", other));
                None
            }
        }
    }

    /// The asset and its scale.
    pub fn asset(&mut self, object: Object<'_, '_>) -> Option<(AssetCode, u32)> {
        let text = self.required_text(object, "asset", Code::InvalidAsset)?;
        self.checked(object, "asset", Code::InvalidAsset, asset(text, self.assets))
    }

    /// The amount in minor units. Without `scale`, because the asset is wrong, it is only checked.
    fn positive_amount(&mut self, object: Object<'_, '_>, scale: Option<u32>) -> Option<i64> {
        let text = self.required_text(object, "amount", Code::InvalidAmount)?;
        let amount = positive_amount(text, scale.unwrap_or_else(|| written_scale(text)));
        self.checked(object, "amount", Code::InvalidAmount, amount)
    }

    /// The text of an amount that may be absent, where the asset is not known yet.
    pub fn amount_text(&mut self, object: Object<'_, '_>) -> Option<Option<String>> {
        if matches!(object.get("amount"), None | Some(Node::Null)) {
            return Some(None);
        }
        self.positive_amount(object, None)?;
        self.required_text(object, "amount", Code::InvalidAmount).map(|text| Some(text.to_owned()))
    }

    pub fn expires_in_s(&mut self, object: Object<'_, '_>) -> Option<Option<u32>> {
        match object.get("expires_in_s") {
            None | Some(Node::Null) => Some(None),
            Some(Node::Number(Some(seconds))) => {
                self.checked(object, "expires_in_s", Code::InvalidExpiry, expires_in_s(*seconds)).map(Some)
            }
            other => {
                let detail = expected("a whole number of seconds", other);
                self.add(Code::InvalidExpiry, object.place_of("expires_in_s"), detail);
                None
            }
        }
    }

    /// A limit in the asset of the account. Without `scale`, because the asset is wrong or not known yet, it is only checked.
    pub fn limit(
        &mut self,
        object: Object<'_, '_>,
        name: &str,
        scale: Option<u32>,
        rule: LimitRule,
        null_allowed: bool,
    ) -> Option<Option<Limit>> {
        match object.get(name) {
            None => Some(None),
            Some(Node::Null) if null_allowed => Some(None),
            Some(Node::String(text)) => {
                let limit = rule(text, scale.unwrap_or_else(|| written_scale(text)));
                self.checked(object, name, Code::InvalidAmount, limit).map(Some)
            }
            other => {
                self.add(Code::InvalidAmount, object.place_of(name), expected("a decimal string", other));
                None
            }
        }
    }

    /// Metadata in canonical form. `null` is the empty map, which removes the metadata of an account that is changed.
    pub fn metadata(&mut self, object: Object<'_, '_>) -> Option<Option<Metadata>> {
        let place = object.place_of("metadata");
        let entries = match object.get("metadata") {
            None => return Some(None),
            Some(Node::Null) => return Some(Some(Metadata::empty())),
            Some(Node::Object(entries)) => entries,
            other => {
                self.add(Code::InvalidMetadata, place, expected("an object of strings", other));
                return None;
            }
        };
        let mut is_good = self.keys_differ(entries, place);
        if entries.len() > Metadata::MAX_KEYS {
            self.add(Code::InvalidMetadata, place, format!("metadata has at most {} keys", Metadata::MAX_KEYS));
            return None;
        }
        let mut map = BTreeMap::new();
        for (key, value) in entries {
            match value {
                Node::String(text) => {
                    map.insert(key.clone().into_owned(), text.clone().into_owned());
                }
                other => {
                    is_good = false;
                    let place = Pointer::Member(&place, key);
                    self.add(Code::InvalidMetadata, place, expected("a string", Some(other)));
                }
            }
        }
        let metadata = self.checked(object, "metadata", Code::InvalidMetadata, Metadata::from_map(&map));
        metadata.filter(|_| is_good).map(Some)
    }

    pub fn status(&mut self, object: Object<'_, '_>) -> Option<Option<AccountStatus>> {
        let text = match object.get("status") {
            None => return Some(None),
            Some(Node::String(text)) => text.as_ref(),
            Some(_) => "",
        };
        let status = AccountStatus::parse(text);
        if status.is_none() {
            self.add(Code::InvalidStatus, object.place_of("status"), "a status is open, frozen or closed");
        }
        status.map(Some)
    }

    pub fn boolean(&mut self, object: Object<'_, '_>, name: &str) -> Option<Option<bool>> {
        match object.get(name) {
            None => Some(None),
            Some(Node::Bool(value)) => Some(Some(*value)),
            other => {
                self.add(Code::InvalidJson, object.place_of(name), expected("true or false", other));
                None
            }
        }
    }

    fn required_text<'n>(&mut self, object: Object<'n, '_>, name: &str, code: Code) -> Option<&'n str> {
        match object.get(name) {
            Some(Node::String(text)) => Some(text),
            other => {
                self.add(code, object.place_of(name), expected("a string", other));
                None
            }
        }
    }

    fn checked<T, E: ToString>(
        &mut self,
        object: Object<'_, '_>,
        name: &str,
        code: Code,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.add(code, object.place_of(name), reason.to_string())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_pinned() {
        let debit = AccountId::client("alice").unwrap();
        let id = derived_transfer_id(&debit, "order-1");
        assert_eq!(id, derived_transfer_id(&debit, "order-1"));
        assert_eq!(id.0.get_version_num(), 5);
        assert_eq!(id.0.to_string(), "dc6073fb-d81a-5822-a852-9f663f80a696");
        assert_ne!(id, derived_transfer_id(&AccountId::client("alic").unwrap(), "e\0order-1"));
        assert_ne!(id, derived_transfer_id(&debit, "order-2"));
    }

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        assert!(transfer_id("01890a5d-ac96-774b-bcce-b302099a8057").is_ok());
        assert!(transfer_id("01890A5D-AC96-774B-BCCE-B302099A8057").is_ok());
        for bad in [
            "",
            "01890a5dac96774bbcceb302099a8057",
            "{01890a5d-ac96-774b-bcce-b302099a8057}",
            "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057",
            "01890a5d-ac96-774b-bcce-b302099a805g",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert!(transfer_id(bad).is_err(), "{bad:?}");
        }
    }
}
