//! `shardctl bench statements`: how long a statement takes of an account with a long history, beside one with a short one.
//!
//! [`history`] writes the histories through the API, [`question`] is what is asked of them, [`report`] holds the answers
//! against the bar.

mod history;
mod question;
mod report;

use std::path::Path;

use anyhow::Context;
use tokio::time::Instant;

use self::{
    history::{History, LONG, SHORT, SHORT_ENTRIES},
    question::{QUESTIONS, Question},
};
use super::{
    connection::{Address, Connection},
    own_cluster::OwnCluster,
    random::Random,
    request::account_id,
    tally::Tally,
};
use crate::{progress, verify};

pub use report::{Plan, Report, Row};

/// Rounds that do not count: connections, caches, plans.
const WARM_UP: usize = 50;

/// Measures in a cluster below `folder` that is gone afterwards.
pub async fn run(plan: Plan, folder: &Path) -> anyhow::Result<Report> {
    let cluster = OwnCluster::start(folder.join("statements"), 1, 1)?;
    let router = cluster.description.routers.first().context("a cluster without routers")?;
    let router = Address::parse(&router.url())?;
    history::write(&router, plan.entries, plan.seed).await?;
    let mut connection = Connection::open(&router).await?;
    let accounts = [
        History::read(&mut connection, account_id(LONG), plan.entries).await?,
        History::read(&mut connection, account_id(SHORT), SHORT_ENTRIES).await?,
    ];
    let rows = ask(&mut connection, plan, &accounts).await?;
    let clean = verify::verify(&cluster.databases()?).await?.is_clean();
    Ok(Report::new(plan, rows, clean))
}

/// Every question of every account in turn, so that whatever disturbs the machine disturbs all of them.
async fn ask(connection: &mut Connection, plan: Plan, accounts: &[History]) -> anyhow::Result<Vec<Row>> {
    let mut random = Random::new(plan.seed, u64::MAX);
    let mut asked: Vec<(&'static Question, &History, Tally)> = Vec::new();
    for question in &QUESTIONS {
        for account in accounts {
            asked.push((question, account, Tally::new()?));
        }
    }
    progress::counted("statements", plan.requests, async |bar| {
        for round in 0..WARM_UP + plan.requests {
            for (question, account, tally) in &mut asked {
                let path = question.path(account, &mut random);
                let sent = Instant::now();
                let answer = connection.get(&path).await?;
                let latency = sent.elapsed();
                question.check(answer.status, answer.body).with_context(|| path.clone())?;
                if round >= WARM_UP {
                    tally.record(latency);
                }
            }
            bar.inc(1);
        }
        anyhow::Ok(())
    })
    .await?;
    Ok(asked.into_iter().map(|(question, account, tally)| Row::new(question, account.entries, &tally)).collect())
}
