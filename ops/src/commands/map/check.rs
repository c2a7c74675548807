//! `shardctl map check FILE`: exit code 3 when the map would be refused.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use serde_json::json;
use shard_map::{MapError, MapProblem, ShardMap};

use crate::{commands::Context, exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// The map to check
    file: PathBuf,
    /// The map it is to replace: versions must grow, shards keep their numbers
    #[arg(long, value_name = "FILE")]
    replaces: Option<PathBuf>,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let checked = match &args.replaces {
        None => ShardMap::parse(&text),
        Some(current) => succeeds(&super::read(current)?, &text),
    };
    match checked {
        Ok(map) => {
            if context.json {
                output::json(
                    &json!({"valid": true, "version": map.version, "shards": map.shards.len(), "problems": []}),
                )?;
            } else {
                let shards = output::count(map.shards.len(), "shard");
                output::data(&format!("{}: version {}, {shards}, valid", args.file.display(), map.version))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(MapError { problems }) => {
            if context.json {
                let problems: Vec<_> = problems.iter().map(problem_json).collect();
                output::json(&json!({"valid": false, "problems": problems}))?;
            } else {
                // The form that editors and CI logs turn into links.
                for problem in problems {
                    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
                    output::data(&format!("{}{line}: {}", args.file.display(), problem.reason))?;
                }
            }
            Ok(exit::violation())
        }
    }
}

fn succeeds(current: &ShardMap, text: &str) -> Result<ShardMap, MapError> {
    let new = ShardMap::parse(text)?;
    current.check_successor(&new)?;
    Ok(new)
}

fn problem_json(problem: &MapProblem) -> serde_json::Value {
    json!({"line": problem.line, "reason": problem.reason.to_string()})
}
