//! `shardctl import balances FILE --from ACCOUNT`

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::ensure;
use ledger::format_minor;
use serde::Serialize;
use tokio::time::Instant;

use super::{Options, Summary};
use crate::{
    commands::Context,
    import::{Kind, balances::Balances, payers, progress_file::Identity, run, survey::SourceFile},
    output,
};

/// Hexadecimal digits of the file's SHA-256 that name an import: 128 bits.
const NAME_DIGITS: usize = 32;

#[derive(clap::Args)]
pub struct Args {
    /// The account that pays, which needs an overdraft. Once for each asset of the file
    #[arg(long, value_name = "ACCOUNT", required = true)]
    from: Vec<String>,
    /// Name of the import, from which the ids of the transfers follow: under one name and --from, an account is paid at most
    /// once, also if its row is corrected meanwhile [default: the hash of the file's content]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    name: &'a str,
    from: &'a [String],
    /// Rows whose amount cannot be read, which the sums do not have.
    rows_without_amount: u64,
    sums: &'a [Sum],
}

/// The sums of an asset.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Sum {
    asset: String,
    /// Of all rows whose amount can be read.
    file: String,
    /// Posted by this import, in this run or before.
    posted: String,
    /// The difference: the amounts of the rows that were left out.
    not_posted: String,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let Args { mut from, name, options } = args;
    from.sort();
    let (pace, dry_run, restart) = (options.pace(), options.dry_run, options.restart);
    let file = SourceFile::open(&options.file)?;
    let sender = options.sender(context).await?;
    let accounts = payers::read(&sender, &from).await?;
    let mut balances = Balances::new(payers::by_asset(&accounts)?);
    let survey = file.survey(&mut balances)?;
    let name = name.unwrap_or_else(|| format!("sha256-{}", &survey.sha256[..NAME_DIGITS]));
    balances.set_name(&name);

    let identity = Identity {
        kind: Balances::NAME.to_owned(),
        name: Some(name.clone()),
        from: from.clone(),
        file_sha256: survey.sha256,
    };
    let progress = super::progress(&file, &sender, identity, restart).await?;
    for account in &accounts {
        let payable = balances.payable.get(account.asset()).copied().unwrap_or(0);
        account.must_afford(payable - i128::from(progress.known_paid(account.asset())))?;
    }
    if !dry_run {
        output::note(&format!("the name of this import is {name}"));
    }
    let (summary, paid) = if dry_run {
        (Summary::checked::<Balances>(&file, run::check(&balances, &file, pace)?, began), None)
    } else {
        let resumed = progress.next.map(|next| next.line);
        let (progress, rejects) = run::send(&balances, &file, survey.rows, &sender, pace, progress).await?;
        (Summary::sent::<Balances>(&file, resumed, &progress, &rejects, began), Some(progress.paid))
    };
    let sums = sums(&balances, paid.as_ref());
    if context.json {
        let rows_without_amount = balances.unreadable;
        output::json(&Outcome { summary: &summary, name: &name, from: &from, rows_without_amount, sums: &sums })?;
    } else {
        print(&summary, &balances, &sums)?;
    }
    let all_posted = sums.iter().all(|sum| sum.file == sum.posted);
    ensure!(
        dry_run || all_posted || summary.counts.rejected > 0,
        "no row was rejected, and the sums differ: run `shardctl verify`, and report this as a defect"
    );
    Ok(summary.exit_code())
}

/// The sums by asset; before anything is sent, nothing is posted.
fn sums(balances: &Balances, paid: Option<&BTreeMap<String, i64>>) -> Vec<Sum> {
    let sum = |(asset, file): (&String, &i128)| {
        let posted = i128::from(paid.and_then(|paid| paid.get(asset)).copied().unwrap_or(0));
        let print = |minor: i128| format_minor(minor, balances.scale(asset));
        Sum { asset: asset.clone(), file: print(*file), posted: print(posted), not_posted: print(file - posted) }
    };
    balances.in_file.iter().map(sum).collect()
}

fn print(summary: &Summary, balances: &Balances, sums: &[Sum]) -> anyhow::Result<()> {
    let rows: Vec<[String; 4]> = sums
        .iter()
        .map(|sum| [sum.asset.clone(), sum.file.clone(), sum.posted.clone(), sum.not_posted.clone()])
        .collect();
    output::table(["asset", "in the file", "posted", "not posted"], &rows)?;
    if balances.unreadable > 0 {
        output::data(&format!("{} rows without a readable amount are in no sum", balances.unreadable))?;
    }
    summary.print("posted")
}
