//! Random batches of local and cross-shard transfers are compared with a ledger of thirty lines that has no shards.

use std::collections::HashMap;

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::seed::{Random, Seed};

use super::{
    api::Call,
    batches::results,
    stage::{Stage, terms},
};

const BATCHES: usize = 6;
/// The number of items of a batch. It is so small that a busy machine executes the batch in seconds: the recovery of any router drives
/// older sagas, and does not keep the order of their batch. No other test writes to the cluster meanwhile for the same reason.
const ITEMS: usize = 400;
/// The number of accounts on each shard, without those that refuse transfers.
const ORDINARY: usize = 12;
/// The money of each account in cents. It is so little that many transfers are refused.
const FUNDS: i64 = 2_000;
const LARGEST: usize = 1_500;

/// A ledger without shards.
#[derive(Default)]
struct Model {
    accounts: HashMap<String, Account>,
}

#[derive(Clone, Copy)]
struct Account {
    dollars: bool,
    frozen: bool,
    closed: bool,
    posted: i64,
}

impl Model {
    fn transfer(&mut self, debit: &str, credit: &str, amount: i64) -> &'static str {
        let (Some(payer), payee) = (self.accounts.get(debit).copied(), self.accounts.get(credit).copied()) else {
            return "failed account_not_found debit";
        };
        match payer {
            Account { dollars: false, .. } => return "rejected asset_mismatch debit",
            Account { closed: true, .. } => return "rejected account_closed debit",
            Account { frozen: true, .. } => return "rejected account_frozen debit",
            Account { posted, .. } if posted < amount => return "rejected insufficient_funds debit",
            Account { .. } => {}
        }
        match payee {
            None => return "rejected account_not_found credit",
            Some(Account { dollars: false, .. }) => return "rejected asset_mismatch credit",
            Some(Account { closed: true, .. }) => return "rejected account_closed credit",
            Some(_) => {}
        }
        for (account, change) in [(debit, -amount), (credit, amount)] {
            self.accounts.entry(account.to_owned()).and_modify(|account| account.posted += change);
        }
        "posted"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_batches_are_answered_as_the_model_answers_them() -> anyhow::Result<()> {
    let mut random = Seed::announce("contract").random();
    let stage = Stage::quiet().await?;
    let mut model = Model::default();
    let mut ids = Vec::new();
    let funds = format!("USD posted={}", decimal(FUNDS));
    for shard in 0..3 {
        for wanted in std::iter::repeat_n(funds.as_str(), ORDINARY).chain(["USD frozen", "USD closed", "EUR", "none"])
        {
            let id = stage.account(shard, wanted).await?;
            let account = Account {
                dollars: wanted.starts_with("USD"),
                frozen: wanted.contains("frozen"),
                closed: wanted.contains("closed"),
                posted: if wanted.contains("posted") { FUNDS } else { 0 },
            };
            if wanted != "none" {
                model.accounts.insert(id.clone(), account);
            }
            ids.push(id);
        }
    }
    for batch in 0..BATCHES {
        let (items, expected) = draw(&mut model, &ids, &mut random);
        let call = Call::post("/v1/transfers:batch", &json!({"transfers": items}));
        let found = results(&stage.api.expect(call, "200").await?.body, &items)?;
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let item = &items[index];
            ensure!(found == expected, "item {index} of batch {batch}: {found}, the model says {expected}: {item}");
        }
        for (id, account) in &model.accounts {
            let there = stage.posted(id).await?;
            ensure!(there == decimal(account.posted), "{id} holds {there} after batch {batch}: {}", account.posted);
        }
    }
    stage.finish().await
}

/// Draws a batch, and returns it with the model's answers.
fn draw(model: &mut Model, ids: &[String], random: &mut Random) -> (Vec<Value>, Vec<&'static str>) {
    (0..ITEMS)
        .map(|_| {
            let debit = random.choose(ids);
            // Half of the transfers stay on one shard. The ids are listed shard by shard.
            let neighbours = ids.chunks(ids.len() / 3).find(|shard| shard.contains(debit)).unwrap_or(ids);
            let near = random.percent(50);
            let credit = loop {
                let credit = random.choose(if near { neighbours } else { ids });
                if credit != debit {
                    break credit;
                }
            };
            let amount = i64::try_from(1 + random.below(LARGEST)).unwrap_or(1);
            let item = terms(random.uuid(), debit, credit, &decimal(amount), "USD");
            (item, model.transfer(debit, credit, amount))
        })
        .unzip()
}

fn decimal(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
