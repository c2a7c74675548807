//! The one wall clock: microseconds since 1970 in UTC, and RFC 3339 for people.
//!
//! The clock is as good as the machine's: it may step backwards. The journal needs times that never do, and keeps the
//! last time that it used.

use jiff::Timestamp;

/// Microseconds since 1970-01-01T00:00:00Z.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now_us() -> i64 {
    #[cfg(feature = "simulation")]
    if let Some(us) = crate::simulation::now_us() {
        return us;
    }
    Timestamp::now().as_microsecond() + test_offset_us()
}

/// Seconds since 1970-01-01T00:00:00Z.
pub fn now_s() -> u64 {
    u64::try_from(now_us() / 1_000_000).unwrap_or_default()
}

/// Names a file with the error of this process's clock in microseconds. Tests use it to set one process's clock
/// instead of the machine's. Debug builds only.
#[cfg(debug_assertions)]
pub const TEST_OFFSET_FILE: &str = "SHARDLEDGER_CLOCK_OFFSET_FILE";

#[cfg(debug_assertions)]
fn test_offset_us() -> i64 {
    static FILE: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os(TEST_OFFSET_FILE));
    file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(not(debug_assertions))]
fn test_offset_us() -> i64 {
    0
}

/// `us` as RFC 3339 in UTC, always with six decimals (`2026-01-31T23:59:59.000001Z`), so that texts sort as times do.
///
/// Times outside the years -9999 to 9999 print as the nearest end of that range.
pub fn format_rfc3339(us: i64) -> String {
    let nearest_end = if us < 0 { Timestamp::MIN } else { Timestamp::MAX };
    format!("{:.6}", Timestamp::from_microsecond(us).unwrap_or(nearest_end))
}

/// The microseconds since 1970 that an RFC 3339 text names, in any offset; digits below a microsecond are cut off.
///
/// Stricter than [`Timestamp`]'s own parser, which also takes other forms of ISO 8601.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    if !has_rfc3339_shape(text.as_bytes()) {
        return None;
    }
    text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond)
}

/// `YYYY-MM-DDTHH:MM:SS[.digits](Z|±HH:MM)`; the values themselves are left to the parser.
fn has_rfc3339_shape(text: &[u8]) -> bool {
    const DATE_TIME: &[u8] = b"dddd-dd-ddTdd:dd:dd";
    let Some((date_time, rest)) = text.split_at_checked(DATE_TIME.len()) else {
        return false;
    };
    let matches = |pattern: &[u8], text: &[u8]| {
        pattern.len() == text.len()
            && pattern.iter().zip(text).all(|(expected, found)| match expected {
                b'd' => found.is_ascii_digit(),
                b'T' => matches!(found, b'T' | b't'),
                _ => expected == found,
            })
    };
    let offset = match rest.split_first() {
        Some((b'.', fraction)) => {
            let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return false;
            }
            &fraction[digits..]
        }
        _ => rest,
    };
    let has_offset = || matches(b"+dd:dd", offset) || matches(b"-dd:dd", offset);
    // `time-numoffset` has an hour of 00 to 23 and a minute of 00 to 59. The parser takes more.
    let is_within_a_day = || &offset[1..3] <= b"23".as_slice() && &offset[4..6] <= b"59".as_slice();
    matches(DATE_TIME, date_time) && (matches!(offset, b"Z" | b"z") || (has_offset() && is_within_a_day()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_somewhere_in_this_century() {
        let year_2020 = parse_rfc3339("2020-01-01T00:00:00Z").unwrap();
        let year_2100 = parse_rfc3339("2100-01-01T00:00:00Z").unwrap();
        assert!((year_2020..year_2100).contains(&now_us()));
    }

    #[test]
    fn times_print_with_six_decimals_and_come_back() {
        for (us, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1, "1970-01-01T00:00:00.000001Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (1_769_903_999_123_456, "2026-01-31T23:59:59.123456Z"),
        ] {
            assert_eq!(format_rfc3339(us), text);
            assert_eq!(parse_rfc3339(text), Some(us));
        }
        assert_eq!(format_rfc3339(i64::MAX), format!("{:.6}", Timestamp::MAX));
        assert_eq!(format_rfc3339(i64::MIN), format!("{:.6}", Timestamp::MIN));
    }

    #[test]
    fn rfc3339_in_every_offset_and_nothing_else() {
        let noon = parse_rfc3339("2026-01-31T12:00:00Z");
        assert!(noon.is_some());
        for same in [
            "2026-01-31T13:00:00+01:00",
            "2026-01-31t12:00:00z",
            "2026-01-31T12:00:00.000Z",
            "2026-01-31T07:30:00-04:30",
            "2026-02-01T11:59:00+23:59",
        ] {
            assert_eq!(parse_rfc3339(same), noon, "{same}");
        }
        for bad in [
            "",
            "now",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31 12:00:00Z",
            "20260131T120000Z",
            "2026-02-30T12:00:00Z",
            "2026-01-31T25:00:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.0123456789Z",
            "2026-01-31T12:00:00+01",
            "2026-01-31T12:00:00Z ",
            "2026-01-31T12:00:00Z[UTC]",
            "2026-01-31T12:00:00+1:00",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00-23:60",
            "2026-01-31T12:00:00-99:00",
            "é026-01-31T12:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad:?}");
        }
    }
}
