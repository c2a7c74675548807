//! `shardctl import accounts FILE`

use std::process::ExitCode;

use tokio::time::Instant;

use super::{Options, Summary};
use crate::{
    commands::Context,
    import::{Kind, accounts::Accounts, progress_file::Identity, run, survey::SourceFile},
    output,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
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
        let progress = super::progress(&file, &sender, identity, restart).await?;
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
