//! `shardctl import …`: accounts and opening balances out of a CSV file.

mod accounts;
mod balances;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::{Context, router_address::PublicAddress};
use crate::{
    exit,
    import::{
        Counts, Kind,
        progress_file::{Identity, Progress, ProgressFile},
        rejects::Rejects,
        run::{self, Pace},
        sender::Sender,
        survey::SourceFile,
    },
    output,
};

const HELP: &str = "\
The file is UTF-8 with a header; the order of the columns is free, and an unknown column is refused.
A row that is malformed, or that the ledger refuses, is left out and listed with its line and the reason in customers.rejected.csv (of customers.csv),
the first ten on standard error as well. The progress is kept in customers.progress.json: an import that was interrupted goes on where
it was when the same command is given again. A finished import may be repeated: what is there is not done twice.

Exit codes: 0 every row is in the ledger, 1 nothing was begun (the header, the paying account, another import), 3 rows were left out, 4 a router or shard is \
unreachable (give the command again)";

#[derive(clap::Subcommand)]
pub enum Command {
    /// Open accounts: columns id, asset, and if wanted overdraft, max_balance, metadata (a JSON object of strings)
    #[command(after_help = HELP)]
    Accounts(accounts::Args),
    /// Pay opening balances from a named account: columns account, asset, amount, and if wanted id (a UUID)
    #[command(after_help = HELP)]
    Balances(balances::Args),
}

/// What both kinds of import are given.
#[derive(clap::Args)]
struct Options {
    /// The CSV file
    file: PathBuf,
    /// Check every row and send none. Every bad row is told on standard error, and no file is written
    #[arg(long)]
    dry_run: bool,
    /// Begin at the first row although an earlier run was interrupted
    #[arg(long)]
    restart: bool,
    /// Rows of one request
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    batch: u32,
    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Give up when no row could be confirmed for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience_s: u64,
    #[command(flatten)]
    address: PublicAddress,
}

/// What an import prints with `--json`, beside what its kind adds.
#[derive(Serialize)]
struct Summary {
    kind: &'static str,
    file: PathBuf,
    dry_run: bool,
    #[serde(flatten)]
    counts: Counts,
    /// The file of rejected rows, if there is one.
    rejected_file: Option<PathBuf>,
    /// The line at which this run began; absent where it began at the first row.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at_line: Option<u64>,
    elapsed_ms: u64,
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Accounts(args) => accounts::run(args, context).await,
        Command::Balances(args) => balances::run(args, context).await,
    }
}

impl Options {
    fn pace(&self) -> Pace {
        Pace { batch: self.batch as usize, in_flight: self.in_flight as usize }
    }

    async fn sender(self, context: &Context) -> anyhow::Result<Sender> {
        let routers = self.address.routers(context)?;
        Sender::connect(routers.client, &routers.urls, Duration::from_secs(self.patience_s)).await
    }
}

/// Where the import begins. The progress of an import to another ledger counts for nothing.
async fn progress(file: &SourceFile, sender: &Sender, identity: Identity, restart: bool) -> anyhow::Result<Progress> {
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
        output::note(&format!("an interrupted import goes on at line {}", next.line));
    }
    Ok(progress)
}

impl Summary {
    fn of<K: Kind>(file: &SourceFile, dry_run: bool, began: Instant) -> Self {
        Self {
            kind: K::NAME,
            file: file.path().to_owned(),
            dry_run,
            counts: Counts::default(),
            rejected_file: None,
            resumed_at_line: None,
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn checked<K: Kind>(file: &SourceFile, counts: Counts, began: Instant) -> Self {
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

    /// Prints the counts for a person. `done` is the word for what was done.
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
