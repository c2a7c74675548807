//! The faults: how a test causes each of them, and what proves that the fault had an effect.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use testkit::{
    cluster::{Cluster, Member},
    database,
    seed::Random,
    wait::{until, until_every},
};

use crate::moves::support::Movement;

const PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two looks at a move.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillNode,
    KillDatabase,
    KillRouter,
    FreezeNode,
    FreezeRouter,
    /// Ends every session of the services on a database, in the middle of their work.
    EndSessions,
    /// The database refuses writes for a while.
    ReadOnly,
    /// A session holds the fence, as the one of a frozen node's lane does.
    HoldFence,
    /// The transaction of another client keeps a snapshot open, as `pg_dump` does.
    HoldSnapshot,
    /// Slots begin to move to another shard. The move goes on during the faults that follow.
    MoveSlots,
}

impl Fault {
    pub const ALL: [Self; 10] = [
        Self::KillNode,
        Self::KillDatabase,
        Self::KillRouter,
        Self::FreezeNode,
        Self::FreezeRouter,
        Self::EndSessions,
        Self::ReadOnly,
        Self::HoldFence,
        Self::HoldSnapshot,
        Self::MoveSlots,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::KillNode => "kill-node",
            Self::KillDatabase => "kill-database",
            Self::KillRouter => "kill-router",
            Self::FreezeNode => "freeze-node",
            Self::FreezeRouter => "freeze-router",
            Self::EndSessions => "end-sessions",
            Self::ReadOnly => "read-only",
            Self::HoldFence => "hold-fence",
            Self::HoldSnapshot => "hold-snapshot",
            Self::MoveSlots => "move-slots",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }
}

/// The slots that move back and forth between the first two shards of a cluster.
#[derive(Default)]
pub struct Moving {
    present: Option<Movement>,
    is_at_second: bool,
    pub finished: usize,
}

impl Moving {
    /// A part of the first shard's slots.
    const SLOTS: (u32, u32) = (0, 1_999);

    /// Begins a move, unless one is under way.
    async fn begin(&mut self, cluster: &Cluster) -> anyhow::Result<String> {
        if self.is_under_way().await? {
            return Ok("one is under way".to_owned());
        }
        let (from, to) = if self.is_at_second { ("s1", "s0") } else { ("s0", "s1") };
        let finish = wire::MoveWishes { finish: Some(true), unthrottled: Some(true), ..Default::default() };
        let movement = Movement::start_as(cluster, from, to, Self::SLOTS, finish, None).await?;
        let said = format!("{from} to {to}");
        self.present = Some(movement);
        Ok(said)
    }

    async fn is_under_way(&mut self) -> anyhow::Result<bool> {
        let Some(movement) = &self.present else { return Ok(false) };
        match movement.phase().await.as_str() {
            "finished" => {
                self.is_at_second = !self.is_at_second;
                self.finished += 1;
                self.present = None;
                Ok(false)
            }
            "aborted" => {
                self.present = None;
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    /// Waits for the end of the move that is under way.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        until_every(LOOK_EVERY, "the move has ended", PATIENCE, async || {
            if self.is_under_way().await?
                && let Some(movement) = &self.present
            {
                bail!("the move is not over: {:?}", movement.status().await?);
            }
            Ok(Some(()))
        })
        .await
    }
}

/// Causes a fault and waits until it is over. Returns the target of the fault and the proof of its effect.
pub async fn bring_about(
    fault: Fault,
    cluster: &mut Cluster,
    moving: &mut Moving,
    random: &mut Random,
) -> anyhow::Result<String> {
    let shard = random.below(cluster.status().shards.len());
    let router = random.below(cluster.status().routers.len());
    match fault {
        Fault::KillNode => kill(cluster, Member::Node(shard)).await,
        Fault::KillDatabase => kill(cluster, Member::Postgres(shard)).await,
        Fault::KillRouter => kill(cluster, Member::Router(router)).await,
        Fault::FreezeNode => freeze(cluster, Member::Node(shard), ms(random, 500, 7_000)).await,
        Fault::FreezeRouter => freeze(cluster, Member::Router(router), ms(random, 500, 5_000)).await,
        Fault::EndSessions => {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'shardledger'";
            let ended = database::number(&database::superuser(cluster, shard)?, end).await?;
            ensure!(ended > 0, "the services had no session on the database of shard {shard}");
            cluster.wait_until_ready("the sessions are back", &[]).await?;
            Ok(format!("{ended} of shard {shard}"))
        }
        Fault::ReadOnly => {
            let server = database::superuser(cluster, shard)?;
            set_read_only(&server, true).await?;
            let dsn = cluster.status().shards[shard].dsn.clone();
            let refuses = "SELECT (current_setting('transaction_read_only') = 'on')::int::int8";
            until("the database refuses writes", PATIENCE, async || {
                Ok((database::number(&dsn, refuses).await? == 1).then_some(()))
            })
            .await?;
            tokio::time::sleep(ms(random, 500, 3_000)).await;
            set_read_only(&server, false).await?;
            cluster.wait_until_ready("the database takes writes again", &[]).await?;
            Ok(format!("shard {shard}"))
        }
        Fault::HoldFence => {
            let dsn = cluster.status().shards[shard].dsn.clone();
            let held = async {
                tokio::time::sleep(ms(random, 1_000, 3_000)).await;
                Ok(())
            };
            let ((), is_ended) = database::while_a_lane_is_frozen_within_copy(&dsn, held).await?;
            cluster.wait_until_ready("the fence is free", &[]).await?;
            Ok(format!("shard {shard}, {}", if is_ended { "ended by the lane" } else { "no lane needed the fence" }))
        }
        Fault::HoldSnapshot => {
            let dsn = cluster.status().shards[shard].dsn.clone();
            let held = ms(random, 1_000, 5_000);
            let seconds = held.as_secs_f64();
            let snapshot = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM account; SELECT pg_sleep({seconds}); COMMIT"
            );
            database::run(&dsn, &snapshot).await?;
            Ok(format!("shard {shard} for {held:.1?}"))
        }
        Fault::MoveSlots => moving.begin(cluster).await,
    }
}

async fn kill(cluster: &mut Cluster, member: Member) -> anyhow::Result<String> {
    cluster.kill_and_recover(&[member]).await?;
    Ok(member.to_string())
}

/// [`testkit::process::Process::freeze`] returns when the kernel says that the process is stopped.
async fn freeze(cluster: &mut Cluster, member: Member, duration: Duration) -> anyhow::Result<String> {
    let process = cluster.process(member).with_context(|| format!("{member} runs"))?;
    process.freeze().await?;
    tokio::time::sleep(duration).await;
    process.thaw()?;
    cluster.wait_until_ready(&format!("{member} is thawed"), &[]).await?;
    Ok(format!("{member} for {duration:.1?}"))
}

async fn set_read_only(server: &str, is_read_only: bool) -> anyhow::Result<()> {
    let set = if is_read_only {
        "ALTER SYSTEM SET default_transaction_read_only = on"
    } else {
        "ALTER SYSTEM RESET default_transaction_read_only"
    };
    for statement in [set, "SELECT pg_reload_conf()"] {
        // The superuser's own session must not be read-only, or it could not reset the setting.
        database::run(server, statement).await?;
    }
    Ok(())
}

fn ms(random: &mut Random, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random.below(usize::try_from(to - from).unwrap_or(1)) as u64)
}
