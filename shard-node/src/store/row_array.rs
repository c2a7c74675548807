//! Rows as one statement parameter: `INSERT INTO t SELECT * FROM unnest($1::t[])`, with the array in PostgreSQL's binary
//! format (`array_recv`, `record_recv`).
//!
//! COPY would be as fast for the server, but it needs two writes to the socket without an answer in between, and sqlx does
//! not set TCP_NODELAY: Nagle's algorithm and delayed acknowledgements then cost 40 ms a table (`docs/adr/0002`).

use sqlx::{
    Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgTypeInfo, types::Oid},
};
use uuid::Uuid;

/// The row type of a table and the type of arrays of it, as this database numbers them.
#[derive(Debug, Clone, Copy)]
pub struct RowType {
    pub row: Oid,
    pub array: Oid,
}

/// Rows of one table, encoded as they are added. Columns come in the table's order.
#[derive(Debug)]
pub struct RowArray {
    buffer: Vec<u8>,
    row_type: RowType,
    columns: i32,
    rows: i32,
    /// Where the length of the row being built belongs.
    row_begin: Option<usize>,
}

/// Type numbers that are the same in every PostgreSQL (`pg_type.dat`).
mod oid {
    pub const BOOL: i32 = 16;
    pub const INT8: i32 = 20;
    pub const INT2: i32 = 21;
    pub const INT4: i32 = 23;
    pub const TEXT: i32 = 25;
    pub const UUID: i32 = 2950;
}

impl RowArray {
    /// Dimensions, null flag, element type, length and lower bound.
    const HEADER_BYTES: usize = 20;

    pub fn new(row_type: RowType, columns: i32, expected_rows: usize, bytes_per_row: usize) -> Self {
        let mut buffer = Vec::with_capacity(Self::HEADER_BYTES + expected_rows * bytes_per_row);
        buffer.resize(Self::HEADER_BYTES, 0);
        Self { buffer, row_type, columns, rows: 0, row_begin: None }
    }

    /// Begins a row; the caller then adds exactly its columns.
    pub fn row(&mut self) -> &mut Self {
        self.end_row();
        self.rows += 1;
        self.row_begin = Some(self.buffer.len());
        self.put(0);
        self.put(self.columns);
        self
    }

    fn end_row(&mut self) {
        if let Some(begin) = self.row_begin.take() {
            let len = length(self.buffer.len() - begin - 4);
            self.buffer[begin..begin + 4].copy_from_slice(&len.to_be_bytes());
        }
    }

    pub fn int8(&mut self, value: i64) -> &mut Self {
        self.field(oid::INT8, &value.to_be_bytes())
    }

    pub fn int4(&mut self, value: i32) -> &mut Self {
        self.field(oid::INT4, &value.to_be_bytes())
    }

    pub fn int2(&mut self, value: i16) -> &mut Self {
        self.field(oid::INT2, &value.to_be_bytes())
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.field(oid::BOOL, &[u8::from(value)])
    }

    pub fn text(&mut self, value: &str) -> &mut Self {
        self.field(oid::TEXT, value.as_bytes())
    }

    pub fn uuid(&mut self, value: Uuid) -> &mut Self {
        self.field(oid::UUID, value.as_bytes())
    }

    pub fn optional_int8(&mut self, value: Option<i64>) -> &mut Self {
        self.optional(oid::INT8, value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice))
    }

    pub fn optional_int2(&mut self, value: Option<i16>) -> &mut Self {
        self.optional(oid::INT2, value.map(i16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice))
    }

    pub fn optional_text(&mut self, value: Option<&str>) -> &mut Self {
        self.optional(oid::TEXT, value.map(str::as_bytes))
    }

    pub fn optional_bool(&mut self, value: Option<bool>) -> &mut Self {
        self.optional(oid::BOOL, value.map(|value| [u8::from(value)]).as_ref().map(<[u8; 1]>::as_slice))
    }

    pub fn optional_uuid(&mut self, value: Option<Uuid>) -> &mut Self {
        self.optional(oid::UUID, value.as_ref().map(|id| id.as_bytes().as_slice()))
    }

    fn optional(&mut self, type_oid: i32, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(bytes) => self.field(type_oid, bytes),
            None => {
                self.put(type_oid);
                self.put(-1);
                self
            }
        }
    }

    fn field(&mut self, type_oid: i32, bytes: &[u8]) -> &mut Self {
        self.put(type_oid);
        self.put(length(bytes.len()));
        self.buffer.extend_from_slice(bytes);
        self
    }

    fn put(&mut self, value: i32) {
        self.buffer.extend_from_slice(&value.to_be_bytes());
    }

    /// Fills in what was open; the array is complete then.
    pub fn finish(mut self) -> Self {
        self.end_row();
        let dimensions = i32::from(self.rows > 0);
        let element = i32::from_be_bytes(self.row_type.row.0.to_be_bytes());
        let header = [dimensions, 0, element, self.rows, 1];
        for (place, value) in self.buffer[..Self::HEADER_BYTES].chunks_exact_mut(4).zip(header) {
            place.copy_from_slice(&value.to_be_bytes());
        }
        if self.rows == 0 {
            // An empty array has no dimension to describe.
            self.buffer.truncate(12);
        }
        self
    }
}

/// Every field is bounded far below 2 GiB (ids 128 bytes, metadata some KiB, a batch some MiB).
fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

impl Type<Postgres> for RowArray {
    /// Overruled by [`Encode::produces`]: the number is the database's own.
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("record[]")
    }
}

impl Encode<'_, Postgres> for RowArray {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.buffer);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(self.row_type.array))
    }

    fn size_hint(&self) -> usize {
        self.buffer.len()
    }
}
