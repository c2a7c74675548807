//! The rules for single values, used by both readers.

use std::collections::BTreeMap;

use ledger::{AccountId, AssetCode, AssetRegistry, Limit, Metadata, TransferId, parse_minor};
use uuid::Uuid;

/// Ids of transfers and holds are derived in this namespace. Changing it would make old keys name new transfers: never do.
const DERIVED_IDS: Uuid = Uuid::from_u128(0x6f0e_2a51_9c1d_4c0f_8a54_7d1b_3e9f_c2a7);
/// Length of the hyphenated form, the only one taken: one transfer, one spelling.
const UUID_TEXT_LEN: usize = 36;
/// The longest a hold can be asked to last, in seconds: a leap year.
pub const MAX_EXPIRES_IN_S: u32 = 366 * 24 * 60 * 60;
/// What `overdraft` says for "no limit".
pub const UNLIMITED: &str = "unlimited";

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

/// The id of a transfer or hold ordered with an idempotency key. NUL separates, because neither part can contain it.
pub fn derived_transfer_id(debit: &AccountId, key: &str) -> TransferId {
    let name = [debit.as_str().as_bytes(), b"\0", key.as_bytes()].concat();
    TransferId(Uuid::new_v5(&DERIVED_IDS, &name))
}

/// The id of a transfer or hold: the one the client gave it, else the one derived from its key. `None`: it has neither.
pub fn id_or_derived(given: Option<TransferId>, debit: &AccountId, key: Option<&str>) -> Option<TransferId> {
    match given {
        Some(id) => Some(id),
        None => Some(derived_transfer_id(debit, key?)),
    }
}

/// A well-formed asset code that this installation knows, with its scale.
pub fn asset(text: &str, assets: &AssetRegistry) -> Result<(AssetCode, u32), String> {
    let code = AssetCode::new(text).map_err(|reason| reason.to_string())?;
    let scale =
        assets.scale(code).ok_or_else(|| format!("the asset {code} is not known here; declare it in [assets]"))?;
    Ok((code, scale))
}

/// The scale an amount is written in: what it is checked against where its asset is not known.
pub fn written_scale(text: &str) -> u32 {
    let places = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    u32::try_from(places).unwrap_or(u32::MAX).min(AssetRegistry::MAX_SCALE)
}

/// The amount of a transfer.
pub fn positive_amount(text: &str, scale: u32) -> Result<i64, String> {
    match parse_minor(text, scale) {
        Ok(0) => Err("the amount must be greater than zero".to_owned()),
        Ok(minor) => Ok(minor),
        Err(reason) => Err(reason.to_string()),
    }
}

/// How a limit written in a scale is read.
pub type LimitRule = fn(&str, u32) -> Result<Limit, String>;

/// An overdraft: an amount, or `unlimited`.
pub fn overdraft(text: &str, scale: u32) -> Result<Limit, String> {
    if text == UNLIMITED {
        return Ok(Limit::Unlimited);
    }
    max_balance(text, scale)
}

/// A largest balance. None at all is JSON `null`, not a string.
pub fn max_balance(text: &str, scale: u32) -> Result<Limit, String> {
    parse_minor(text, scale).map(Limit::AtMost).map_err(|reason| reason.to_string())
}

/// A JSON number that was not written as an integer. JSON has one kind of number: `60.0` and `6e1` are whole ones.
pub fn whole(number: f64) -> Option<u64> {
    // It prints without a point only if it is whole, and is no u64 unless it fits.
    number.to_string().parse().ok()
}

/// When a hold expires, in seconds from when it is placed.
pub fn expires_in_s(seconds: u64) -> Result<u32, String> {
    match u32::try_from(seconds) {
        Ok(seconds @ 1..=MAX_EXPIRES_IN_S) => Ok(seconds),
        _ => Err(format!("a hold expires after 1 to {MAX_EXPIRES_IN_S} seconds")),
    }
}

pub fn metadata(map: &BTreeMap<String, String>) -> Result<Metadata, String> {
    Metadata::from_map(map).map_err(|reason| reason.to_string())
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
