//! `shardctl doctor` checks whether all parts of a cluster agree on their identity, their map and their slots. It asks nodes and routers.
//! Without `--fix` it changes nothing. The exit code is 0 if there are only agreements and warnings, 3 if something disagrees, and 4 if
//! nothing is reachable.
//!
//! [`ask`] collects the answers. [`compare`] and [`slots`] compare them with the shard map and with each other, without I/O.
//! A [`Finding`] is one compared fact.

mod ask;
mod compare;
mod finding;
mod slots;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use identity::Disagreement;
use shard_map::{Shard, ShardMap, Slot, merge_slots};

use crate::{
    cluster::{Description, Layout, description::RouterPlace},
    context::{AdminAddress, Context, Routers},
    exit,
    http_client::HttpClient,
    output,
    resharding::{Nodes, map_file},
};

use ask::MapSource;
use finding::{Finding, FindingVerdict, summary};

/// How many times slots that disagree are read before they are reported. A move makes one commit on each of two shards, and the answers may
/// be from different sides of these commits.
const OWNERSHIP_LOOKS: usize = 4;
const OWNERSHIP_PAUSE: Duration = Duration::from_millis(300);

/// The result of one examination.
struct Examination {
    findings: Vec<Finding>,
    /// Whether any node or router answered.
    reached_anything: bool,
}

/// Asks every node of the map and every router, and compares the answers.
async fn examine(map: &ShardMap, source: &MapSource, routers: &Routers) -> Examination {
    let mut seen = ask::look(map, source, routers).await;
    for _ in 1..OWNERSHIP_LOOKS {
        if slots::compare(&seen).iter().all(|finding| finding.verdict == FindingVerdict::Agrees) {
            break;
        }
        tokio::time::sleep(OWNERSHIP_PAUSE).await;
        ask::look_at_ownership(&mut seen).await;
    }
    let mut findings = compare::compare(&seen);
    findings.extend(slots::examine_moves(&Nodes { map: map.clone() }).await);
    Examination { reached_anything: seen.reached_anything(), findings }
}

const HELP: &str = "\
Asks every node of the shard map and every router. Without --fix, it changes nothing. The map comes from --map, else from \
the router at --admin-url, else from the cluster in --data-dir.

Exit codes: 0 everything agrees or there are only warnings, 3 something disagrees, 4 nothing can be reached";

/// Routers take a new map from the shards within this time.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct DoctorArgs {
    /// Compare the cluster with this map
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Give every shard the newest map, with the slot owners that the shards report, and write the map to the map file. Nothing else is changed
    #[arg(long, conflicts_with = "map")]
    fix: bool,
    /// Also show facts that agree
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    address: AdminAddress,
}

/// What to compare the cluster with, and which routers to ask besides the nodes.
struct Sources {
    map: ShardMap,
    source: MapSource,
    routers: Routers,
    /// A finding about the cluster's map file, if the file is not the map in use.
    file: Option<Finding>,
}

pub async fn run(args: DoctorArgs, context: &Context) -> anyhow::Result<ExitCode> {
    if args.fix {
        fix(&args, context).await?;
    }
    let sources = match (&args.map, args.address.named()) {
        (Some(file), named) => {
            let map = map_file::read(file)?;
            let routers = routers_of(named.into_iter().collect());
            Sources { map, source: MapSource::File(file.display().to_string()), routers, file: None }
        }
        (None, Some(url)) => of_router(url).await?,
        (None, None) => of_cluster(context).await?,
    };
    let Examination { mut findings, reached_anything } =
        examine(&sources.map, &sources.source, &sources.routers).await;
    findings.extend(sources.file);
    let disagrees = findings.iter().any(|finding| finding.verdict == FindingVerdict::Disagrees);
    show(&findings, args.all, context)?;
    Ok(match (reached_anything, disagrees) {
        (false, _) => exit::unreachable(),
        (true, true) => exit::violation(),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// The routers at these admin addresses.
fn routers_of(urls: Vec<String>) -> Routers {
    Routers { urls, client: HttpClient::new(ask::PATIENCE) }
}

/// Publishes the newest map. The map is made to agree with the shards, which decide which shard owns a slot.
async fn fix(args: &DoctorArgs, context: &Context) -> anyhow::Result<()> {
    let nodes = Nodes::of_routers(&args.address, context).await?;
    let (newest, owners) = (nodes.newest_map().await, nodes.owners().await?);
    let differs = Slot::all().any(|slot| owners.of(slot).is_some_and(|owner| owner != newest.owner_id(slot)));
    let map = if differs || nodes.maps_differ().await {
        let shards = newest.shards.iter().map(|shard| {
            let owned =
                Slot::all().filter(|slot| owners.of(*slot).unwrap_or_else(|| newest.owner_id(*slot)) == shard.id);
            Shard { slots: merge_slots(owned), ..shard.clone() }
        });
        newest.successor(shards.collect())?
    } else {
        newest
    };
    for refused in nodes.offer(&map).await {
        output::note(&format!(
            "a shard did not take map version {}: {refused}. Correct the cause, then run `shardctl doctor --fix` again",
            map.version
        ));
    }
    if let Some(file) = args.address.map_file(context) {
        nodes.update_file(&file).await?;
    }
    output::note(&format!(
        "map version {} was offered to every shard; routers read the map from the shards",
        map.version
    ));
    // Routers ask the shards once a second.
    tokio::time::sleep(TAKEN_WITHIN).await;
    Ok(())
}

async fn of_router(url: String) -> anyhow::Result<Sources> {
    let routers = routers_of(vec![url.clone()]);
    let map = map_file::of_router(&routers.client, &url).await?;
    Ok(Sources { map, source: MapSource::Router(url), routers, file: None })
}

/// Compares with the map in use. The file is not the map in use if a router refused it or has not taken it yet.
async fn of_cluster(context: &Context) -> anyhow::Result<Sources> {
    let layout = Layout::find(&context.data_dir)?;
    let description = Description::load(&layout)?.context("the cluster's description is missing")?;
    let routers = routers_of(description.routers.iter().map(RouterPlace::admin_url).collect());
    let path = layout.shard_map();
    let file = map_file::read(&path);
    let mut in_use = None;
    for url in &routers.urls {
        if let Ok(map) = map_file::of_router(&routers.client, url).await {
            in_use = Some((map, MapSource::Router(url.clone())));
            break;
        }
    }
    let finding = |verdict, expected: String, found: String, remedy: &str| {
        Finding::new("cluster", verdict, Disagreement::new("map file", expected, found, remedy))
    };
    let (map, source, file) = match (file, in_use) {
        (Ok(file), Some((in_use, source))) if file != in_use => {
            let remedy = "routers take a new file within seconds, or say why they refuse it";
            let expected = format!("version {}, which is in use", in_use.version);
            let file =
                finding(FindingVerdict::Warning, expected, format!("another map, version {}", file.version), remedy);
            (in_use, source, Some(file))
        }
        (Ok(file), _) => (file, MapSource::File(path.display().to_string()), None),
        (Err(error), Some((in_use, source))) => {
            let remedy = "correct the file (`shardctl map check FILE` names what is wrong)";
            let file = finding(FindingVerdict::Disagrees, "a shard map".to_owned(), format!("{error:#}"), remedy);
            (in_use, source, Some(file))
        }
        (Err(error), None) => return Err(error),
    };
    Ok(Sources { map, source, routers, file })
}

fn show(findings: &[Finding], all: bool, context: &Context) -> anyhow::Result<()> {
    let shown: Vec<&Finding> =
        findings.iter().filter(|finding| all || finding.verdict != FindingVerdict::Agrees).collect();
    if context.json {
        return output::json(&shown);
    }
    for finding in shown {
        output::data(&finding.to_string())?;
    }
    for line in summary(findings) {
        output::data(&line)?;
    }
    Ok(())
}
