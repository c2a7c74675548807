//! The rows of a CSV file (RFC 4180, UTF-8, a header first), one at a time, each with its line number.
//!
//! A row is assembled from lines before its fields are split. Line numbers are therefore exact for every kind of line end, and a missing
//! quote costs at most [`MAX_ROW_BYTES`] of memory.

use std::io::{BufRead, Read};

use anyhow::{Context, bail, ensure};
use csv_core::ReadRecordResult;
use serde::{Deserialize, Serialize};

/// The longest row, in bytes. Metadata has at most 4,096 bytes, and escapes of JSON and CSV make it at most six times as long.
pub const MAX_ROW_BYTES: usize = 64 * 1024;
/// Some programs begin UTF-8 files with this mark.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A place between two rows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlace {
    /// The number of bytes before the place.
    pub byte: u64,
    /// The number of the line that begins here. The first line is 1.
    pub line: u64,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvRow {
    /// The line on which the row begins.
    pub line: u64,
    /// The values in the order of the header's columns. A faulty row may have fewer or more.
    pub values: Vec<String>,
    /// The reason why the row cannot be read.
    pub fault: Option<String>,
    pub(super) names: Names,
}

/// The header's column names, in order.
type Names = std::sync::Arc<[String]>;

/// Reads the rows of a file.
pub struct RowReader<R> {
    input: R,
    names: Names,
    next: FilePlace,
    parser: csv_core::Reader,
    block: Vec<u8>,
}

impl CsvRow {
    /// The value of a column, without blanks around it. Empty if the file does not have the column.
    pub fn get(&self, column: &str) -> &str {
        let place = self.names.iter().position(|name| name == column);
        place.and_then(|place| self.values.get(place)).map_or("", |value| value.trim_matches([' ', '\t']))
    }

    /// [`CsvRow::get`], and `None` for an empty value.
    pub fn given(&self, column: &str) -> Option<&str> {
        Some(self.get(column)).filter(|value| !value.is_empty())
    }

    #[cfg(test)]
    pub fn of(cells: &[(&str, &str)]) -> Self {
        let names = cells.iter().map(|(name, _)| (*name).to_owned()).collect();
        let values = cells.iter().map(|(_, value)| (*value).to_owned()).collect();
        Self { line: 2, values, fault: None, names }
    }
}

impl<R: BufRead> RowReader<R> {
    /// Reads the header. A column that is neither required nor optional is refused by name, so that a misspelt column is not silently ignored.
    pub fn new(input: R, required: &[&str], optional: &[&str]) -> anyhow::Result<Self> {
        let mut reader = Self {
            input,
            names: Names::default(),
            next: FilePlace { byte: 0, line: 1 },
            parser: csv_core::Reader::new(),
            block: Vec::new(),
        };
        let known = [required, optional].concat().join(", ");
        let header = reader.next_row()?.with_context(|| format!("no header; the columns are {known}"))?;
        if let Some(fault) = header.fault {
            bail!("line {}, the header: {fault}", header.line);
        }
        let names: Vec<String> = header.values.iter().map(|name| name.trim().to_owned()).collect();
        for (index, name) in names.iter().enumerate() {
            let is_known = required.contains(&name.as_str()) || optional.contains(&name.as_str());
            ensure!(is_known, "unknown column {name:?}; the columns are {known}");
            ensure!(!names[..index].contains(name), "the column {name:?} is there twice");
        }
        for name in required {
            ensure!(names.iter().any(|found| found == name), "the column {name:?} is missing");
        }
        reader.names = names.into();
        Ok(reader)
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The place at which the next row begins.
    pub fn place(&self) -> FilePlace {
        self.next
    }

    /// Skips to a place of the same file. `input` must read from the beginning of the file.
    pub fn skip_to(&mut self, place: FilePlace) -> anyhow::Result<()>
    where
        R: std::io::Seek,
    {
        self.input.seek(std::io::SeekFrom::Start(place.byte))?;
        self.next = place;
        Ok(())
    }

    /// Reads the next row and skips blank lines. An error means that the file cannot be read. A malformed row has a [`CsvRow::fault`] instead.
    pub fn next_row(&mut self) -> anyhow::Result<Option<CsvRow>> {
        loop {
            let begin = self.next;
            let closed = self.read_block()?;
            if self.block.is_empty() {
                return Ok(None);
            }
            if self.block.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let last_line = self.next.line - 1;
            let (values, fault) = if closed { self.split() } else { (self.as_text(), Some(unclosed(last_line))) };
            let fault = fault.or_else(|| self.count_fault(values.len(), begin.line, last_line));
            return Ok(Some(CsvRow { line: begin.line, values, fault, names: self.names.clone() }));
        }
    }

    /// Reads lines into `block` until all quotes are closed. Returns `false` if a quote stays open.
    fn read_block(&mut self) -> anyhow::Result<bool> {
        self.block.clear();
        let mut open = false;
        loop {
            let room = MAX_ROW_BYTES.saturating_sub(self.block.len());
            let before = self.block.len();
            let read = self.input.by_ref().take(room as u64).read_until(b'\n', &mut self.block)?;
            let line = &self.block[before..];
            self.next.byte += read as u64;
            open ^= line.iter().filter(|byte| **byte == b'"').count() % 2 == 1;
            if line.last() == Some(&b'\n') || (read > 0 && read < room) {
                self.next.line += 1;
            } else if read > 0 {
                // The limit is reached in the middle of a line. The rest of the line belongs to this row.
                self.pass_line()?;
                return Ok(false);
            }
            if !open || read == 0 || self.block.len() >= MAX_ROW_BYTES {
                if self.next.line == 2 && self.block.starts_with(BYTE_ORDER_MARK) {
                    self.block.drain(..BYTE_ORDER_MARK.len());
                }
                return Ok(!open);
            }
        }
    }

    /// Skips the rest of a line.
    fn pass_line(&mut self) -> anyhow::Result<()> {
        loop {
            let buffer = self.input.fill_buf()?;
            let end = memchr::memchr(b'\n', buffer);
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.input.consume(used);
            self.next.byte += used as u64;
            if end.is_some() || used == 0 {
                self.next.line += 1;
                return Ok(());
            }
        }
    }

    /// Splits `block` into values. Returns the fault as well, if there is one.
    fn split(&mut self) -> (Vec<String>, Option<String>) {
        let end = self.block.trim_ascii_end().len();
        // A value may end in blanks, but only a line end ends the row.
        let end = end + self.block[end..].iter().take_while(|byte| !matches!(byte, b'\r' | b'\n')).count();
        let block = &self.block[..end];
        let (mut output, mut ends) = (vec![0; block.len() + 1], vec![0; block.len() + 2]);
        self.parser.reset();
        let (first, read, mut written, mut fields) = self.parser.read_record(block, &mut output, &mut ends);
        if first == ReadRecordResult::InputEmpty {
            // The end of the input ends the last field.
            let (_, _, more, last) = self.parser.read_record(&[], &mut output[written..], &mut ends[fields..]);
            (written, fields) = (written + more, fields + last);
        } else if read < block.len() {
            return (
                self.as_text(),
                Some("a quote is in a wrong place, so the text is more than one row".to_owned()),
            );
        }
        let mut begin = 0;
        let mut not_utf8 = false;
        let values = ends[..fields].iter().map(|end| {
            let value = &output[begin..*end.min(&written)];
            begin = *end;
            not_utf8 |= std::str::from_utf8(value).is_err();
            String::from_utf8_lossy(value).into_owned()
        });
        let values = values.collect();
        (values, not_utf8.then(|| "a value is not UTF-8".to_owned()))
    }

    fn as_text(&self) -> Vec<String> {
        vec![String::from_utf8_lossy(self.block.trim_ascii_end()).into_owned()]
    }

    /// The fault of a row that has another number of values than the header.
    fn count_fault(&self, values: usize, first_line: u64, last_line: u64) -> Option<String> {
        if self.names.is_empty() || values == self.names.len() {
            return None;
        }
        let mut fault = format!("{values} values, and the header has {}", self.names.len());
        if last_line > first_line {
            fault.push_str(&format!("; the row goes on to line {last_line}: is a quote missing?"));
        }
        Some(fault)
    }
}

fn unclosed(last_line: u64) -> String {
    format!("a quote is not closed up to line {last_line}, or the row is longer than {MAX_ROW_BYTES} bytes")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn reader(text: &str) -> anyhow::Result<RowReader<Cursor<Vec<u8>>>> {
        RowReader::new(Cursor::new(text.as_bytes().to_vec()), &["id", "asset"], &["metadata"])
    }

    /// Reads rows as line, values joined by `|`, and fault.
    fn rows(text: &str) -> Vec<(u64, String, Option<String>)> {
        let mut reader = reader(text).unwrap();
        let mut rows = Vec::new();
        while let Some(row) = reader.next_row().unwrap() {
            rows.push((row.line, row.values.join("|"), row.fault));
        }
        rows
    }

    fn good(line: u64, values: &str) -> (u64, String, Option<String>) {
        (line, values.to_owned(), None)
    }

    #[test]
    fn rows_have_the_line_on_which_they_begin() {
        let expected = [good(2, "a|USD"), good(4, "b|EUR")];
        assert_eq!(rows("id,asset\na,USD\n\nb,EUR"), expected);
        assert_eq!(rows("id,asset\r\na,USD\r\n\r\nb,EUR\r\n"), expected);
        assert_eq!(rows("\u{feff}id,asset\na,USD\n \t\nb,EUR\n\n"), expected);
    }

    #[test]
    fn quoted_values_may_hold_commas_quotes_and_line_breaks() {
        let text = "id,asset,metadata\na,USD,\"{\"\"k\"\": \"\"v,w\"\"}\"\nb,USD,\"{\n}\"\nc,USD,\n";
        assert_eq!(rows(text), [good(2, r#"a|USD|{"k": "v,w"}"#), good(3, "b|USD|{\n}"), good(5, "c|USD|")]);
    }

    #[test]
    fn the_order_of_columns_is_free_and_blanks_around_values_do_not_count() {
        let mut reader = reader("asset , id\nUSD, a \n").unwrap();
        let row = reader.next_row().unwrap().unwrap();
        assert_eq!((row.get("id"), row.get("asset"), row.get("metadata")), ("a", "USD", ""));
        assert_eq!(row.given("metadata"), None);
    }

    #[test]
    fn headers_are_refused_by_the_name_of_the_column() {
        for (text, reason) in [
            ("id,asset,overdarft\n", "unknown column \"overdarft\""),
            ("id,asset,id\n", "the column \"id\" is there twice"),
            ("id,metadata\n", "the column \"asset\" is missing"),
            ("", "no header"),
            ("\n\n", "no header"),
        ] {
            let error = format!("{:#}", reader(text).err().unwrap());
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_row_with_too_few_or_too_many_values_is_a_fault_of_that_row_alone() {
        let found = rows("id,asset\na\nb,USD,x\nc,USD\n");
        assert_eq!(found[0].2.as_deref(), Some("1 values, and the header has 2"));
        assert_eq!(found[1].2.as_deref(), Some("3 values, and the header has 2"));
        assert_eq!(found[2], good(4, "c|USD"));
    }

    #[test]
    fn a_missing_quote_is_named_with_the_lines_that_it_swallows() {
        let found = rows("id,asset\n\"a,USD\nb,USD\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 2);
        assert!(found[0].2.as_deref().unwrap().contains("not closed up to line 3"), "{found:?}");
        let closed_later = rows("id,asset\n\"a,USD\nb\",USD,\"x\"\nc,USD\n");
        assert!(closed_later[0].2.as_deref().unwrap().contains("goes on to line 3"), "{closed_later:?}");
        assert_eq!(closed_later[1], good(4, "c|USD"));
    }

    #[test]
    fn a_row_without_an_end_is_bounded() {
        let line = "x".repeat(2 * MAX_ROW_BYTES);
        let found = rows(&format!("id,asset\n{line}\nc,USD\n"));
        assert!(found[0].2.as_deref().unwrap().contains("longer than 65536 bytes"));
        assert!(found[0].1.len() <= MAX_ROW_BYTES);
        assert_eq!(found[1], good(3, "c|USD"));
        let lines = "\"x\n".to_owned() + &"y\n".repeat(MAX_ROW_BYTES);
        let found = rows(&format!("id,asset\n{lines}"));
        assert!(found[0].2.as_deref().unwrap().contains("longer than 65536 bytes"));
        assert!(found.iter().all(|row| row.1.len() <= MAX_ROW_BYTES));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_a_fault_of_the_row() {
        let text = [b"id,asset\n".as_slice(), b"a\xff,USD\n", b"b,USD\n"].concat();
        let mut reader = RowReader::new(Cursor::new(text), &["id", "asset"], &[]).unwrap();
        assert_eq!(reader.next_row().unwrap().unwrap().fault.as_deref(), Some("a value is not UTF-8"));
        assert_eq!(reader.next_row().unwrap().unwrap().get("id"), "b");
    }

    #[test]
    fn a_reader_goes_on_at_any_place_it_was_at() {
        let text = "id,asset\r\na,USD\r\n\r\nb,\"EU\r\nR\"\r\nc,USD";
        let mut first = reader(text).unwrap();
        loop {
            let place = first.place();
            let expected = first.next_row().unwrap();
            let mut second = reader(text).unwrap();
            second.skip_to(place).unwrap();
            assert_eq!(second.next_row().unwrap(), expected, "at {place:?}");
            if expected.is_none() {
                break;
            }
        }
    }
}
