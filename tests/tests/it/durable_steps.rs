//! The crash matrix of sagas, holds and the fold: what is done is interrupted at every durable step of it that the nodes list.
//! `moves::crash_matrix` is the same for moves of slots. A step that no cell covers, or that no node reaches, fails the test.

mod kinds;
mod repeat;
mod teller;

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use testkit::{
    audit::{all_folded, sagas_end},
    client::Answer,
    cluster::{Cluster, Member},
    database,
    process::Process,
    seed::{Random, Seed},
    wait::{until, until_every},
};
use tokio::task::JoinSet;

use self::{
    kinds::{Kind, Scene},
    teller::{Request, Teller, said},
};
use crate::failpoints::{Failpoints, Order, VARIABLE};

/// Cells of the sample that `make test` runs.
const SAMPLE: usize = 12;
/// Cells that run on one cluster, one after another.
const CELLS_PER_CLUSTER: usize = 120;
/// The run ends after so many failures.
const MOST_FAILURES: usize = 10;
const SHARDS: u16 = 4;
const ROUTERS: u16 = 2;
/// Pairs of shards, source first. The next cell uses other shards: the supervisor starts a node that has lived for two seconds again
/// without a long pause.
const PAIRS: [[usize; 2]; 4] = [[0, 1], [2, 3], [1, 0], [3, 2]];
/// Short, so that folds come while a cell runs.
const FOLD_INTERVAL: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(10);
/// How long two coordinators have to meet at a step.
const MEET: Duration = Duration::from_millis(100);
/// I7: everything is terminal this long after healing.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// The next commit of any lane.
const NEXT_COMMIT: &str = "commit.before";
/// The destination decides: meanwhile, the saga is under way.
const DECIDES: &str = "credit.before";

/// What happens at the point of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    NodeDies,
    /// The second time while it recovers: at the same step, or at its next commit.
    NodeDiesTwice,
    /// The router that drives dies.
    RouterDies,
    /// The router that drives dies, and the other one at the next commit.
    BothRoutersDie,
    DatabaseDies,
    /// Before the step: nothing is written. After it: its answer is lost, and the node repeats the step.
    WriteFails,
    /// Two routers are asked at once.
    TwoCoordinators,
    TwoCoordinatorsAndNodeDies,
}

impl Harm {
    const ALL: [Self; 8] = [
        Self::NodeDies,
        Self::NodeDiesTwice,
        Self::RouterDies,
        Self::BothRoutersDie,
        Self::DatabaseDies,
        Self::WriteFails,
        Self::TwoCoordinators,
        Self::TwoCoordinatorsAndNodeDies,
    ];
    /// A fold has no coordinator.
    const OF_FOLDS: [Self; 4] = [Self::NodeDies, Self::NodeDiesTwice, Self::DatabaseDies, Self::WriteFails];

    fn of(kind: Kind) -> &'static [Self] {
        if kind.is_fold() { &Self::OF_FOLDS } else { &Self::ALL }
    }

    fn order(self) -> Order {
        match self {
            Self::NodeDies | Self::NodeDiesTwice | Self::TwoCoordinatorsAndNodeDies => Order::Abort,
            Self::RouterDies | Self::BothRoutersDie | Self::DatabaseDies | Self::TwoCoordinators => Order::Stop,
            Self::WriteFails => Order::Fail,
        }
    }

    fn coordinators(self) -> usize {
        match self {
            Self::TwoCoordinators | Self::TwoCoordinatorsAndNodeDies => 2,
            _ => 1,
        }
    }
}

#[derive(Debug, Clone)]
struct Cell {
    kind: Kind,
    step: &'static str,
    edge: &'static str,
    harm: Harm,
}

impl Cell {
    fn point(&self) -> String {
        format!("{}.{}", self.step, self.edge)
    }

    /// Where the node dies a second time. What was not written is written again; what was written is not.
    fn second_point(&self) -> String {
        if self.edge == "before" || self.kind.is_fold() { self.point() } else { NEXT_COMMIT.to_owned() }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}: {:?}", self.kind, self.point(), self.harm)
    }
}

fn matrix() -> Vec<Cell> {
    let mut cells = Vec::new();
    for kind in Kind::ALL {
        for step in kind.steps() {
            for edge in ["before", "after"] {
                cells.extend(Harm::of(kind).iter().map(|harm| Cell { kind, step, edge, harm: *harm }));
            }
        }
    }
    cells
}

/// A cluster whose nodes are watched.
struct Stage {
    cluster: Cluster,
    failpoints: Failpoints,
    teller: Teller,
    cells: usize,
}

/// The clients of a cell: one for each coordinator. Each sends the request until it is answered for certain.
struct Clients {
    tasks: JoinSet<anyhow::Result<Answer>>,
    answers: Vec<Answer>,
}

impl Clients {
    fn start(teller: &Teller, request: &Request, coordinators: usize) -> Self {
        let mut tasks = JoinSet::new();
        for router in 0..coordinators {
            let (teller, request) = (teller.clone(), request.clone());
            tasks.spawn(async move { teller.ask(router, &request).await });
        }
        Self { tasks, answers: Vec::new() }
    }

    /// Whether all have their answers.
    fn have_ended(&mut self) -> anyhow::Result<bool> {
        while let Some(answer) = self.tasks.try_join_next() {
            self.answers.push(answer??);
        }
        Ok(self.tasks.is_empty())
    }

    async fn answers(mut self) -> anyhow::Result<Vec<Answer>> {
        while let Some(answer) = self.tasks.join_next().await {
            self.answers.push(answer??);
        }
        Ok(self.answers)
    }
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let failpoints = Failpoints::create()?;
        let mut cluster = Cluster::start_with(&[(VARIABLE, &failpoints.path()?)], SHARDS, ROUTERS).await?;
        cluster.set_fold_intervals(FOLD_INTERVAL).await?;
        let teller = Teller::of(&cluster)?;
        Ok(Self { cluster, failpoints, teller, cells: 0 })
    }

    async fn run(&mut self, cell: &Cell) -> anyhow::Result<()> {
        let [source, elsewhere] = PAIRS[self.cells % PAIRS.len()];
        self.cells += 1;
        let (source_name, elsewhere_name) = (format!("s{source}"), format!("s{elsewhere}"));
        let scene = Scene::set(cell.kind, &self.teller, &source_name, &elsewhere_name).await?;
        if cell.kind == Kind::Replay {
            self.cluster.kill_and_recover(&[Member::Node(source)]).await?;
        }
        let mut clients = self.begin(cell, &scene, source).await?;
        self.harm(cell, &mut clients).await.with_context(|| format!("harm at {}", cell.point()))?;
        self.failpoints.disarm(DECIDES);
        let answers = clients.answers().await?;
        self.ended_well(cell, &scene, &answers).await
    }

    /// Arms the point of a cell, and sends its request.
    async fn begin(&self, cell: &Cell, scene: &Scene, source: usize) -> anyhow::Result<Clients> {
        let clients = || Clients::start(&self.teller, &scene.request, cell.harm.coordinators());
        let arm = || self.failpoints.arm(&cell.point(), cell.harm.order());
        match cell.kind {
            Kind::FoldOfSagaBegun => {
                self.failpoints.arm(DECIDES, Order::Stop)?;
                arm()?;
                let clients = clients();
                self.failpoints.reached(DECIDES).await?;
                Ok(clients)
            }
            Kind::FoldOfSagaEnded => {
                self.failpoints.arm(DECIDES, Order::Stop)?;
                let clients = clients();
                self.failpoints.reached(DECIDES).await?;
                let dsn = &self.cluster.status().shards[source].dsn;
                until("the source has folded the saga", ENDS_WITHIN, async || {
                    Ok((database::number(dsn, "SELECT count(*) FROM saga").await? > 0).then_some(()))
                })
                .await?;
                arm()?;
                self.failpoints.disarm(DECIDES);
                Ok(clients)
            }
            _ => {
                arm()?;
                Ok(clients())
            }
        }
    }

    async fn harm(&mut self, cell: &Cell, clients: &mut Clients) -> anyhow::Result<()> {
        let point = cell.point();
        let nodes: Vec<(Member, Process)> = (0..usize::from(SHARDS))
            .map(|shard| Ok((Member::Node(shard), self.cluster.process(Member::Node(shard))?)))
            .collect::<anyhow::Result<_>>()?;
        let pid = self.failpoints.reached(&point).await?;
        let reached = nodes.iter().find(|(_, process)| process.pid() == pid);
        let (node, process) = *reached.with_context(|| format!("no node is process {pid}"))?;
        let Member::Node(shard) = node else { unreachable!("only nodes are listed above") };
        let what = format!("everything is back after {cell}");
        match cell.harm {
            Harm::NodeDies | Harm::TwoCoordinatorsAndNodeDies => {
                self.failpoints.disarm(&point);
                self.cluster.wait_until_ready(&what, &[(node, process)]).await
            }
            Harm::NodeDiesTwice => {
                let second = cell.second_point();
                self.failpoints.disarm(&point);
                self.failpoints.arm(&second, Order::Stop)?;
                let again = self.reached_or_ended(&second, clients).await?;
                let again = match again {
                    Some(pid) => Process::of(pid).context("a node that stands at a point has gone")?,
                    None => {
                        // Nothing is left to be committed: the node dies at rest.
                        self.cluster.wait_until_ready(&what, &[(node, process)]).await?;
                        self.cluster.process(node)?
                    }
                };
                again.kill().await?;
                self.failpoints.disarm(&second);
                self.cluster.refresh_status().await?;
                let dead: Vec<(Member, Process)> = (0..usize::from(SHARDS))
                    .map(Member::Node)
                    .filter(|member| self.cluster.status().pid(*member) == Some(again.pid()))
                    .map(|member| (member, again))
                    .chain([(node, process)])
                    .collect();
                self.cluster.wait_until_ready(&what, &dead).await
            }
            Harm::RouterDies => {
                let killed = (Member::Router(0), self.cluster.kill(Member::Router(0)).await?);
                self.failpoints.disarm(&point);
                self.cluster.wait_until_ready(&what, &[killed]).await
            }
            Harm::BothRoutersDie => {
                let first = (Member::Router(0), self.cluster.kill(Member::Router(0)).await?);
                self.failpoints.arm(NEXT_COMMIT, Order::Stop)?;
                self.failpoints.disarm(&point);
                self.reached_or_ended(NEXT_COMMIT, clients).await?;
                let second = (Member::Router(1), self.cluster.kill(Member::Router(1)).await?);
                self.failpoints.disarm(NEXT_COMMIT);
                self.cluster.wait_until_ready(&what, &[first, second]).await
            }
            Harm::DatabaseDies => {
                let killed = (Member::Postgres(shard), self.cluster.kill(Member::Postgres(shard)).await?);
                self.failpoints.disarm(&point);
                self.cluster.wait_until_ready(&what, &[killed]).await
            }
            Harm::WriteFails => {
                self.failpoints.disarm(&point);
                Ok(())
            }
            Harm::TwoCoordinators => {
                // Both have sent the step by now, or send it later.
                tokio::time::sleep(MEET).await;
                self.failpoints.disarm(&point);
                Ok(())
            }
        }
    }

    /// Waits until a node reaches a point. `None`: all clients have their answers, and no node has reached it.
    async fn reached_or_ended(&self, point: &str, clients: &mut Clients) -> anyhow::Result<Option<i32>> {
        let what = format!("a node reaches {point}, or nothing is left to do");
        until_every(LOOK, &what, ENDS_WITHIN, async || {
            if let Some(pid) = self.failpoints.reached_by(point) {
                return Ok(Some(Some(pid)));
            }
            Ok(clients.have_ended()?.then_some(None))
        })
        .await
    }

    /// The answers are the right ones and stay the same, nothing is under way, and all money is accounted for.
    async fn ended_well(&mut self, cell: &Cell, scene: &Scene, answers: &[Answer]) -> anyhow::Result<()> {
        for answer in answers {
            let text = answer.text();
            ensure!(said(answer) == scene.says, "the client was answered {} {text}", answer.status);
        }
        sagas_end(&self.cluster).await?;
        if let Some((hold, status)) = &scene.hold {
            until(&format!("the hold is {status}"), ENDS_WITHIN, async || {
                let shown = self.teller.show_hold(hold).await?;
                ensure!(shown["status"] == *status, "{shown}");
                Ok(Some(()))
            })
            .await?;
        }
        repeat::answers_stay(&self.teller, &scene.request, answers).await?;
        repeat::steps_stay(&self.cluster, &scene.request).await?;
        for (account, posted, held) in &scene.accounts {
            let has = self.teller.balance(account).await?;
            ensure!(
                (has.0.as_str(), has.1.as_str()) == (*posted, *held),
                "{account} has {has:?}, not {posted}, {held}"
            );
        }
        if cell.kind.is_fold() {
            all_folded(&self.cluster).await?;
        }
        self.cluster.verify().await
    }
}

/// Runs cells one after another on one cluster. Counts the cells that are `done`.
async fn run_batch(cells: &[Cell], done: &mut usize) -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    for cell in cells {
        let begun = Instant::now();
        stage.run(cell).await.with_context(|| format!("cell {cell}"))?;
        eprintln!("cell {cell}: {:.1?}", begun.elapsed());
        *done += 1;
    }
    stage.cluster.finish().await
}

/// Every step that the nodes list for the lane or the fold is in a cell, and every step of a cell is listed.
async fn every_step_is_covered() -> anyhow::Result<()> {
    let failpoints = Failpoints::create()?;
    let cluster = Cluster::start_with(&[(VARIABLE, &failpoints.path()?)], 1, 1).await?;
    let steps = failpoints.steps().await?;
    cluster.finish().await?;
    let mut covered: BTreeMap<&str, bool> =
        Kind::ALL.iter().flat_map(|kind| kind.steps()).map(|step| (*step, false)).collect();
    for step in steps.iter().filter(|step| matches!(step.occasion.as_str(), "lane" | "fold")) {
        let is_listed =
            covered.get_mut(step.name.as_str()).with_context(|| format!("no cell covers {}", step.name))?;
        *is_listed = true;
    }
    let unlisted: Vec<&&str> = covered.iter().filter(|(_, is_listed)| !**is_listed).map(|(step, _)| step).collect();
    ensure!(unlisted.is_empty(), "the nodes do not list {unlisted:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_durable_step_of_the_lane_and_the_fold_is_in_a_cell() -> anyhow::Result<()> {
    every_step_is_covered().await
}

/// `make test` runs a sample that the seed chooses. `CELLS=all` runs every cell, `CELLS=settle` those whose lines contain it. `FROM=100`
/// leaves out the first 100 in the seed's order, to continue a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_transfer_or_a_fold_is_cut_short_it_ends_as_if_it_had_not_been() -> anyhow::Result<()> {
    let seed = Seed::announce("the crash matrix of sagas, holds and the fold");
    let mut random: Random = seed.random();
    let mut cells = matrix();
    let all = cells.len();
    random.shuffle(&mut cells);
    match std::env::var("CELLS").as_deref() {
        Ok("all") => {}
        Ok(words) => cells.retain(|cell| cell.to_string().contains(words)),
        Err(_) => cells.truncate(SAMPLE),
    }
    let from = std::env::var("FROM").ok().and_then(|text| text.parse().ok()).unwrap_or(0).min(cells.len());
    cells.drain(..from);
    ensure!(!cells.is_empty(), "CELLS names no cell");
    eprintln!("{} of {all} cells", cells.len());
    let begun = Instant::now();
    let mut failures: Vec<String> = Vec::new();
    let mut left = &cells[..];
    // A failure ends its cluster and says nothing about the cells after it.
    while !left.is_empty() && failures.len() < MOST_FAILURES {
        let batch = &left[..left.len().min(CELLS_PER_CLUSTER)];
        let mut done = 0;
        match run_batch(batch, &mut done).await {
            Ok(()) => left = &left[batch.len()..],
            Err(error) => {
                eprintln!("failed: {error:#}");
                failures.push(format!("{error:#}"));
                left = &left[(done + 1).min(batch.len())..];
            }
        }
    }
    let played = cells.len() - left.len();
    eprintln!("{played} cells in {:.1?}, {} failures, seed {}", begun.elapsed(), failures.len(), seed.value());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
