//! The accounts of a run.

use super::{PATIENCE, open_account};
use crate::{
    client::{Client, Verdict},
    cluster::Cluster,
    history::{Attempt, Order, Record},
    seed::Random,
    wait::until,
};

/// The money with which an ordinary account begins, in minor units. It is so little that some transfers are refused.
const FUNDS: i64 = 5_000;
const LARGEST_AMOUNT: usize = 2_500;

/// The accounts of a run. Every shard has a treasury without limit, a hot account, and ordinary accounts that must not go below zero.
#[derive(Debug)]
pub struct Accounts {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    treasury: String,
    hot: String,
    ordinary: Vec<String>,
}

impl Accounts {
    /// Opens and funds the accounts. Returns the payments that fund them as well.
    pub async fn open(
        cluster: &Cluster,
        per_shard: usize,
        random: &mut Random,
    ) -> anyhow::Result<(Self, Vec<Record>)> {
        let (client, placement) = (cluster.client(), cluster.placement()?);
        let mut shards = Vec::new();
        for shard in &cluster.status().shards {
            let ordinary = (0..per_shard).map(|n| placement.account_on(&shard.id, "user", n));
            shards.push(Shard {
                treasury: placement.account_on(&shard.id, "treasury", 0)?,
                hot: placement.account_on(&shard.id, "hot", 0)?,
                ordinary: ordinary.collect::<anyhow::Result<_>>()?,
            });
        }
        let mut opening = Vec::new();
        for shard in &shards {
            open_account(&client, &shard.treasury, "unlimited").await?;
            open_account(&client, &shard.hot, "unlimited").await?;
            for id in &shard.ordinary {
                open_account(&client, id, "0.00").await?;
                let (debit, credit) = (shard.treasury.clone(), id.clone());
                let order = Order { id: random.uuid(), debit, credit, amount: FUNDS };
                opening.push(fund(&client, order).await?);
            }
        }
        Ok((Self { shards }, opening))
    }

    /// A random order between two of the accounts.
    pub fn order(&self, random: &mut Random) -> Order {
        let from = random.below(self.shards.len());
        // Half of the orders draw the payee's shard at random, so that many transfers cross shards.
        let to = if random.percent(50) { from } else { random.below(self.shards.len()) };
        let (debit, credit) = loop {
            let (debit, credit) = (self.shards[from].pick(random), self.shards[to].pick(random));
            if debit != credit {
                break (debit.to_owned(), credit.to_owned());
            }
        };
        let amount = i64::try_from(1 + random.below(LARGEST_AMOUNT)).unwrap_or(1);
        Order { id: random.uuid(), debit, credit, amount }
    }

    /// Whether an order is between two shards.
    pub fn crosses(&self, order: &Order) -> bool {
        self.shards.iter().any(|shard| shard.has(&order.debit) != shard.has(&order.credit))
    }
}

impl Shard {
    fn pick(&self, random: &mut Random) -> &str {
        match random.below(100) {
            0..20 => &self.hot,
            20..25 => &self.treasury,
            _ => random.choose::<String>(&self.ordinary),
        }
    }

    fn has(&self, id: &str) -> bool {
        self.treasury == id || self.hot == id || self.ordinary.iter().any(|ordinary| ordinary == id)
    }
}

async fn fund(client: &Client, order: Order) -> anyhow::Result<Record> {
    let body = order.to_json();
    until(&format!("{} has its funds", order.credit), PATIENCE, async || {
        let answer = client.post(client.next_router(), "/v1/transfers", &body).await?;
        Ok((answer["status"] == "posted").then_some(()))
    })
    .await?;
    let mut record = Record::new(order);
    let at = std::time::Duration::ZERO;
    record.attempts.push(Attempt { invoked: at, returned: at, router: 0, verdict: Verdict::Posted });
    Ok(record)
}
