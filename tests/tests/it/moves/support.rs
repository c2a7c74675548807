//! Moves as a client of the nodes starts and watches them.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use shard_map::ShardMap;
use testkit::{cluster::Cluster, database, wait::until};
use tonic::transport::Channel;
use uuid::Uuid;
use wire::slot_moves_client::SlotMovesClient;

const PATIENCE: Duration = Duration::from_secs(60);

/// A move, seen at the shard that receives.
pub struct Movement {
    pub id: Uuid,
    node: String,
}

impl Movement {
    pub async fn start(cluster: &Cluster, from: &str, to: &str, slots: &[(u32, u32)]) -> anyhow::Result<Self> {
        Self::start_as(cluster, from, to, slots, wire::MoveWishes::default(), None).await
    }

    pub async fn start_as(
        cluster: &Cluster,
        from: &str,
        to: &str,
        slots: &[(u32, u32)],
        wishes: wire::MoveWishes,
        reverses: Option<Uuid>,
    ) -> anyhow::Result<Self> {
        let movement = Self { id: Uuid::now_v7(), node: node_of(cluster, to)? };
        let slots = slots.iter().map(|(first, last)| wire::SlotRange { first: *first, last: *last }).collect();
        let request = wire::StartMoveRequest {
            r#move: movement.id.as_bytes().to_vec().into(),
            source: from.to_owned(),
            slots,
            reverses: reverses.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default(),
            wishes: Some(wishes),
        };
        movement.client().await?.start(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        Ok(movement)
    }

    async fn client(&self) -> anyhow::Result<SlotMovesClient<Channel>> {
        Ok(SlotMovesClient::connect(self.node.clone()).await?)
    }

    pub async fn status(&self) -> anyhow::Result<wire::MoveStatus> {
        let list = self.client().await?.list(wire::ListMovesRequest {}).await?.into_inner();
        let own = list.moves.into_iter().find(|it| it.r#move.as_ref() == self.id.as_bytes());
        own.with_context(|| format!("there is no move {}", self.id))
    }

    pub async fn progress(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.status().await?.progress)?)
    }

    pub async fn wish(&self, wishes: wire::MoveWishes) -> anyhow::Result<()> {
        let request = wire::ControlMoveRequest { r#move: self.id.as_bytes().to_vec().into(), wishes: Some(wishes) };
        self.client().await?.control(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        Ok(())
    }

    /// Waits for a phase.
    pub async fn until(&self, phase: &str) -> anyhow::Result<()> {
        let mut last = String::new();
        let what = format!("the move is {phase}");
        let reached = until(&what, PATIENCE, async || {
            let status = self.status().await?;
            if last != status.phase {
                eprintln!("move {}: {}", self.id, status.phase);
                last.clone_from(&status.phase);
            }
            Ok((status.phase == phase).then_some(()))
        });
        if let Err(error) = reached.await {
            bail!("{error:#}: {:?}", self.status().await?);
        }
        Ok(())
    }
}

fn node_of(cluster: &Cluster, shard: &str) -> anyhow::Result<String> {
    let map = ShardMap::parse(&std::fs::read_to_string(cluster.shard_map_path())?)?;
    let shard = map.shards.iter().find(|it| it.id == shard).with_context(|| format!("no shard {shard}"))?;
    shard.nodes.first().cloned().context("a shard without nodes")
}

/// Waits until a query at a shard's database returns a number.
pub async fn wait_for(cluster: &Cluster, shard: &str, query: &str, expected: i64) -> anyhow::Result<()> {
    let shards = &cluster.status().shards;
    let shard = shards.iter().find(|it| it.id == shard).with_context(|| format!("no shard {shard}"))?;
    until(&format!("{query} is {expected}"), PATIENCE, async || {
        Ok((database::number(&shard.dsn, query).await? == expected).then_some(()))
    })
    .await
}
