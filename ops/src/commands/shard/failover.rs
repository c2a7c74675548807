//! `shardctl shard failover`

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::{
    cluster::{
        Description, Layout,
        failover::{self, FailoverPlan, FailoverResult},
        files,
    },
    commands,
    context::Context,
    exit::{self, NotConfirmed},
    output::{self, note},
};

#[derive(clap::Args)]
pub struct ShardFailoverArgs {
    /// The shard whose stand-by becomes the primary
    id: String,
    /// Print what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Promote an asynchronous stand-by although it lacks, or may lack, acknowledged payments, and give up the missing payments
    #[arg(long)]
    accept_loss: bool,
}

/// Promotes the stand-by of a cluster on this machine, and rebuilds the former primary as its stand-by.
pub async fn run(args: ShardFailoverArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let layout = Layout::find(&context.data_dir)?;
    let _lock = commands::alone(&layout).await?;
    let description = Description::load(&layout)?.context("the cluster's description is missing")?;
    let shard = description.shard(&args.id).with_context(|| format!("there is no shard {}", args.id))?;
    ensure!(files::lock_holder(&layout.supervisor_lock())?.is_some(), "the cluster is down: run `shardctl up` first");
    let plan = failover::plan(&layout, &description, shard, args.accept_loss).await?;
    let sentence = sentence(&args.id, &plan);
    let fields = json!({
        "shard": args.id,
        "primary_port": plan.new_primary.port,
        "standby_port": plan.former.port,
        "bytes_behind": plan.bytes_behind,
    });
    if args.dry_run {
        output::would(context.json, &sentence, fields)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !output::is_confirmed(&format!("{sentence}."))? {
        return Err(NotConfirmed.into());
    }
    let done = failover::carry_out(&layout, &args.id, &plan, args.accept_loss).await?;
    show(&args.id, &plan, &done, fields, context)?;
    Ok(if done.status.is_ready() { ExitCode::SUCCESS } else { exit::failure() })
}

fn sentence(id: &str, plan: &FailoverPlan) -> String {
    let (port, former) = (plan.new_primary.port, plan.former.port);
    if plan.is_begun {
        return format!("the failover of shard {id} to the server at port {port} was interrupted and would continue");
    }
    let behind = match plan.bytes_behind {
        Some(0) => "has everything".to_owned(),
        Some(bytes) if plan.primary_answers => {
            format!("is {bytes} bytes behind, and receives the rest while the primary shuts down")
        }
        Some(bytes) => format!("lacks {bytes} bytes of the primary's log, because the primary does not run"),
        None => "may lack the last commits, because the primary does not answer".to_owned(),
    };
    format!(
        "the stand-by of shard {id} at port {port} would become its primary, and the primary at port {former} would be rebuilt as a stand-by. The \
         stand-by {behind}"
    )
}

fn show(
    id: &str,
    plan: &FailoverPlan,
    done: &FailoverResult,
    mut fields: serde_json::Value,
    context: &Context,
) -> anyhow::Result<()> {
    let (ready, cause) = (done.status.is_ready(), &done.status.cause);
    if context.json {
        fields["ready"] = ready.into();
        fields["cause"] = cause.as_deref().into();
        fields["former_folder"] = done.aside.as_ref().map(|aside| aside.display().to_string()).into();
        output::json(&fields)?;
    } else {
        let (port, former) = (plan.new_primary.port, plan.former.port);
        output::data(&format!("shard {id}: the primary is at port {port}, its stand-by at port {former}"))?;
    }
    if let Some(aside) = &done.aside {
        note(&format!(
            "the files of the former primary are in {}: delete them when `shardctl verify` finds no violation",
            aside.display()
        ));
    }
    if !ready {
        note(&format!(
            "the node does not serve yet: {}. If acknowledged payments are missing, `shardctl down` and `shardctl up --accept-loss {id}` give them \
             up, and `shardctl reconcile` lists them",
            cause.as_deref().unwrap_or("it does not answer")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::description::ServerPlace;

    #[test]
    fn the_plan_says_what_may_be_lost() {
        let server = |port| ServerPlace { name: format!("postgres-{port}"), folder: "/pg".into(), port };
        let of = |bytes_behind, is_begun, primary_answers| {
            let (new_primary, former) = (server(5610), server(5510));
            sentence("s0", &FailoverPlan { new_primary, former, is_begun, primary_answers, bytes_behind })
        };
        let said = |bytes_behind, is_begun| of(bytes_behind, is_begun, true);
        assert!(
            said(Some(0), false)
                .ends_with("at port 5510 would be rebuilt as a stand-by. The stand-by has everything")
        );
        assert!(said(Some(7), false).contains("is 7 bytes behind"));
        assert!(of(Some(7), false, false).contains("lacks 7 bytes"));
        assert!(said(None, false).contains("may lack the last commits"));
        assert!(said(None, true).contains("would continue"));
    }
}
