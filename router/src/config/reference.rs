//! The reference of the files that a router reads.

use config_reference::{ReferenceError, render};
use schemars::schema_for;

use super::Config;

const INTRODUCTION: &str = "# Configuration reference

`make configuration` writes this page: `router --print-config-reference` and `shard-node --print-config-reference` print it from the structs that read the files. Do not edit it.

The column default says `required` where a file must have the setting, and `none` where the setting may be missing and nothing takes its place. A setting that is not listed here is refused with its name. So is a number of 0, unless the meaning says what 0 does.
`--check-config` checks a file and ends; `--print-config` prints it with all defaults filled in.
";

/// `router.toml`, `keys.toml` and `shard-map.toml` as Markdown, with the beginning of the page.
///
/// # Errors
/// A setting has no doc comment.
pub fn reference() -> Result<String, ReferenceError> {
    Ok([
        INTRODUCTION.to_owned(),
        render(
            "`router.toml`",
            "A router reads it at start: `router --config router.toml`.",
            &schema_for!(Config),
        )?,
        render(
            "`keys.toml`",
            "A router reads it at start, when it changes, and on SIGHUP. `shardctl key` writes it: [keys.md](keys.md).",
            &keys::file_schema(),
        )?,
        render(
            "`shard-map.toml`",
            "Routers read it at start, when it changes, and on SIGHUP; `shard-node init` reads it. `shardctl map check FILE` says what is wrong with one.",
            &shard_map::file_schema(),
        )?,
    ]
    .join("\n"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_begins_with_what_the_code_says_of_a_routers_files() {
        let page = include_str!("../../../docs/operations/configuration.md");
        assert!(page.starts_with(&super::reference().unwrap()), "the page is out of date: run `make configuration`");
    }
}
