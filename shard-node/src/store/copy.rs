//! PostgreSQL's binary COPY format (manual, `COPY`, "Binary Format").

use uuid::Uuid;

/// Rows for one `COPY … FROM STDIN (FORMAT binary)`, encoded as they are added.
#[derive(Debug)]
pub struct CopyRows {
    buffer: Vec<u8>,
    columns: i16,
    rows: u64,
}

impl CopyRows {
    const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

    pub fn new(columns: i16, expected_rows: usize, bytes_per_row: usize) -> Self {
        let mut buffer = Vec::with_capacity(Self::HEADER.len() + expected_rows * bytes_per_row + 2);
        buffer.extend_from_slice(Self::HEADER);
        Self { buffer, columns, rows: 0 }
    }

    /// Begins a row; the caller then adds exactly its columns.
    pub fn row(&mut self) -> &mut Self {
        self.rows += 1;
        self.buffer.extend_from_slice(&self.columns.to_be_bytes());
        self
    }

    pub fn int8(&mut self, value: i64) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub fn int4(&mut self, value: i32) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub fn int2(&mut self, value: i16) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.field(&[u8::from(value)])
    }

    pub fn text(&mut self, value: &str) -> &mut Self {
        self.field(value.as_bytes())
    }

    pub fn uuid(&mut self, value: Uuid) -> &mut Self {
        self.field(value.as_bytes())
    }

    pub fn null(&mut self) -> &mut Self {
        self.buffer.extend_from_slice(&(-1_i32).to_be_bytes());
        self
    }

    pub fn optional<T>(&mut self, value: Option<T>, add: impl FnOnce(&mut Self, T) -> &mut Self) -> &mut Self {
        match value {
            Some(value) => add(self, value),
            None => self.null(),
        }
    }

    fn field(&mut self, bytes: &[u8]) -> &mut Self {
        // Every field is bounded far below 2 GiB (ids 128 bytes, metadata some KiB).
        let len = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        self.buffer.extend_from_slice(&len.to_be_bytes());
        self.buffer.extend_from_slice(bytes);
        self
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The whole stream, trailer included.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.buffer.extend_from_slice(&(-1_i16).to_be_bytes());
        self.buffer
    }
}
