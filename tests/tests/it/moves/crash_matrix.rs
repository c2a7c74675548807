//! The crash matrix of moves. It kills each victim, once or twice, at every durable step of a move. The nodes list the steps. A step that
//! no node reaches fails the test.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    seed::{Random, Seed},
    wait::until_every,
    workload::{Load, Mix},
};
use tokio::{process::Child, task::JoinSet};
use wire::MoveWishes;

use super::{
    HALF,
    support::{Movement, assert_nothing_is_left},
};
use crate::failpoints::{CellsRun, Failpoints, Interruption, Step, durable_steps, run_cells};

/// A small load, because the cells test moves. Its orders are audited at the end.
const MIX: Mix = Mix {
    single_clients: 2,
    batch_clients: 0,
    two_phase_clients: 1,
    batch_items: 1,
    gives_up: true,
    request_timeout: Duration::from_secs(10),
};
/// The number of cells in the sample that `make test` runs.
const SAMPLE: usize = 10;
/// The number of cells that run on one cluster, one after another. Their history is audited together.
const CELLS_PER_CLUSTER: usize = 24;
const LOOK: Duration = Duration::from_millis(20);
/// The time within which a move must end after a process died.
const ENDED_WITHIN: Duration = Duration::from_secs(90);

/// The process that dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    SourceNode,
    TargetNode,
    SourceDatabase,
    TargetDatabase,
    /// `shardctl move apply`.
    Operator,
    Router,
}

impl Victim {
    const ALL: [Self; 6] = [
        Self::SourceNode,
        Self::TargetNode,
        Self::SourceDatabase,
        Self::TargetDatabase,
        Self::Operator,
        Self::Router,
    ];

    /// The process of the cluster, if the slots move between these shards. `None` for the operator's command.
    fn member(self, source: usize, target: usize) -> Option<Member> {
        match self {
            Self::SourceNode => Some(Member::Node(source)),
            Self::TargetNode => Some(Member::Node(target)),
            Self::SourceDatabase => Some(Member::Postgres(source)),
            Self::TargetDatabase => Some(Member::Postgres(target)),
            Self::Router => Some(Member::Router(0)),
            Self::Operator => None,
        }
    }
}

/// The way in which a cell reaches its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Move,
    Abort,
    Reverse,
}

#[derive(Debug, Clone)]
struct MoveCell {
    scenario: Scenario,
    /// The point as the node names it, with `.before` or `.after`.
    point: String,
    victim: Victim,
    deaths: usize,
}

impl fmt::Display for MoveCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, victim, deaths, .. } = self;
        write!(f, "{point}: {victim:?} dies {}", if *deaths == 1 { "once" } else { "twice" })
    }
}

/// The durable steps of moves, with the scenario in which a node makes each. The steps of the lane and of the fold belong to
/// `durable_steps`.
async fn steps_of_moves() -> anyhow::Result<Vec<(String, Scenario)>> {
    let mut steps = Vec::new();
    for Step { name, occasion } in durable_steps().await? {
        let scenario = match occasion.as_str() {
            "move" => Scenario::Move,
            "abort" => Scenario::Abort,
            "reverse" => Scenario::Reverse,
            "lane" | "fold" => continue,
            other => bail!("step {name} has the unknown occasion {other}"),
        };
        steps.push((name, scenario));
    }
    Ok(steps)
}

/// Every cell of the matrix.
fn matrix(steps: &[(String, Scenario)]) -> Vec<MoveCell> {
    let mut cells = Vec::new();
    for (step, scenario) in steps {
        for edge in ["before", "after"] {
            for victim in Victim::ALL {
                // `shardctl` only starts moves here. The test itself sends the abort and the reversal.
                if victim == Victim::Operator && *scenario != Scenario::Move {
                    continue;
                }
                for deaths in [1, 2] {
                    cells.push(MoveCell { scenario: *scenario, point: format!("{step}.{edge}"), victim, deaths });
                }
            }
        }
    }
    cells
}

/// A cluster under load, between whose two shards the cells move slots.
struct MovingCluster {
    cluster: Cluster,
    failpoints: Failpoints,
    /// The index of the shard that owns the slots.
    owner: usize,
}

/// The process or the task that starts the move of a cell. Dropping it aborts the task.
#[derive(Default)]
struct Starter {
    operator: Option<Child>,
    _task: JoinSet<()>,
}

impl MovingCluster {
    async fn run(&mut self, cell: &MoveCell, random: &mut Random) -> anyhow::Result<&'static str> {
        let (source, target) = (self.owner, 1 - self.owner);
        let (from, to) = (format!("s{source}"), format!("s{target}"));
        // A reversal moves the slots back to their former shard.
        let (member_source, member_target) = match cell.scenario {
            Scenario::Reverse => (target, source),
            Scenario::Move | Scenario::Abort => (source, target),
        };
        let (movement, starter) = match cell.scenario {
            Scenario::Move => {
                self.arm(cell)?;
                self.start(cell, &from, &to, random)?
            }
            Scenario::Abort => {
                let held = MoveWishes { hold_cutover: Some(true), ..Default::default() };
                let movement = Movement::start_as(&self.cluster, &from, &to, HALF, held, None).await?;
                movement.until("catching up").await?;
                self.arm(cell)?;
                movement.wish(MoveWishes { abort: Some(true), ..Default::default() }).await?;
                (movement, Starter::default())
            }
            Scenario::Reverse => {
                let there = Movement::start(&self.cluster, &from, &to, HALF).await?;
                there.until("taken").await?;
                self.arm(cell)?;
                let finishing = MoveWishes { finish: Some(true), ..Default::default() };
                let back = Movement::named(&self.cluster, &to, &from, HALF, random.uuid())?;
                let started = back.clone();
                let mut task = JoinSet::new();
                task.spawn(async move {
                    // The answer may be lost, because the node is killed.
                    let _ = started.begin(finishing, Some(there.id)).await;
                });
                (back, Starter { operator: None, _task: task })
            }
        };
        self.failpoints.reached(&cell.point).await?;
        self.die(cell, member_source, member_target, Some(&starter), &cell.point).await?;
        if cell.deaths == 2 {
            self.die_again(cell, member_source, member_target, &movement).await?;
        }
        drop(starter);
        let ended = self.ended(&movement).await?;
        // After a reversal without effect, the first move is still to be finished.
        if cell.scenario == Scenario::Reverse {
            self.finish_what_is_open(&[&from, &to]).await?;
        }
        self.owner = self.owner_now().await?;
        let other = if self.owner == 0 { "s1" } else { "s0" };
        assert_nothing_is_left(&self.cluster, other, HALF).await?;
        self.cluster.verify().await?;
        Ok(ended)
    }

    fn arm(&self, cell: &MoveCell) -> anyhow::Result<()> {
        self.failpoints.arm(&cell.point, Interruption::Stop)
    }

    /// Starts a move in the way that the cell needs: by an operator's command, which may die, or by a call.
    fn start(
        &self,
        cell: &MoveCell,
        from: &str,
        to: &str,
        random: &mut Random,
    ) -> anyhow::Result<(Movement, Starter)> {
        let movement = Movement::named(&self.cluster, from, to, HALF, random.uuid())?;
        if cell.victim == Victim::Operator {
            let plan = self.failpoints.file("plan.toml");
            std::fs::write(&plan, movement.as_plan(&self.cluster)?)?;
            let plan = plan.to_str().context("the path is not UTF-8")?;
            let child = self.cluster.spawn_shardctl(&["move", "apply", plan, "--finish"])?;
            return Ok((movement, Starter { operator: Some(child), _task: JoinSet::new() }));
        }
        let started = movement.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            // The answer may be lost, because a node is killed.
            if let Err(error) = started.begin(MoveWishes { finish: Some(true), ..Default::default() }, None).await {
                eprintln!("move {} was not started: {error:#}", started.id);
            }
        });
        Ok((movement, Starter { operator: None, _task: task }))
    }

    /// Kills the victim while a node is stopped at the point, and then lets the node go on.
    async fn die(
        &mut self,
        cell: &MoveCell,
        source: usize,
        target: usize,
        starter: Option<&Starter>,
        point: &str,
    ) -> anyhow::Result<()> {
        let killed = match cell.victim.member(source, target) {
            Some(member) => vec![(member, self.cluster.kill(member).await?)],
            None => {
                if let Some(child) = starter.and_then(|starter| starter.operator.as_ref())
                    && let Some(pid) = child.id()
                    && let Some(process) = testkit::process::Process::of_child(pid.try_into()?)
                {
                    process.kill().await?;
                }
                Vec::new()
            }
        };
        self.failpoints.disarm(point);
        self.cluster.wait_until_ready(&format!("{cell}: everything is back"), &killed).await
    }

    /// Kills the victim a second time: when a driver joins the source again, when the move is over, or after five seconds.
    async fn die_again(
        &mut self,
        cell: &MoveCell,
        source: usize,
        target: usize,
        movement: &Movement,
    ) -> anyhow::Result<()> {
        const AGAIN: &str = "join.after";
        self.failpoints.arm(AGAIN, Interruption::Stop)?;
        let begun = Instant::now();
        while !self.failpoints.is_reached(AGAIN) && begun.elapsed() < Duration::from_secs(5) {
            if movement.status().await.is_ok_and(|status| is_over(&status.phase)) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.die(cell, source, target, None, AGAIN).await
    }

    /// Waits until the move is over, and gives the orders that an operator would give.
    async fn ended(&self, movement: &Movement) -> anyhow::Result<&'static str> {
        let mut unknown_since: Option<Instant> = None;
        let finishing = || MoveWishes { finish: Some(true), ..Default::default() };
        let ended = until_every(LOOK, "the move is over", ENDED_WITHIN, async || {
            let Ok(list) = movement.list().await else { return Ok(None) };
            let Some(status) = list else {
                // The move was never recorded, or is about to be recorded.
                let since = *unknown_since.get_or_insert_with(Instant::now);
                return Ok((since.elapsed() > Duration::from_secs(1)).then_some("as before"));
            };
            unknown_since = None;
            Ok(match status.phase.as_str() {
                "finished" => Some("completed"),
                "aborted" => Some("as before"),
                "taken" => {
                    let _ = movement.wish(finishing()).await;
                    None
                }
                _ => None,
            })
        });
        ended.await.with_context(|| format!("move {}", movement.id))
    }

    async fn finish_what_is_open(&self, shards: &[&str]) -> anyhow::Result<()> {
        for shard in shards {
            for id in Movement::open_at(&self.cluster, shard).await? {
                let open = Movement::known(&self.cluster, shard, id)?;
                open.wish(MoveWishes { finish: Some(true), ..Default::default() }).await?;
                open.until("finished").await?;
            }
        }
        Ok(())
    }

    /// The shard that owns the slots.
    async fn owner_now(&self) -> anyhow::Result<usize> {
        let mut owners = Vec::new();
        for (index, shard) in self.cluster.status().shards.iter().enumerate() {
            let query = format!(
                "SELECT count(*) FROM slot_ownership WHERE state = 1 AND slot BETWEEN {} AND {}",
                HALF.0, HALF.1
            );
            let owned = testkit::database::number(&shard.dsn, &query).await?;
            ensure!(owned == 0 || owned == i64::from(HALF.1 - HALF.0 + 1), "{} owns {owned} of the slots", shard.id);
            if owned > 0 {
                owners.push(index);
            }
        }
        ensure!(owners.len() == 1, "the slots have the owners {owners:?}");
        Ok(owners[0])
    }
}

fn is_over(phase: &str) -> bool {
    matches!(phase, "finished" | "aborted" | "reversed")
}

/// The number of cells for each way to end.
type Ends = BTreeMap<&'static str, usize>;

/// Runs cells one after another on one cluster under a load, and audits the answers that the clients got. Counts the cells that are `done`.
async fn run_batch(
    cells: &[MoveCell],
    seed: &Seed,
    random: &mut Random,
    ends: &mut Ends,
    done: &mut usize,
) -> anyhow::Result<()> {
    let failpoints = Failpoints::create()?;
    let cluster = failpoints.start_cluster(2, 1).await?;
    let load = Load::start(&cluster, 12, random, seed, MIX).await?;
    let mut moving = MovingCluster { cluster, failpoints, owner: 0 };
    for cell in cells {
        let begun = Instant::now();
        let ended = moving.run(cell, random).await.with_context(|| format!("cell {cell}"))?;
        eprintln!("cell {cell}: {ended}, {:.1?}", begun.elapsed());
        *ends.entry(ended).or_default() += 1;
        *done += 1;
    }
    let history = load.finish().await?;
    audit(&moving.cluster, &history).await?;
    moving.cluster.finish().await
}

/// `make test` runs a sample that the seed chooses. `CELLS=all` runs every cell, and `CELLS=release` those whose point begins with that
/// word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_move_is_cut_short_it_completes_or_leaves_everything_as_before() -> anyhow::Result<()> {
    let seed = Seed::announce("the crash matrix of moves");
    let mut random = seed.random();
    let mut cells = matrix(&steps_of_moves().await?);
    let all = cells.len();
    match std::env::var("CELLS").as_deref() {
        Ok("all") => {}
        Ok(prefix) => cells.retain(|cell| cell.point.starts_with(prefix)),
        Err(_) => {
            random.shuffle(&mut cells);
            cells.truncate(SAMPLE);
        }
    }
    ensure!(!cells.is_empty(), "CELLS names no cell");
    eprintln!("{} of {all} cells", cells.len());
    let mut ends = Ends::new();
    let CellsRun { run, failures } = run_cells(&cells, CELLS_PER_CLUSTER, async |batch, done| {
        run_batch(batch, &seed, &mut random, &mut ends, done).await
    })
    .await;
    eprintln!("{run} cells: {ends:?}, {} failures", failures.len());
    expect!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
