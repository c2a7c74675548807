//! `shardctl postgres ensure` prints the folder of the server's programs, for scripts.

use std::process::ExitCode;

use super::{Context, up::PostgresArgs};
use crate::{
    cluster::{
        Layout,
        postgres::{
            home::Home,
            install::{self, Wanted},
            user,
        },
    },
    output,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Find the server, or install it if there is none
    Ensure(PostgresArgs),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let Command::Ensure(args) = command;
    let data_dir = context.data_dir.clone();
    let server = tokio::task::spawn_blocking(move || {
        let present =
            Wanted { bin_dir: args.pg_bin.as_deref(), major: None, source: args.pg_source, home: &data_dir };
        if let Some(server) = present.present() {
            return Ok(server);
        }
        // Only a server that is installed here needs the folder.
        let layout = Layout::create(&data_dir)?;
        let home = Home::choose(&layout, user::service_user()?.as_ref())?;
        home.create(&layout)?;
        install::ensure_server(&Wanted { home: &home.folder(&layout), ..present })
    })
    .await??;
    output::data(&server.bin_dir.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}
