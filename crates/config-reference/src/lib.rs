//! The reference of a configuration file as Markdown, from the schema of the structs that read the file.
//!
//! The schema has each setting's name, type, default and doc comment, so there is no second list that could be out of date. The
//! programs print their references with `--print-config-reference`. No I/O is here.

use std::fmt::Write;

use schemars::Schema;
use serde_json::Value;

/// Why a schema makes no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("the setting {0} has no doc comment")]
    NoMeaning(String),
    #[error("the setting {setting} has a type that the reference cannot describe: {schema}")]
    UnknownType { setting: String, schema: String },
}

/// One table of the file.
struct Section {
    /// As in the file's heading: `[http]`, `[[shard]]`. Empty for settings outside of any table.
    heading: String,
    meaning: String,
    rows: Vec<Row>,
}

struct Row {
    /// From the beginning of the file: `http.listen`.
    setting: String,
    kind: String,
    default: String,
    unit: &'static str,
    meaning: String,
}

/// The reference of one file, `title` above all and `schema` from the struct that reads it. Settings are in alphabetical order.
///
/// # Errors
/// A setting has no doc comment, or a type that is none of TOML's.
pub fn render(title: &str, introduction: &str, schema: &Schema) -> Result<String, ReferenceError> {
    let root = schema.as_value();
    let mut sections = Vec::new();
    collect(root, root, "", String::new(), String::new(), &mut sections)?;
    let mut text = format!("## {title}\n{introduction}\n");
    for section in sections.iter().filter(|section| !section.rows.is_empty()) {
        // Writing to a String cannot fail.
        let _ = if section.heading.is_empty() {
            writeln!(text)
        } else {
            writeln!(text, "\n### `{}`\n{}\n", section.heading, section.meaning)
        };
        text += "| setting | type | default | unit | meaning |\n|---|---|---|---|---|\n";
        for row in &section.rows {
            let Row { setting, kind, default, unit, meaning } = row;
            let _ = writeln!(text, "| `{setting}` | {kind} | {default} | {unit} | {meaning} |");
        }
    }
    Ok(text)
}

/// Adds the table that `schema` describes, and those inside it. `path` is the table's, without brackets.
fn collect(
    root: &Value,
    schema: &Value,
    path: &str,
    heading: String,
    meaning: String,
    sections: &mut Vec<Section>,
) -> Result<(), ReferenceError> {
    let place = sections.len();
    sections.push(Section { heading, meaning, rows: Vec::new() });
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|required| required == name));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let setting = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let target = resolve(root, property);
        let meaning = meaning_of(property, target, &setting)?;
        if target["properties"].is_object() {
            collect(root, target, &setting, format!("[{setting}]"), meaning, sections)?;
            continue;
        }
        let element = resolve(root, &target["items"]);
        if element["properties"].is_object() {
            collect(root, element, &setting, format!("[[{setting}]]"), meaning, sections)?;
            continue;
        }
        let default = match (is_required(name), property.get("default").or(target.get("default"))) {
            (true, _) => "required".to_owned(),
            (false, None | Some(Value::Null)) => "none".to_owned(),
            (false, Some(Value::Object(entries))) if entries.is_empty() => "none".to_owned(),
            (false, Some(value)) => format!("`{value}`"),
        };
        // A table whose names the operator chooses.
        let entries = &target["additionalProperties"];
        let (setting, described) =
            if entries.is_object() { (format!("{setting}.NAME"), entries) } else { (setting, target) };
        let kind = kind(root, described)
            .ok_or_else(|| ReferenceError::UnknownType { setting: setting.clone(), schema: described.to_string() })?;
        sections[place].rows.push(Row { unit: unit(name), setting, kind, default, meaning });
    }
    Ok(())
}

/// The doc comment of the field, or else of its type.
fn meaning_of(property: &Value, target: &Value, setting: &str) -> Result<String, ReferenceError> {
    let text = [property, target].into_iter().find_map(|schema| schema["description"].as_str());
    let text = text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { Err(ReferenceError::NoMeaning(setting.to_owned())) } else { Ok(text.replace('|', "\\|")) }
}

/// What a schema refers to, or itself. Of a type or nothing, it is the type.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return root.pointer(reference.trim_start_matches('#')).unwrap_or(schema);
    }
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    let mut values = alternatives.filter(|alternative| alternative["type"] != "null");
    match (values.next(), values.next()) {
        (Some(only), None) => resolve(root, only),
        _ => schema,
    }
}

/// The type in words. `None` if it is none of TOML's.
fn kind(root: &Value, schema: &Value) -> Option<String> {
    let choices = schema["enum"].as_array().filter(|choices| choices.iter().all(Value::is_string));
    if let Some(choices) = choices {
        return Some(choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(" or "));
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        other => other.as_str(),
    };
    match types? {
        "array" => Some(format!("list: {}", kind(root, resolve(root, &schema["items"]))?)),
        name @ ("integer" | "number" | "boolean" | "string") => Some(name.to_owned()),
        _ => None,
    }
}

/// The unit is the end of a name.
fn unit(name: &str) -> &'static str {
    const UNITS: [(&str, &str); 4] =
        [("_ms", "milliseconds"), ("_bytes", "bytes"), ("_per_second", "per second"), ("_s", "seconds")];
    UNITS.into_iter().find(|(ending, _)| name.ends_with(ending)).map_or("", |(_, unit)| unit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemars::{JsonSchema, schema_for};
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct File {
        /// Where it
        /// listens.
        http: Listener,
        /// Each with its scale.
        assets: BTreeMap<String, u32>,
        /// One table each.
        shard: Vec<Shard>,
        /// Threads. 0: one for each core.
        worker_threads: usize,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    struct Listener {
        /// Address and port.
        listen: String,
        /// For a whole body.
        #[serde(default = "five")]
        body_timeout_ms: u64,
        /// `a` | `b`.
        #[serde(default)]
        format: Format,
        /// With it, HTTPS only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<Files>,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    struct Files {
        /// The private key.
        key: Option<String>,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    struct Shard {
        /// In order of preference.
        nodes: Vec<String>,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Format {
        #[default]
        Text,
        Json,
    }

    fn five() -> u64 {
        5
    }

    #[test]
    fn each_table_of_a_file_has_its_settings_with_type_default_unit_and_meaning() {
        let expected = "\
## `file.toml`
Read at start.

| setting | type | default | unit | meaning |
|---|---|---|---|---|
| `assets.NAME` | integer | none |  | Each with its scale. |
| `worker_threads` | integer | `0` |  | Threads. 0: one for each core. |

### `[http]`
Where it listens.

| setting | type | default | unit | meaning |
|---|---|---|---|---|
| `http.body_timeout_ms` | integer | `5` | milliseconds | For a whole body. |
| `http.format` | `\"text\"` or `\"json\"` | `\"text\"` |  | `a` \\| `b`. |
| `http.listen` | string | required |  | Address and port. |

### `[http.tls]`
With it, HTTPS only.

| setting | type | default | unit | meaning |
|---|---|---|---|---|
| `http.tls.key` | string | none |  | The private key. |

### `[[shard]]`
One table each.

| setting | type | default | unit | meaning |
|---|---|---|---|---|
| `shard.nodes` | list: string | required |  | In order of preference. |
";
        assert_eq!(render("`file.toml`", "Read at start.", &schema_for!(File)).unwrap(), expected);
    }

    #[test]
    fn a_setting_without_a_doc_comment_is_an_error() {
        #[derive(JsonSchema)]
        #[allow(dead_code, reason = "only its schema is used")]
        struct Silent {
            listen: String,
        }
        let error = render("x", "", &schema_for!(Silent)).unwrap_err();
        assert_eq!(error, ReferenceError::NoMeaning("listen".to_owned()));
    }
}
