//! `shardctl map check FILE`. The exit code is 3 if the map would be refused, and 4 if the named router is unreachable.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shard_map::{MapError, ShardMap};

use crate::{
    context::{AdminAddress, Context},
    exit::{self, Unreachable},
    output,
    resharding::map_file,
};

const HELP: &str = "\
If a cluster is available (the router at --admin-url, or the cluster that runs in --data-dir), its routers check the map as a reload \
would: against the map in use and against the slots that the shards own. A map that follows a finished move is accepted; a map that \
reassigns an owned slot is refused. Nothing is changed.

Without a cluster, or with --offline, the file is checked alone. With --replaces it is checked against another file. A file \
does not record moves, so a map that follows a move is then refused.

Exit codes: 0 valid, 3 the map would be refused, 4 the router at --admin-url cannot be reached";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct MapCheckArgs {
    /// The map to check
    file: PathBuf,
    /// Check against this file, which the map is to replace, instead of a running cluster
    #[arg(long, value_name = "FILE")]
    replaces: Option<PathBuf>,
    /// Check the file alone, even if a cluster is running
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    address: AdminAddress,
}

/// The verdict of a router or of this program on a map.
#[derive(Debug, Deserialize)]
struct MapVerdict {
    problems: Vec<MapProblem>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MapProblem {
    line: Option<usize>,
    reason: String,
}

pub async fn run(args: MapCheckArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let (problems, checked_by) = match &args.replaces {
        Some(current) => (problems_of(succeeds(&map_file::read(current)?, &text)), Vec::new()),
        None if args.offline => (problems_of(ShardMap::parse(&text)), Vec::new()),
        None => match online(&args.address, context, &text).await? {
            Some(checked) => checked,
            None => (problems_of(ShardMap::parse(&text)), Vec::new()),
        },
    };
    show(&args.file, &text, &problems, &checked_by, context)?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { exit::violation() })
}

/// Returns the verdict of the routers, and the routers that were asked. `None` without a cluster.
async fn online(
    address: &AdminAddress,
    context: &Context,
    text: &str,
) -> anyhow::Result<Option<(Vec<MapProblem>, Vec<String>)>> {
    let is_named = address.named().is_some();
    let routers = match address.routers(context) {
        Ok(routers) => routers,
        Err(error) if is_named => return Err(error),
        // There is no cluster in the data folder.
        Err(_) => return Ok(None),
    };
    let (mut problems, mut checked_by) = (Vec::new(), Vec::new());
    for url in &routers.urls {
        match routers.client.post::<MapVerdict>(&format!("{url}/admin/shard-map/check"), text.to_owned()).await {
            Ok(verdict) => {
                let news: Vec<MapProblem> =
                    verdict.problems.into_iter().filter(|problem| !problems.contains(problem)).collect();
                problems.extend(news);
                checked_by.push(url.clone());
            }
            Err(error) if !is_named && error.is::<Unreachable>() => {}
            Err(error) => return Err(error),
        }
    }
    if checked_by.is_empty() {
        output::note("no router of the cluster in --data-dir runs: the file is checked alone");
        return Ok(None);
    }
    Ok(Some((problems, checked_by)))
}

fn problems_of(checked: Result<ShardMap, MapError>) -> Vec<MapProblem> {
    let problems = checked.err().map(|error| error.problems).unwrap_or_default();
    problems
        .into_iter()
        .map(|problem| MapProblem { line: problem.line, reason: problem.reason.to_string() })
        .collect()
}

fn show(
    file: &Path,
    text: &str,
    problems: &[MapProblem],
    checked_by: &[String],
    context: &Context,
) -> anyhow::Result<()> {
    let map = ShardMap::parse(text).ok().filter(|_| problems.is_empty());
    if context.json {
        let (version, shards) = (map.as_ref().map(|map| map.version), map.as_ref().map(|map| map.shards.len()));
        return output::json(&serde_json::json!({
            "valid": map.is_some(), "version": version, "shards": shards, "problems": problems, "checked_by": checked_by,
        }));
    }
    if let Some(map) = map {
        let shards = output::count(map.shards.len(), "shard");
        let by = if checked_by.is_empty() { String::new() } else { format!(" for {}", checked_by.join(", ")) };
        output::data(&format!("{}: version {}, {shards}, valid{by}", file.display(), map.version))?;
    }
    // Editors and CI logs turn this form into links.
    for MapProblem { line, reason } in problems {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        output::data(&format!("{}{line}: {reason}", file.display()))?;
    }
    Ok(())
}

fn succeeds(current: &ShardMap, text: &str) -> Result<ShardMap, MapError> {
    match ShardMap::parse_successor(text, current, |_| None)? {
        Some(new) => Ok(new),
        None => ShardMap::parse(text),
    }
}
