//! Starts and watches moves, as a client of the nodes.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use shard_map::ShardMap;
use testkit::{cluster::Cluster, database, wait::until};
use tonic::transport::Channel;
use uuid::Uuid;
use wire::slot_moves_client::SlotMovesClient;

const PATIENCE: Duration = Duration::from_secs(60);

/// A move, as the receiving shard shows it.
#[derive(Debug, Clone)]
pub struct Movement {
    pub id: Uuid,
    node: String,
    from: String,
    to: String,
    slots: (u32, u32),
}

impl Movement {
    pub async fn start(cluster: &Cluster, from: &str, to: &str, slots: (u32, u32)) -> anyhow::Result<Self> {
        Self::start_as(cluster, from, to, slots, wire::MoveWishes::default(), None).await
    }

    pub async fn start_as(
        cluster: &Cluster,
        from: &str,
        to: &str,
        slots: (u32, u32),
        wishes: wire::MoveWishes,
        reverses: Option<Uuid>,
    ) -> anyhow::Result<Self> {
        let movement = Self::named(cluster, from, to, slots, Uuid::now_v7())?;
        movement.begin(wishes, reverses).await?;
        Ok(movement)
    }

    /// A move that is not started.
    pub fn named(cluster: &Cluster, from: &str, to: &str, slots: (u32, u32), id: Uuid) -> anyhow::Result<Self> {
        Ok(Self { id, node: node_of(cluster, to)?, from: from.to_owned(), to: to.to_owned(), slots })
    }

    /// A move that a shard has received.
    pub fn known(cluster: &Cluster, to: &str, id: Uuid) -> anyhow::Result<Self> {
        Self::named(cluster, "", to, (0, 0), id)
    }

    /// The moves to a shard that has taken their slots and has not finished them.
    pub async fn open_at(cluster: &Cluster, shard: &str) -> anyhow::Result<Vec<Uuid>> {
        let list = SlotMovesClient::connect(node_of(cluster, shard)?).await?.list(wire::ListMovesRequest {}).await?;
        let taken = list.into_inner().moves.into_iter().filter(|it| it.is_target && it.phase == "taken");
        taken.map(|it| Ok(Uuid::from_slice(&it.r#move)?)).collect()
    }

    pub async fn begin(&self, wishes: wire::MoveWishes, reverses: Option<Uuid>) -> anyhow::Result<()> {
        let (first, last) = self.slots;
        let request = wire::StartMoveRequest {
            r#move: self.id.as_bytes().to_vec().into(),
            source: self.from.clone(),
            slots: vec![wire::SlotRange { first, last }],
            reverses: reverses.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default(),
            wishes: Some(wishes),
        };
        self.client().await?.start(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        Ok(())
    }

    /// A plan of this move, as `shardctl move plan` would write it.
    pub fn as_plan(&self, cluster: &Cluster) -> anyhow::Result<String> {
        let map = ShardMap::parse(&std::fs::read_to_string(cluster.shard_map_path())?)?;
        Ok(format!(
            "cluster = \"{}\"\nmap_version = {}\n[[move]]\nid = \"{}\"\nfrom = \"{}\"\nto = \"{}\"\n\
             slots = [\"{}-{}\"]\naccounts = 0\nbytes = 0\n",
            map.cluster, map.version, self.id, self.from, self.to, self.slots.0, self.slots.1
        ))
    }

    async fn client(&self) -> anyhow::Result<SlotMovesClient<Channel>> {
        Ok(SlotMovesClient::connect(self.node.clone()).await?)
    }

    /// The status of the move, if the shard knows the move.
    pub async fn list(&self) -> anyhow::Result<Option<wire::MoveStatus>> {
        let list = self.client().await?.list(wire::ListMovesRequest {}).await?.into_inner();
        Ok(list.moves.into_iter().find(|it| it.r#move.as_ref() == self.id.as_bytes()))
    }

    pub async fn status(&self) -> anyhow::Result<wire::MoveStatus> {
        self.list().await?.with_context(|| format!("there is no move {}", self.id))
    }

    pub async fn progress(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.status().await?.progress)?)
    }

    pub async fn wish(&self, wishes: wire::MoveWishes) -> anyhow::Result<()> {
        let request = wire::ControlMoveRequest { r#move: self.id.as_bytes().to_vec().into(), wishes: Some(wishes) };
        self.client().await?.control(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        Ok(())
    }

    /// The phase of the move, or the error of the node.
    pub async fn phase(&self) -> String {
        self.status().await.map_or_else(|error| error.to_string(), |status| status.phase)
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

/// Checks that a shard that does not own these slots has no rows of them.
pub async fn assert_nothing_is_left(cluster: &Cluster, shard: &str, (first, last): (u32, u32)) -> anyhow::Result<()> {
    let shards = &cluster.status().shards;
    let shard = shards.iter().find(|it| it.id == shard).with_context(|| format!("no shard {shard}"))?;
    let between = format!("BETWEEN {first} AND {last}");
    let owned = "SELECT slot FROM slot_ownership WHERE state = 1";
    for (what, query) in [
        ("accounts", format!("SELECT count(*) FROM account WHERE slot {between}")),
        ("holds", format!("SELECT count(*) FROM hold WHERE payer_slot {between}")),
        (
            "sagas",
            "SELECT count(*) FROM saga s LEFT JOIN journal j USING (position) WHERE j.position IS NULL".to_owned(),
        ),
        (
            "waypoints",
            "SELECT count(*) FROM waypoint w WHERE NOT EXISTS (SELECT FROM account a WHERE a.id = w.account)"
                .to_owned(),
        ),
        (
            "bookings",
            format!(
                "SELECT count(*) FROM journal WHERE (payer_slot {between} OR payee_slot {between}) \
                 AND NOT (payer_slot IN ({owned}) AND role <> 3) \
                 AND NOT (payee_slot IN ({owned}) AND (role = 3 OR payee_version IS NOT NULL))"
            ),
        ),
        (
            "owned or incoming slots",
            format!("SELECT count(*) FROM slot_ownership WHERE slot {between} AND state <> 2"),
        ),
    ] {
        let left = database::number(&shard.dsn, &query).await?;
        anyhow::ensure!(left == 0, "shard {}: {left} {what} are left", shard.id);
    }
    Ok(())
}
