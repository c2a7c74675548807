//! The alternative to COPY: the rows of a commit as one array parameter, `INSERT … SELECT … FROM unnest($1)`, through sqlx.

use sqlx::{
    Connection, Encode, PgConnection, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgTypeInfo, types::Oid},
};

use crate::bench::ceiling::{Bookings, COLUMNS, Columns, RowSink};

const TYPES: &str = "SELECT oid, typarray FROM pg_type WHERE oid = 'ceiling.journal_row'::regtype";

/// The connection that inserts row arrays.
pub struct Inserter {
    connection: PgConnection,
    pub backend_pid: i32,
    row: Oid,
    array: Oid,
    insert: String,
}

impl Inserter {
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let mut connection = crate::bench::baseline::connect(url).await?;
        let (row, array) = sqlx::query_as(TYPES).fetch_one(&mut connection).await?;
        let backend_pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        let insert = format!(
            "INSERT INTO ceiling.journal ({COLUMNS}) SELECT {COLUMNS} FROM unnest($1::ceiling.journal_row[])"
        );
        Ok(Self { connection, backend_pid, row, array, insert })
    }

    pub async fn insert(&mut self, bookings: &mut Bookings, rows: usize) -> anyhow::Result<()> {
        let mut array = RowArray::new(self.row, self.array);
        bookings.write(&mut array, rows, Columns::Used);
        array.finish();
        let mut transaction = self.connection.begin().await?;
        sqlx::query(sqlx::AssertSqlSafe(self.insert.as_str())).bind(array).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// An array of composite values in PostgreSQL's binary format (`array_recv`, `record_recv`).
struct RowArray {
    bytes: Vec<u8>,
    row: Oid,
    array: Oid,
    rows: i32,
    row_begin: Option<usize>,
}

/// Type numbers that are the same in every PostgreSQL (`pg_type.dat`).
mod oid {
    pub const INT8: i32 = 20;
    pub const INT2: i32 = 21;
    pub const TEXT: i32 = 25;
    pub const UUID: i32 = 2950;
}

impl RowArray {
    /// Dimensions, null flag, element type, length and lower bound.
    const HEADER_BYTES: usize = 20;

    fn new(row: Oid, array: Oid) -> Self {
        Self { bytes: vec![0; Self::HEADER_BYTES], row, array, rows: 0, row_begin: None }
    }

    fn put(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    fn field(&mut self, oid: i32, value: &[u8]) {
        self.put(oid);
        self.put(value.len() as i32);
        self.bytes.extend_from_slice(value);
    }

    fn end_row(&mut self) {
        if let Some(begin) = self.row_begin.take() {
            let length = (self.bytes.len() - begin - 4) as i32;
            self.bytes[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    fn finish(&mut self) {
        self.end_row();
        let header = [1, 0, self.row.0.cast_signed(), self.rows, 1];
        for (place, value) in self.bytes[..Self::HEADER_BYTES].chunks_exact_mut(4).zip(header) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }
}

impl RowSink for RowArray {
    fn row(&mut self, fields: i16) {
        self.end_row();
        self.rows += 1;
        self.row_begin = Some(self.bytes.len());
        self.put(0);
        self.put(fields.into());
    }

    fn int2(&mut self, value: i16) {
        self.field(oid::INT2, &value.to_be_bytes());
    }

    fn int8(&mut self, value: i64) {
        self.field(oid::INT8, &value.to_be_bytes());
    }

    fn uuid(&mut self, value: [u8; 16]) {
        self.field(oid::UUID, &value);
    }

    fn text(&mut self, value: &str) {
        self.field(oid::TEXT, value.as_bytes());
    }

    fn null(&mut self) {
        self.put(oid::INT8);
        self.put(-1);
    }
}

impl Type<Postgres> for RowArray {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("ceiling.journal_row[]")
    }

    fn compatible(_: &PgTypeInfo) -> bool {
        true
    }
}

impl Encode<'_, Postgres> for RowArray {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(self.array))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_states_the_lengths_of_its_rows() {
        let mut array = RowArray::new(Oid(7), Oid(8));
        for value in [1, 2] {
            array.row(1);
            array.int8(value);
        }
        array.finish();
        let mut expected: Vec<u8> = Vec::new();
        for number in [1_i32, 0, 7, 2, 1] {
            expected.extend_from_slice(&number.to_be_bytes());
        }
        for value in [1_i64, 2] {
            for number in [20_i32, 1, 20, 8] {
                expected.extend_from_slice(&number.to_be_bytes());
            }
            expected.extend_from_slice(&value.to_be_bytes());
        }
        assert_eq!(array.bytes, expected);
    }
}
