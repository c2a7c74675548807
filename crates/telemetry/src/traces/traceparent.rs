//! W3C Trace Context: the header that says to which trace a request belongs.

use http::{HeaderMap, HeaderName};
use opentelemetry::trace::{SpanId, TraceId};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Versions to come may append to it; longer is not believed.
const LONGEST: usize = 128;
const SAMPLED: u8 = 1;

/// The trace of a request, the span in it that caused the request, and whether the caller records the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    trace: TraceId,
    span: SpanId,
    flags: u8,
}

impl Traceparent {
    /// Length of the text.
    pub const LEN: usize = 55;

    /// The request's, where it has a well-formed one. Any other is as good as none: the standard wants no error.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(TRACEPARENT)?.as_bytes())
    }

    /// `00-<trace, 32 digits>-<span, 16 digits>-<flags, 2 digits>`, in lower case. A later version may append to it; what is known of it is
    /// read.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let mut parts = text.split(|byte| *byte == b'-');
        let [version] = digits(parts.next()?)?;
        let (trace, span, [flags]) = (digits(parts.next()?)?, digits(parts.next()?)?, digits(parts.next()?)?);
        let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
        let is_well_formed = version != 0xff
            && (version != 0 || parts.next().is_none())
            && trace != TraceId::INVALID
            && span != SpanId::INVALID;
        is_well_formed.then_some(Self { trace, span, flags })
    }

    pub(super) fn sampled(trace: TraceId, span: SpanId) -> Self {
        Self { trace, span, flags: SAMPLED }
    }

    /// The same for a request that is not recorded here.
    pub fn not_sampled(self) -> Self {
        Self { flags: self.flags & !SAMPLED, ..self }
    }

    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// What all of a trace have in common.
    pub fn trace_id(self) -> TraceId {
        self.trace
    }

    pub(super) fn span_id(self) -> SpanId {
        self.span
    }

    /// The lower half of the trace's id, which is random.
    pub(super) fn trace_id_low(self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.trace.to_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// Room for [`Traceparent::encode`].
    pub fn buffer() -> [u8; Self::LEN] {
        [0; Self::LEN]
    }

    /// Writes the text.
    pub fn encode(self, buffer: &mut [u8; Self::LEN]) -> &str {
        *buffer = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_digits(&mut buffer[3..35], &self.trace.to_bytes());
        write_digits(&mut buffer[36..52], &self.span.to_bytes());
        write_digits(&mut buffer[53..55], &[self.flags]);
        str::from_utf8(buffer).unwrap_or_default()
    }
}

/// Two digits of lower case a byte.
fn digits<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = value(digits[0])? << 4 | value(digits[1])?;
    }
    Some(bytes)
}

fn write_digits(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for (digits, byte) in text.chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn read(text: &str) -> Option<Traceparent> {
        Traceparent::of(&HeaderMap::from_iter([(TRACEPARENT, text.parse().unwrap())]))
    }

    #[test]
    fn a_well_formed_trace_context_is_taken_and_written_as_it_came() {
        for (flags, is_sampled) in [("00", false), ("01", true), ("02", false), ("03", true)] {
            let text = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
            let taken = read(&text).unwrap();
            assert_eq!(taken.encode(&mut Traceparent::buffer()), text);
            assert_eq!((taken.trace_id().to_string(), taken.is_sampled()), (TRACE.to_owned(), is_sampled));
            assert!(!taken.not_sampled().is_sampled());
        }
    }

    #[test]
    fn what_is_known_of_a_later_version_is_taken() {
        let taken = read(&format!("01-{TRACE}-b7ad6b7169203331-01-of-the-future")).unwrap();
        assert_eq!(taken.encode(&mut Traceparent::buffer()), format!("00-{TRACE}-b7ad6b7169203331-01"));
    }

    #[test]
    fn a_malformed_trace_context_is_as_good_as_none() {
        for bad in [
            String::new(),
            "x".to_owned(),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-"),
            format!("00-{TRACE}-b7ad6b7169203331-1"),
            format!("00-{TRACE}-b7ad6b7169203331-0g"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("00-{TRACE}-b7ad6b716920333-01"),
            format!("0-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", &TRACE[1..]),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("01-{TRACE}-b7ad6b7169203331-01-{}", "x".repeat(LONGEST)),
        ] {
            assert_eq!(read(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_forbidden_version_is_refused() {
        assert_eq!(read(&format!("ff-{TRACE}-b7ad6b7169203331-01")), None);
    }

    #[test]
    fn ids_of_zeros_are_refused() {
        assert_eq!(read(&format!("00-{}-b7ad6b7169203331-01", "0".repeat(32))), None);
        assert_eq!(read(&format!("00-{TRACE}-{}-01", "0".repeat(16))), None);
    }
}
