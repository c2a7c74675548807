//! Assets: a code with a fixed scale.

use std::{collections::BTreeMap, fmt};

/// An asset code: 1 to 12 characters of `A-Z 0-9`, beginning with a letter. Small enough to copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssetCode {
    text: [u8; Self::MAX_LEN],
    len: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an asset code has 1 to 12 characters of A-Z 0-9 and begins with a letter")]
pub struct InvalidAssetCode;

impl AssetCode {
    pub const MAX_LEN: usize = 12;
    /// ISO 4217's code for no currency: the asset of a [`Marker`](crate::BookingKind::Marker).
    pub const NO_CURRENCY: Self = Self { text: *b"XXX\0\0\0\0\0\0\0\0\0", len: 3 };

    pub fn new(text: &str) -> Result<Self, InvalidAssetCode> {
        let bytes = text.as_bytes();
        let well_formed = (1..=Self::MAX_LEN).contains(&bytes.len())
            && bytes[0].is_ascii_uppercase()
            && bytes.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if !well_formed {
            return Err(InvalidAssetCode);
        }
        let mut padded = [0; Self::MAX_LEN];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { text: padded, len: u8::try_from(bytes.len()).map_err(|_| InvalidAssetCode)? })
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for AssetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for AssetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The scales (digits after the decimal point) of all assets this installation knows.
#[derive(Debug, Clone)]
pub struct AssetRegistry {
    scales: BTreeMap<AssetCode, u32>,
}

/// Why an asset cannot be declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssetDeclarationError {
    #[error("asset {0:?}: {1}")]
    Code(String, InvalidAssetCode),
    #[error("asset {0}: the scale is 0 to 18, not {1}")]
    Scale(AssetCode, u32),
    #[error("asset {0} is built in with scale {1} (ISO 4217) and cannot be declared with scale {2}")]
    BuiltIn(AssetCode, u32, u32),
}

impl AssetRegistry {
    pub const MAX_SCALE: u32 = 18;

    /// The ISO 4217 currencies plus the declared assets.
    pub fn with_declared<'a>(
        declared: impl IntoIterator<Item = (&'a str, u32)>,
    ) -> Result<Self, AssetDeclarationError> {
        let mut scales = BTreeMap::new();
        for (scale, codes) in ISO_4217_BY_MINOR_UNITS {
            for code in codes.split_ascii_whitespace() {
                if let Ok(code) = AssetCode::new(code) {
                    scales.insert(code, *scale);
                }
            }
        }
        for (text, scale) in declared {
            let code = AssetCode::new(text).map_err(|e| AssetDeclarationError::Code(text.to_owned(), e))?;
            if scale > Self::MAX_SCALE {
                return Err(AssetDeclarationError::Scale(code, scale));
            }
            match scales.insert(code, scale) {
                Some(built_in) if built_in != scale => {
                    return Err(AssetDeclarationError::BuiltIn(code, built_in, scale));
                }
                _ => {}
            }
        }
        Ok(Self { scales })
    }

    /// Every asset with its scale.
    pub fn all(&self) -> impl Iterator<Item = (AssetCode, u32)> {
        self.scales.iter().map(|(code, scale)| (*code, *scale))
    }

    /// The scale of a known asset.
    pub fn scale(&self, code: AssetCode) -> Option<u32> {
        self.scales.get(&code).copied()
    }
}

/// The active codes of ISO 4217 as of 2026-01-01, grouped by minor units. Withdrawn codes (ANG, BGN, HRK, ZWL, …) and units without a minor
/// unit (XAU, XDR, …) are left out: an installation that needs one declares it.
const ISO_4217_BY_MINOR_UNITS: &[(u32, &str)] = &[
    (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
    (
        2,
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF \
         CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF \
         IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN \
         MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS \
         SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG",
    ),
    (3, "BHD IQD JOD KWD LYD OMR TND"),
    (4, "CLF UYW"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(registry: &AssetRegistry, code: &str) -> Option<u32> {
        registry.scale(AssetCode::new(code).unwrap())
    }

    #[test]
    fn iso_codes_are_built_in_and_others_declared() {
        let registry = AssetRegistry::with_declared([("BTC", 8), ("USD", 2)]).unwrap();
        assert_eq!(scale(&registry, "USD"), Some(2));
        assert_eq!(scale(&registry, "JPY"), Some(0));
        assert_eq!(scale(&registry, "KWD"), Some(3));
        assert_eq!(scale(&registry, "BTC"), Some(8));
        assert_eq!(scale(&registry, "ETH"), None);
        assert_eq!(scale(&registry, "XAD"), Some(2), "amendment 179");
        assert!(["ANG", "BGN", "HRK", "ZWL"].iter().all(|withdrawn| scale(&registry, withdrawn).is_none()));
    }

    #[test]
    fn declarations_are_checked() {
        let declare = |code, scale| AssetRegistry::with_declared([(code, scale)]).unwrap_err().to_string();
        assert!(declare("BTC", 19).contains("0 to 18"));
        assert!(declare("usd", 2).contains("A-Z"));
        assert!(declare("USD", 3).contains("built in"));
    }
}
