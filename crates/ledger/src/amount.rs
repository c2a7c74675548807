//! Amounts at the edge: decimal strings to minor units and back. Inside there are only `i64` minor units.

use rust_decimal::Decimal;

/// Why a string is no amount. The API answers each with `invalid_amount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    #[error("an amount is a plain decimal string such as \"12.34\": digits with at most one point between them")]
    Malformed,
    #[error("the amount has more than the {scale} decimal places of its asset")]
    TooPrecise { scale: u32 },
    #[error("the amount is larger than the ledger can hold")]
    TooLarge,
}

/// Parses a decimal string with at most `scale` decimal places into minor units (0 and up).
pub fn parse_minor(text: &str, scale: u32) -> Result<i64, AmountError> {
    // rust_decimal also takes signs, underscores and a leading point; an amount does not.
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(w, f)| (w, Some(f)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || fraction.is_some_and(|f| !digits(f)) {
        return Err(AmountError::Malformed);
    }
    if fraction.is_some_and(|f| f.len() > scale as usize) {
        return Err(AmountError::TooPrecise { scale });
    }
    let mut amount = Decimal::from_str_exact(text).map_err(|_| AmountError::TooLarge)?;
    amount.rescale(scale);
    if amount.scale() != scale {
        return Err(AmountError::TooLarge);
    }
    i64::try_from(amount.mantissa()).map_err(|_| AmountError::TooLarge)
}

/// Prints minor units with the full scale: `format_minor(1234, 2)` is `12.34`. Sums of many accounts, which no `Decimal`
/// might hold, included.
pub fn format_minor(minor: impl Into<i128>, scale: u32) -> String {
    let minor = minor.into();
    let sign = if minor < 0 { "-" } else { "" };
    let scale = scale as usize;
    let digits = format!("{:0width$}", minor.unsigned_abs(), width = scale + 1);
    match digits.split_at(digits.len() - scale) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_decimals_parse() {
        for (text, scale, minor) in [
            ("12.34", 2, 1234),
            ("12.3", 2, 1230),
            ("12", 2, 1200),
            ("0", 2, 0),
            ("0.00", 2, 0),
            ("007", 0, 7),
            ("1", 18, 1_000_000_000_000_000_000),
            ("92233720368547758.07", 2, i64::MAX),
        ] {
            assert_eq!(parse_minor(text, scale), Ok(minor), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "NaN", "inf", "1_000", "1,00", " 1", "1 ", "1.2.3", "１"]
        {
            assert_eq!(parse_minor(text, 2), Err(AmountError::Malformed), "{text:?}");
        }
        assert_eq!(parse_minor("0.001", 2), Err(AmountError::TooPrecise { scale: 2 }));
        assert_eq!(parse_minor("1.0", 0), Err(AmountError::TooPrecise { scale: 0 }));
        assert_eq!(parse_minor("92233720368547758.08", 2), Err(AmountError::TooLarge));
        assert_eq!(parse_minor(&"9".repeat(41), 2), Err(AmountError::TooLarge));
        assert_eq!(parse_minor("79228162514264337593543950335", 18), Err(AmountError::TooLarge));
    }

    #[test]
    fn printing_carries_the_full_scale() {
        assert_eq!(format_minor(1234_i64, 2), "12.34");
        assert_eq!(format_minor(-5_i64, 2), "-0.05");
        assert_eq!(format_minor(0_i64, 2), "0.00");
        assert_eq!(format_minor(7_i64, 0), "7");
        assert_eq!(format_minor(i64::MIN, 18), "-9.223372036854775808");
        assert_eq!(format_minor(i128::MIN, 2), "-1701411834604692317316873037158841057.28");
    }
}
