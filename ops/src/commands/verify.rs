//! `shardctl verify`: checks the invariants of a live cluster in its databases.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use super::Context;
use crate::{
    cluster::{Description, Layout},
    exit, output,
    verify::{self, Report, Target},
};

const HELP: &str = "\
The databases must be those of all shards of one cluster. A shard that one of them knows of and that is not given is a violation. \
PGHOST, PGSSLMODE and similar variables are ignored. PGOPTIONS, PGSSLROOTCERT, PGSSLCERT and PGSSLKEY are refused,
as is PGPASSWORD if the URL has no password.

Exit codes: 0 clean, 3 a violation was found, 4 a database does not answer";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A shard's database, instead of those of the cluster in --data-dir; give every shard of the cluster
    #[arg(long = "dsn", value_name = "SHARD=URL", value_parser = parse_target)]
    targets: Vec<Target>,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let targets = if args.targets.is_empty() { cluster_targets(context)? } else { args.targets };
    let report = verify::verify(&targets).await?;
    if context.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { exit::violation() })
}

/// The databases of the cluster in the data folder.
pub fn cluster_targets(context: &Context) -> anyhow::Result<Vec<Target>> {
    let layout = Layout::find(&context.data_dir)?;
    let description = Description::load(&layout)?
        .with_context(|| format!("there is no cluster in {}", context.data_dir.display()))?;
    let targets = description.shards.iter().map(|shard| {
        let dsn = shard.dsn(&layout)?;
        Ok(Target { shard: shard.id.clone(), dsn })
    });
    targets.collect()
}

/// Prints the result: a line for each invariant, then the violations.
pub fn print(report: &Report) -> anyhow::Result<()> {
    let rows: Vec<[String; 3]> = report
        .invariants
        .iter()
        .map(|invariant| {
            let verdict = if invariant.violations == 0 {
                "ok".to_owned()
            } else {
                format!("{} VIOLATIONS", invariant.violations)
            };
            [invariant.id.to_string(), verdict, invariant.claim.to_owned()]
        })
        .collect();
    output::table(["invariant", "verdict", "claim"], &rows)?;
    let violations: Vec<[String; 4]> = report
        .invariants
        .iter()
        .flat_map(|invariant| invariant.examples.iter().map(|example| (invariant.id, example)))
        .map(|(id, example)| {
            let violation = &example.violation;
            [id.to_string(), example.shard.clone(), violation.subject.clone(), violation.detail.clone()]
        })
        .collect();
    if !violations.is_empty() {
        output::data("")?;
        output::table(["invariant", "shard", "id", "what is wrong"], &violations)?;
    }
    output::data(&format!("\n{}", summary(report)))
}

fn summary(report: &Report) -> String {
    let total = |of: fn(&verify::ShardSize) -> i64| report.shards.iter().map(of).sum::<i64>();
    format!(
        "{}: {} accounts, {} entries, {} transfers on {} shards; {} sagas finished, {} under way; {} ms",
        if report.is_clean() { "clean" } else { "VIOLATED" },
        total(|shard| shard.accounts),
        total(|shard| shard.entries),
        total(|shard| shard.transfers),
        report.shards.len(),
        report.sagas.finished,
        report.sagas.under_way(),
        report.elapsed_ms,
    )
}

/// Parses `SHARD=URL`.
pub fn parse_target(text: &str) -> anyhow::Result<Target> {
    let (shard, dsn) = text.split_once('=').context("expected SHARD=URL")?;
    ensure!(!shard.is_empty() && dsn.contains("://"), "expected SHARD=URL, such as s0=postgres://…");
    Ok(Target { shard: shard.to_owned(), dsn: dsn.to_owned() })
}
