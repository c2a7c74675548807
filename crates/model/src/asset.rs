//! Assets, and amounts as they are written.

/// A currency. Two are equal when their codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    pub code: &'static str,
    /// Decimals.
    pub scale: u32,
}

impl Asset {
    pub const USD: Self = Self { code: "USD", scale: 2 };
    pub const EUR: Self = Self { code: "EUR", scale: 2 };
    pub const JPY: Self = Self { code: "JPY", scale: 0 };

    /// Minor units as a decimal string in full scale.
    pub fn write(self, minor: i128) -> String {
        let sign = if minor < 0 { "-" } else { "" };
        let (unit, digits) = (10_u128.pow(self.scale), minor.unsigned_abs());
        match usize::try_from(self.scale) {
            Ok(0) | Err(_) => format!("{sign}{digits}"),
            Ok(scale) => format!("{sign}{}.{:0scale$}", digits / unit, digits % unit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_carry_the_full_scale() {
        for (asset, minor, text) in [
            (Asset::USD, 1234, "12.34"),
            (Asset::USD, -5, "-0.05"),
            (Asset::USD, 0, "0.00"),
            (Asset::JPY, -7, "-7"),
            (Asset::USD, i128::from(i64::MIN), "-92233720368547758.08"),
        ] {
            assert_eq!(asset.write(minor), text);
        }
    }
}
