//! Writes data to standard output, and everything else to standard error. There are no colours, which satisfies NO_COLOR. Progress bars are
//! drawn only on a terminal: indicatif draws nothing if standard error is a file or a pipe.

use std::{
    fmt,
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

/// Prints text as data.
pub fn data(text: &str) -> anyhow::Result<()> {
    finished(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints what a command with `--dry-run` would do: a sentence, or with `--json` an object of `fields` with the sentence as `would`.
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

/// Prints a message about the work on standard error.
pub fn note(text: &str) {
    // A closed standard error must not stop the work that is being reported.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Asks a question on the terminal. Returns whether the answer is `yes`. Without a terminal, it returns `false`.
pub fn is_confirmed(question: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut error = io::stderr().lock();
    write!(error, "{question} Type yes: ")?;
    error.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Prints a table as data. A column of numbers is aligned to the right.
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

/// Prints an object as data, one field on each line. A nested value is printed as JSON.
pub fn fields(object: &JsonObject) -> anyhow::Result<()> {
    let rows: Vec<[String; 2]> = object.fields().map(|(name, value)| [name.to_owned(), cell(value)]).collect();
    table(["field", "value"], &rows)
}

/// Prints an object as data: as JSON for a program, or as fields for a person.
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

/// The items of a JSON list. Empty if the value is no list.
pub fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `1 shard`, `2 shards`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn is_number(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || "-+.,%".contains(c))
}

/// Ignores a closed pipe, which is no failure: `shardctl … | head` closes it.
fn finished(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct JsonObject(Vec<(String, Value)>);

impl JsonObject {
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Removes a field and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let place = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.remove(place).1)
    }
}

impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.fields())
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = JsonObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonObject, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(JsonObject(fields))
    }
}

const TICK: Duration = Duration::from_millis(200);
const COUNTED: &str = "{msg:<12} {bar:40} {human_pos}/{human_len} {per_sec:.dim} {eta:.dim}";
const PERCENT: &str = "{spinner} {prefix:<10} {bar:30} {pos:>3} % {msg}";
const STEPS: &str = "{spinner} {prefix:<10} {pos}/{len} {msg}";

/// Runs work of known size and shows a progress bar until the work is done.
pub async fn counted<T>(what: &'static str, total: usize, work: impl AsyncFnOnce(&ProgressBar) -> T) -> T {
    let bar = ProgressBar::new(total as u64).with_style(style(COUNTED)).with_message(what);
    let done = work(&bar).await;
    bar.finish_and_clear();
    done
}

/// Several bars, one for each of several tasks that run at once.
pub struct Bars(MultiProgress);

impl Bars {
    pub fn new() -> Self {
        Self(MultiProgress::new())
    }

    /// A bar from 0 to 100 percent for the task `who`.
    pub fn percent(&self, who: &str) -> ProgressBar {
        let bar = ProgressBar::new(100).with_style(style(PERCENT)).with_prefix(who.to_owned());
        let bar = self.0.add(bar);
        bar.enable_steady_tick(TICK);
        bar
    }

    /// A line for the task `who` of `steps` steps; [`ProgressBar::set_message`] names the present step.
    pub fn steps(&self, who: &str, steps: usize) -> ProgressBar {
        let bar = ProgressBar::new(steps as u64).with_style(style(STEPS)).with_prefix(who.to_owned());
        let bar = self.0.add(bar);
        bar.enable_steady_tick(TICK);
        bar
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_from_words() {
        for number in ["0", "-12.50", "1,000", "99.9%"] {
            assert!(is_number(number), "{number}");
        }
        for word in ["", "-", "s0", "0-4095x", "1 s"] {
            assert!(!is_number(word), "{word}");
        }
    }

    #[test]
    fn fields_keep_their_order() {
        let text = r#"{"z":1,"a":{"y":null},"m":"x"}"#;
        let mut object: JsonObject = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
        assert_eq!(object.remove("a"), Some(serde_json::json!({"y": null})));
        assert_eq!(object.fields().map(|(name, _)| name).collect::<Vec<_>>(), ["z", "m"]);
        assert_eq!(object.remove("a"), None);
    }

    #[test]
    fn templates_are_well_formed() {
        for template in [COUNTED, STEPS, PERCENT] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
