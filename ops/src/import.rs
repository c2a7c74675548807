//! `shardctl import` imports accounts and opening balances from a CSV file, through the batch routes of the HTTP API.
//!
//! A file is read twice. The first reading ([`Kind::survey`]) checks every row, adds up amounts and computes the file's SHA-256. The second
//! reading sends the rows in batches, several at once, and takes the answers in the file's order. One place in the file ([`rows::FilePlace`])
//! therefore separates confirmed rows from the others. [`progress_file`] stores this place beside the file, and a run after an interruption
//! continues there. Rows that are sent twice are replays: the file has the ids of accounts, and the ids of opening balances follow from the
//! import's name and the account ([`balances`]).
//!
//! [`rows`] reads rows. [`accounts`] and [`balances`] turn rows into items of requests. [`sender`] repeats each batch until its outcome is
//! certain. [`rejects`] lists the rejected rows. [`mod@run`] combines these parts.

pub mod accounts;
pub mod balances;
pub mod payers;
pub mod progress_file;
pub mod rejects;
pub mod rows;
pub mod run;
pub mod sender;
pub mod survey;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::ensure;
use ledger::format_minor;
use rows::CsvRow;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::{
    accounts::Accounts,
    balances::Balances,
    progress_file::{Identity, Progress, ProgressFile},
    rejects::Rejects,
    run::Pace,
    sender::BatchSender,
    survey::SourceFile,
};
use crate::{
    context::{Context, PublicAddress},
    exit,
    http_client::ItemAnswer,
    output,
};

const HELP: &str = "\
The file is UTF-8 with a header; the order of the columns is free, and an unknown column is refused.
A row that is malformed, or that the ledger refuses, is rejected: customers.rejected.csv (for customers.csv) lists it with its line and the reason.
The first ten rejected rows are also printed on standard error. The progress is stored in customers.progress.json, so the same command continues
an interrupted import. A finished import may be repeated: rows that are in the ledger are not executed again.

Exit codes: 0 every row is in the ledger, 1 the import did not begin (the header, the paying account, another import), 3 \
rows were rejected, 4 a router or shard is \
unreachable (give the command again)";

#[derive(clap::Subcommand)]
pub enum ImportCommand {
    /// Open accounts: columns id, asset, and optionally overdraft, max_balance, metadata (a JSON object of strings)
    #[command(after_help = HELP)]
    Accounts(AccountsArgs),
    /// Pay opening balances from a named account: columns account, asset, amount, and optionally id (a UUID)
    #[command(after_help = HELP)]
    Balances(BalancesArgs),
}

/// The arguments of both kinds of import.
#[derive(clap::Args)]
struct ImportArgs {
    /// The CSV file
    file: PathBuf,
    /// Check every row and send none. Every bad row is printed on standard error, and no file is written
    #[arg(long)]
    dry_run: bool,
    /// Begin at the first row, even if an earlier run was interrupted
    #[arg(long)]
    restart: bool,
    /// Rows in each request
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    batch: u32,
    /// Requests that are sent at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Give up when no row could be confirmed for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience_s: u64,
    #[command(flatten)]
    address: PublicAddress,
}

/// The fields that every import prints with `--json`.
#[derive(Serialize)]
struct Summary {
    kind: &'static str,
    file: PathBuf,
    dry_run: bool,
    #[serde(flatten)]
    counts: RowCounts,
    /// The file of rejected rows, if there is one.
    rejected_file: Option<PathBuf>,
    /// The line at which this run began. Absent if the run began at the first row.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at_line: Option<u64>,
    elapsed_ms: u64,
}

pub async fn run(command: ImportCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        ImportCommand::Accounts(args) => import_accounts(args, context).await,
        ImportCommand::Balances(args) => import_balances(args, context).await,
    }
}

impl ImportArgs {
    fn pace(&self) -> Pace {
        Pace { batch: self.batch as usize, in_flight: self.in_flight as usize }
    }

    async fn sender(self, context: &Context) -> anyhow::Result<BatchSender> {
        let routers = self.address.routers(context)?;
        BatchSender::connect(routers.client, &routers.urls, Duration::from_secs(self.patience_s)).await
    }
}

/// The row at which the import begins. The progress of an import to another ledger is ignored.
async fn progress(
    file: &SourceFile,
    sender: &BatchSender,
    identity: Identity,
    restart: bool,
) -> anyhow::Result<Progress> {
    let progress_file = ProgressFile(file.beside("progress.json"));
    let mut previous = progress_file.load()?;
    if let Some(witness) = previous.as_ref().and_then(|previous| previous.witness.as_ref())
        && run::witness(sender, &witness.account).await?.as_ref() != Some(witness)
    {
        output::note(&format!(
            "{} is of an import to another ledger: the import begins at the first row",
            progress_file.0.display()
        ));
        previous = None;
    }
    let progress = Progress::after(previous, identity, restart);
    let progress = anyhow::Context::with_context(progress, || progress_file.0.display().to_string())?;
    if let Some(next) = progress.next {
        output::note(&format!("an interrupted import continues at line {}", next.line));
    }
    Ok(progress)
}

impl Summary {
    fn of<K: Kind>(file: &SourceFile, dry_run: bool, began: Instant) -> Self {
        Self {
            kind: K::NAME,
            file: file.path().to_owned(),
            dry_run,
            counts: RowCounts::default(),
            rejected_file: None,
            resumed_at_line: None,
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn checked<K: Kind>(file: &SourceFile, counts: RowCounts, began: Instant) -> Self {
        Self { counts, ..Self::of::<K>(file, true, began) }
    }

    fn sent<K: Kind>(
        file: &SourceFile,
        resumed_at_line: Option<u64>,
        progress: &Progress,
        rejects: &Rejects,
        began: Instant,
    ) -> Self {
        let rejected_file = rejects.path().map(ToOwned::to_owned);
        Self { counts: progress.counts, rejected_file, resumed_at_line, ..Self::of::<K>(file, false, began) }
    }

    /// Prints the counts for a person. `done` is the verb for rows that are new in the ledger, such as `posted`.
    fn print(&self, done: &str) -> anyhow::Result<()> {
        let counts = &self.counts;
        let mut parts = if self.dry_run {
            vec![format!("{} would be sent", counts.rows - counts.rejected - counts.empty)]
        } else {
            vec![format!("{} {done}", counts.done), format!("{} {done} before", counts.replayed)]
        };
        if counts.empty > 0 {
            parts.push(format!("{} of zero", counts.empty));
        }
        parts.push(format!("{} rejected", counts.rejected));
        output::data(&format!("{} rows: {}; {} ms", counts.rows, parts.join(", "), self.elapsed_ms))?;
        match &self.rejected_file {
            Some(path) => output::data(&format!("rejected rows: {}", path.display())),
            None => Ok(()),
        }
    }

    fn exit_code(&self) -> ExitCode {
        if self.counts.rejected == 0 { ExitCode::SUCCESS } else { exit::violation() }
    }
}

#[derive(clap::Args)]
pub struct AccountsArgs {
    #[command(flatten)]
    options: ImportArgs,
}

async fn import_accounts(args: AccountsArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let options = args.options;
    let pace = options.pace();
    let file = SourceFile::open(&options.file)?;
    let mut accounts = Accounts::new()?;
    let survey = file.survey(&mut accounts)?;
    let summary = if options.dry_run {
        Summary::checked::<Accounts>(&file, run::check(&accounts, &file, pace)?, began)
    } else {
        let restart = options.restart;
        let sender = options.sender(context).await?;
        let identity =
            Identity { kind: Accounts::NAME.to_owned(), name: None, from: Vec::new(), file_sha256: survey.sha256 };
        let progress = progress(&file, &sender, identity, restart).await?;
        let resumed = progress.next.map(|next| next.line);
        let (progress, rejects) = run::send(&accounts, &file, survey.rows, &sender, pace, progress).await?;
        Summary::sent::<Accounts>(&file, resumed, &progress, &rejects, began)
    };
    if context.json {
        output::json(&summary)?;
    } else {
        summary.print("opened")?;
    }
    Ok(summary.exit_code())
}

/// Hexadecimal digits of the file's SHA-256 that name an import: 128 bits.
const NAME_DIGITS: usize = 32;

#[derive(clap::Args)]
pub struct BalancesArgs {
    /// Account that pays, which needs an overdraft; give one for each asset of the file
    #[arg(long, value_name = "ACCOUNT", required = true)]
    from: Vec<String>,
    /// Name of the import, which determines the ids of the transfers. Under one name and --from, an account is paid at most once, even if its
    /// row is corrected meanwhile [default: the hash of the file's content]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    #[command(flatten)]
    options: ImportArgs,
}

#[derive(Serialize)]
struct BalancesSummary<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    name: &'a str,
    from: &'a [String],
    /// The number of rows whose amount cannot be read. The sums leave them out.
    rows_without_amount: u64,
    sums: &'a [Sum],
}

/// The sums of an asset.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Sum {
    asset: String,
    /// The sum of all rows whose amount can be read.
    file: String,
    /// The sum that this import has posted, in this run or an earlier one.
    posted: String,
    /// The difference, which is the sum of the rejected rows.
    not_posted: String,
}

async fn import_balances(args: BalancesArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let BalancesArgs { mut from, name, options } = args;
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
    let progress = progress(&file, &sender, identity, restart).await?;
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
        output::json(&BalancesSummary {
            summary: &summary,
            name: &name,
            from: &from,
            rows_without_amount,
            sums: &sums,
        })?;
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

/// The sums by asset. `paid` is `None` before anything is sent.
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

/// The kind of a file's rows: accounts or opening balances.
pub trait Kind {
    /// One item of a batch, as the API takes it.
    type Item: Serialize;

    /// The kind's name in progress files and summaries.
    const NAME: &'static str;
    /// Columns that the header must have.
    const REQUIRED: &'static [&'static str];
    /// Columns that the header may have.
    const OPTIONAL: &'static [&'static str];
    /// The batch route.
    const ROUTE: &'static str;
    /// The member of the batch's body that has the items.
    const MEMBER: &'static str;

    /// Looks at a row in the first reading, before any row is sent.
    fn survey(&mut self, row: &CsvRow);

    /// The item of a row. `None`: there is nothing to send. The error is the reason why the row is rejected.
    fn item(&self, row: &CsvRow) -> Result<Option<Self::Item>, String>;

    /// The meaning of an answer. Changes the item if it returns [`ItemVerdict::Next`].
    fn verdict(&self, item: &mut Self::Item, answer: &ItemAnswer) -> ItemVerdict;

    /// What the item pays, in minor units, by asset.
    fn pays(item: &Self::Item) -> Option<(&str, i64)>;

    /// An account that exists once the item is confirmed. It identifies the ledger that was imported to.
    fn witness(item: &Self::Item) -> &str;
}

/// What the answer to one item means for the import.
#[derive(Debug, PartialEq, Eq)]
pub enum ItemVerdict {
    /// The item is in the ledger. `replayed`: an earlier request put it there.
    Confirmed { replayed: bool },
    /// The item is not in the ledger, and sending it again does not help.
    Refused(String),
    /// The outcome is uncertain, or a shard is unreachable. The item is sent again.
    Uncertain,
    /// The item was changed. The changed item is sent.
    Next,
}

/// The number of rows by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// All rows so far.
    pub rows: u64,
    /// Rows that this import put into the ledger.
    pub done: u64,
    /// Rows that an earlier run or request had put into the ledger.
    pub replayed: u64,
    /// Rows with nothing to send, because the balance is zero.
    pub empty: u64,
    /// Rows that are rejected and listed in the file of rejected rows.
    pub rejected: u64,
}
