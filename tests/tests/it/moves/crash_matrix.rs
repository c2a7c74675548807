//! Kills each victim, once or twice, at every durable step of a move. The nodes list the steps. A step that no node reaches fails the test.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    seed::{Random, Seed},
    wait::until_every,
    workload::{Accounts, History, Load, Mix},
};
use tokio::{process::Child, task::JoinSet};
use wire::MoveWishes;

use super::{
    HALF,
    support::{Movement, assert_nothing_is_left},
};
use crate::failpoints::{Failpoints, Order, Step, VARIABLE};

/// Few clients, so that cells are about moves. Their orders are audited at the end.
const MIX: Mix = Mix {
    single_clients: 2,
    batch_clients: 0,
    two_phase_clients: 1,
    batch_items: 1,
    gives_up: true,
    request_timeout: Duration::from_secs(10),
};
/// Cells of the sample that `make test` runs.
const SAMPLE: usize = 10;
/// Cells that run on one cluster, one after another. Their history is audited together.
const CELLS_PER_CLUSTER: usize = 24;
/// The run ends after so many failures.
const MOST_FAILURES: usize = 10;
const LOOK: Duration = Duration::from_millis(20);
/// How long a move may take to its end after a death.
const ENDED_WITHIN: Duration = Duration::from_secs(90);

/// What dies.
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

    /// The process, if the slots move between these shards.
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

/// How a cell makes its step come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Move,
    Abort,
    Reverse,
}

#[derive(Debug, Clone)]
struct Cell {
    scenario: Scenario,
    /// As the node writes it, with `.before` or `.after`.
    point: String,
    victim: Victim,
    deaths: usize,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, victim, deaths, .. } = self;
        write!(f, "{point}: {victim:?} dies {}", if *deaths == 1 { "once" } else { "twice" })
    }
}

/// The durable steps of moves, with the scenario in which each comes. The steps of the lane and of the fold are for
/// `durable_steps`.
async fn steps_of_moves(failpoints: &Failpoints) -> anyhow::Result<Vec<(String, Scenario)>> {
    let mut steps = Vec::new();
    for Step { name, occasion } in failpoints.steps().await? {
        let scenario = match occasion.as_str() {
            "move" => Scenario::Move,
            "abort" => Scenario::Abort,
            "reverse" => Scenario::Reverse,
            "lane" | "fold" => continue,
            other => bail!("step {name} comes on the unknown occasion {other}"),
        };
        steps.push((name, scenario));
    }
    Ok(steps)
}

/// Every cell of the matrix.
fn matrix(steps: &[(String, Scenario)]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (step, scenario) in steps {
        for edge in ["before", "after"] {
            for victim in Victim::ALL {
                // `shardctl` only starts moves here. The test itself sends the abort and the reversal.
                if victim == Victim::Operator && *scenario != Scenario::Move {
                    continue;
                }
                for deaths in [1, 2] {
                    cells.push(Cell { scenario: *scenario, point: format!("{step}.{edge}"), victim, deaths });
                }
            }
        }
    }
    cells
}

/// A cluster with a load, and which shard has the slots.
struct Stage {
    cluster: Cluster,
    failpoints: Failpoints,
    owner: usize,
}

/// What starts the move of a cell: a process, or a task that is aborted when dropped.
#[derive(Default)]
struct Starter {
    operator: Option<Child>,
    _task: JoinSet<()>,
}

impl Stage {
    async fn run(&mut self, cell: &Cell, random: &mut Random) -> anyhow::Result<&'static str> {
        let (source, target) = (self.owner, 1 - self.owner);
        let (from, to) = (format!("s{source}"), format!("s{target}"));
        // A reversal goes back to where the slots were.
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
        // A reversal that came to nothing leaves the first move to be finished.
        if cell.scenario == Scenario::Reverse {
            self.finish_what_is_open(&[&from, &to]).await?;
        }
        self.owner = self.owner_now().await?;
        let other = if self.owner == 0 { "s1" } else { "s0" };
        assert_nothing_is_left(&self.cluster, other, HALF).await?;
        self.cluster.verify().await?;
        Ok(ended)
    }

    fn arm(&self, cell: &Cell) -> anyhow::Result<()> {
        self.failpoints.arm(&cell.point, Order::Stop)
    }

    /// Starts a move as the cell wants it: by an operator who may die, or by a call.
    fn start(&self, cell: &Cell, from: &str, to: &str, random: &mut Random) -> anyhow::Result<(Movement, Starter)> {
        let movement = Movement::named(&self.cluster, from, to, HALF, random.uuid())?;
        if cell.victim == Victim::Operator {
            let plan = self.failpoints.file("plan.toml");
            std::fs::write(&plan, movement.as_plan(&self.cluster)?)?;
            let plan = plan.to_str().context("a path that is no text")?;
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

    /// Kills the victim while a node stands at the point, and lets the node go on.
    async fn die(
        &mut self,
        cell: &Cell,
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
        cell: &Cell,
        source: usize,
        target: usize,
        movement: &Movement,
    ) -> anyhow::Result<()> {
        const AGAIN: &str = "join.after";
        self.failpoints.arm(AGAIN, Order::Stop)?;
        let begun = Instant::now();
        while !self.failpoints.is_reached(AGAIN) && begun.elapsed() < Duration::from_secs(5) {
            if movement.status().await.is_ok_and(|status| is_over(&status.phase)) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.die(cell, source, target, None, AGAIN).await
    }

    /// Waits until the move is over, and orders what an operator would order.
    async fn ended(&self, movement: &Movement) -> anyhow::Result<&'static str> {
        let mut unknown_since: Option<Instant> = None;
        let finishing = || MoveWishes { finish: Some(true), ..Default::default() };
        let ended = until_every(LOOK, "the move is over", ENDED_WITHIN, async || {
            let Ok(list) = movement.list().await else { return Ok(None) };
            let Some(status) = list else {
                // It was never recorded, or is about to be.
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

/// How many cells ended in which way.
type Ends = BTreeMap<&'static str, usize>;

/// Runs cells one after another on one cluster under a load, and audits what its clients were told. Counts the cells that are `done`.
async fn run_batch(
    cells: &[Cell],
    seed: &Seed,
    random: &mut Random,
    ends: &mut Ends,
    done: &mut usize,
) -> anyhow::Result<()> {
    let failpoints = Failpoints::create()?;
    let cluster = Cluster::start_with(&[(VARIABLE, &failpoints.path()?)], 2, 1).await?;
    let (accounts, opening) = Accounts::open(&cluster, 12, random).await?;
    let load = Load::start(&cluster, &Arc::new(accounts), seed, MIX);
    let mut stage = Stage { cluster, failpoints, owner: 0 };
    for cell in cells {
        let begun = Instant::now();
        let ended = stage.run(cell, random).await.with_context(|| format!("cell {cell}"))?;
        eprintln!("cell {cell}: {ended}, {:.1?}", begun.elapsed());
        *ends.entry(ended).or_default() += 1;
        *done += 1;
    }
    let mut history: History = load.finish().await?;
    history.records.extend(opening.records);
    audit(&stage.cluster, &history).await?;
    stage.cluster.finish().await
}

/// Every cell of the matrix, from the steps that the nodes list.
async fn all_cells() -> anyhow::Result<Vec<Cell>> {
    let failpoints = Failpoints::create()?;
    let cluster = Cluster::start_with(&[(VARIABLE, &failpoints.path()?)], 1, 1).await?;
    let steps = steps_of_moves(&failpoints).await?;
    cluster.finish().await?;
    Ok(matrix(&steps))
}

/// `make test` runs a sample that the seed chooses. `CELLS=all` runs every cell, `CELLS=release` those whose point begins so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_move_is_cut_short_it_completes_or_leaves_everything_as_before() -> anyhow::Result<()> {
    let seed = Seed::announce("the crash matrix of moves");
    let mut random = seed.random();
    let mut cells = all_cells().await?;
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
    let mut failures: Vec<String> = Vec::new();
    let mut left = &cells[..];
    // A failure ends its cluster and says nothing about the cells after it.
    while !left.is_empty() && failures.len() < MOST_FAILURES {
        let batch = &left[..left.len().min(CELLS_PER_CLUSTER)];
        let mut done = 0;
        match run_batch(batch, &seed, &mut random, &mut ends, &mut done).await {
            Ok(()) => left = &left[batch.len()..],
            Err(error) => {
                eprintln!("failed: {error:#}");
                failures.push(format!("{error:#}"));
                left = &left[(done + 1).min(batch.len())..];
            }
        }
    }
    eprintln!("{} cells: {ends:?}, {} failures", cells.len() - left.len(), failures.len());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
