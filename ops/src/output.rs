//! Where words go: data on standard output, everything else on standard error. No colours, so NO_COLOR is met.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::json_object::JsonObject;

/// Prints text as data.
pub fn data(text: &str) -> anyhow::Result<()> {
    finished(writeln!(io::stdout().lock(), "{text}"))
}

/// What a command with `--dry-run` would do: a sentence, or with `--json` the sentence as `would` beside `fields`.
pub fn would(json: bool, sentence: &str, mut fields: serde_json::Value) -> anyhow::Result<()> {
    if !json {
        return data(sentence);
    }
    fields["dry_run"] = true.into();
    fields["would"] = sentence.into();
    self::json(&fields)
}

/// Prints a value as data, for `--json`.
pub fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    data(&serde_json::to_string_pretty(value)?)
}

/// Says something about the work to a person; never data.
pub fn note(text: &str) {
    // A closed standard error must not stop the work that is being reported.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a table as data, columns whose cells are all numbers to the right.
pub fn table<const COLUMNS: usize>(header: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(Cell::new));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if !rows.is_empty() && rows.iter().all(|row| is_number(&row[index])) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    data(&table.trim_fmt())
}

/// Prints an object as data, a field a line; what is nested stays JSON.
pub fn fields(object: &JsonObject) -> anyhow::Result<()> {
    let rows: Vec<[String; 2]> = object.fields().map(|(name, value)| [name.to_owned(), cell(value)]).collect();
    table(["field", "value"], &rows)
}

/// Prints an object as data, for a program or for a person.
pub fn object(object: &JsonObject, as_json: bool) -> anyhow::Result<()> {
    if as_json { json(object) } else { fields(object) }
}

/// A JSON value as a table shows it.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `1 shard`, `2 shards`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn is_number(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || "-+.,%".contains(c))
}

/// A reader that has seen enough (`shardctl … | head`) is no failure.
fn finished(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::is_number;

    #[test]
    fn numbers_are_told_from_words() {
        for number in ["0", "-12.50", "1,000", "99.9%"] {
            assert!(is_number(number), "{number}");
        }
        for word in ["", "-", "s0", "0-4095x", "1 s"] {
            assert!(!is_number(word), "{word}");
        }
    }
}
