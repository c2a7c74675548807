//! Encodes the rows of `COPY … FROM STDIN (FORMAT binary)`.
//!
//! The server checks every row against the table's columns, but it reads the bytes of a field as the column's type and
//! cannot tell an `int8` from a timestamp. The order and the types of the fields are the caller's duty.

use bytes::{BufMut, Bytes, BytesMut};

/// The format's signature, then the flags and the length of the header extension, which are both zero.
const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The field count that no row has ends the data.
const TRAILER: i16 = -1;
/// The length that no value has marks a null.
const NULL: i32 = -1;

/// The payload of one binary `COPY`, which is filled row by row.
///
/// [`finish`](Self::finish) hands out the encoded bytes. The buffer takes their memory back for the next payload once
/// every clone of these bytes is dropped.
#[derive(Debug, Default)]
pub struct CopyBuffer {
    bytes: BytesMut,
    rows: u64,
    /// The fields that the current row still lacks.
    missing: i32,
}

impl CopyBuffer {
    /// An empty buffer without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with memory for this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(bytes), rows: 0, missing: 0 }
    }

    /// Starts a payload. What the buffer holds is forgotten.
    pub fn begin(&mut self) {
        self.clear();
        self.bytes.put_slice(&HEADER);
    }

    /// Starts a row of this many fields. The caller then writes each field in the order of the `COPY`'s columns.
    #[inline]
    pub fn row(&mut self, fields: i16) {
        debug_assert_eq!(self.missing, 0, "the row before has another number of fields than it announced");
        self.missing = i32::from(fields);
        self.rows += 1;
        self.bytes.put_slice(&fields.to_be_bytes());
    }

    /// Writes a `smallint`.
    #[inline]
    pub fn int2(&mut self, value: i16) {
        self.fixed::<2, 6>(value.to_be_bytes());
    }

    /// Writes an `integer`.
    #[inline]
    pub fn int4(&mut self, value: i32) {
        self.fixed::<4, 8>(value.to_be_bytes());
    }

    /// Writes a `bigint`. A `timestamptz` has the same form: microseconds since 2000-01-01 UTC.
    #[inline]
    pub fn int8(&mut self, value: i64) {
        self.fixed::<8, 12>(value.to_be_bytes());
    }

    /// Writes a `boolean`.
    #[inline]
    pub fn bool(&mut self, value: bool) {
        self.fixed::<1, 5>([u8::from(value)]);
    }

    /// Writes a `uuid`.
    #[inline]
    pub fn uuid(&mut self, value: [u8; 16]) {
        self.fixed::<16, 20>(value);
    }

    /// Writes a `text` or `varchar`. The server refuses a text that contains a zero byte.
    ///
    /// # Panics
    ///
    /// Panics if the text has 2 GiB or more, which the format cannot express.
    #[inline]
    pub fn text(&mut self, value: &str) {
        self.bytea(value.as_bytes());
    }

    /// Writes a `bytea`.
    ///
    /// # Panics
    ///
    /// Panics if the value has 2 GiB or more, which the format cannot express.
    #[inline]
    pub fn bytea(&mut self, value: &[u8]) {
        let length = i32::try_from(value.len()).expect("a field has less than 2 GiB");
        self.missing -= 1;
        self.bytes.reserve(4 + value.len());
        self.bytes.put_slice(&length.to_be_bytes());
        self.bytes.put_slice(value);
    }

    /// Writes a null of any type.
    #[inline]
    pub fn null(&mut self) {
        self.missing -= 1;
        self.bytes.put_slice(&NULL.to_be_bytes());
    }

    /// Writes the value with the given method, or a null: `buffer.optional(amount, CopyBuffer::int8)`.
    #[inline]
    pub fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.null(),
        }
    }

    /// Ends the payload and hands it out. [`rows`](Self::rows) tells its rows until the next [`begin`](Self::begin).
    pub fn finish(&mut self) -> Bytes {
        debug_assert_eq!(self.missing, 0, "the last row has another number of fields than it announced");
        self.bytes.put_slice(&TRAILER.to_be_bytes());
        self.bytes.split().freeze()
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.rows = 0;
        self.missing = 0;
    }

    /// The number of bytes written since [`begin`](Self::begin), the header included. It is zero after
    /// [`finish`](Self::finish).
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the buffer holds no bytes, not even the header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The number of rows of the payload.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes length and value together, so that the buffer checks its capacity once a field. `FIELD` is `VALUE + 4`:
    /// the language cannot compute an array's length from a parameter.
    #[inline]
    fn fixed<const VALUE: usize, const FIELD: usize>(&mut self, value: [u8; VALUE]) {
        const { assert!(FIELD == VALUE + 4 && VALUE <= 16) };
        let mut field = [0; FIELD];
        field[3] = VALUE as u8;
        field[4..].copy_from_slice(&value);
        self.missing -= 1;
        self.bytes.put_slice(&field);
    }
}

/// The number of rows in the payload of a binary `COPY … TO STDOUT`, and the first field of the last one. `None`: the payload
/// ends early or is malformed.
pub fn last_row(payload: &[u8]) -> Option<(u64, &[u8])> {
    let extension = payload.get(15..19)?;
    let mut rest = payload.get(19 + usize::try_from(i32::from_be_bytes(extension.try_into().ok()?)).ok()?..)?;
    let (mut rows, mut last): (u64, &[u8]) = (0, &[]);
    loop {
        let (fields, after) = rest.split_first_chunk::<2>()?;
        rest = after;
        let fields = i16::from_be_bytes(*fields);
        if fields == TRAILER {
            return Some((rows, last));
        }
        for field in 0..fields {
            let (length, after) = rest.split_first_chunk::<4>()?;
            // A null has the length -1 and no bytes.
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            let (value, after) = after.split_at_checked(length)?;
            if field == 0 {
                last = value;
            }
            rest = after;
        }
        rows += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_form_that_the_manual_describes() {
        let mut buffer = CopyBuffer::with_capacity(256);
        buffer.begin();
        assert_eq!(buffer.len(), 19);
        buffer.row(8);
        buffer.int2(-2);
        buffer.int4(4);
        buffer.int8(i64::MIN);
        buffer.bool(true);
        buffer.uuid([7; 16]);
        buffer.text("añ");
        buffer.null();
        buffer.bytea(b"");
        assert_eq!(buffer.rows(), 1);
        let mut expected = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x08".to_vec();
        expected
            .extend(b"\0\0\0\x02\xff\xfe\0\0\0\x04\0\0\0\x04\0\0\0\x08\x80\0\0\0\0\0\0\0\0\0\0\x01\x01\0\0\0\x10");
        expected.extend([7; 16]);
        expected.extend(b"\0\0\0\x03a\xc3\xb1\xff\xff\xff\xff\0\0\0\0\xff\xff");
        assert_eq!(buffer.finish(), expected);
        assert!(buffer.is_empty());
        assert_eq!(buffer.rows(), 1);
    }

    #[test]
    fn an_optional_value_is_the_value_or_a_null() {
        let mut some = CopyBuffer::new();
        some.row(3);
        some.optional(Some(5), CopyBuffer::int8);
        some.optional(Some("text"), CopyBuffer::text);
        some.optional(None::<[u8; 16]>, CopyBuffer::uuid);
        let mut plain = CopyBuffer::new();
        plain.row(3);
        plain.int8(5);
        plain.text("text");
        plain.null();
        assert_eq!(some.finish(), plain.finish());
    }

    #[test]
    fn the_memory_is_used_again() {
        let mut buffer = CopyBuffer::with_capacity(4096);
        let fill = |buffer: &mut CopyBuffer| {
            buffer.begin();
            for value in 0..200 {
                buffer.row(1);
                buffer.int8(value);
            }
            buffer.finish()
        };
        let first = fill(&mut buffer);
        let place = first.as_ptr();
        assert_eq!(buffer.rows(), 200);
        drop(first);
        let second = fill(&mut buffer);
        assert_eq!(second.as_ptr(), place);
        buffer.begin();
        buffer.row(1);
        buffer.clear();
        assert_eq!((buffer.len(), buffer.rows()), (0, 0));
    }

    #[test]
    fn the_last_row_is_found() {
        let mut buffer = CopyBuffer::new();
        buffer.begin();
        assert_eq!(last_row(&buffer.finish()), Some((0, &[][..])));
        buffer.begin();
        for position in [7_i64, 9] {
            buffer.row(2);
            buffer.int8(position);
            buffer.int2(1);
        }
        let payload = buffer.finish();
        assert_eq!(last_row(&payload), Some((2, &9_i64.to_be_bytes()[..])));
        assert_eq!(last_row(&payload[..payload.len() - 3]), None);
    }
}
