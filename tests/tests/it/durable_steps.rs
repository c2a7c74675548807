//! The crash matrix of sagas, holds and the fold. Each kind of operation is interrupted at each of its durable steps that the nodes list.
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
    teller::{Request, Teller},
};
use crate::failpoints::{self, CellsRun, Failpoints, Interruption, run_cells};

/// The number of cells in the sample that `make test` runs.
const SAMPLE: usize = 12;
/// The number of cells that run on one cluster, one after another.
const CELLS_PER_CLUSTER: usize = 120;
const SHARDS: u16 = 4;
const ROUTERS: u16 = 2;
/// The source and the destination of each cell in turn. The next cell uses other shards, because the supervisor starts a node without a
/// long pause only if the node has lived for two seconds.
const PAIRS: [[usize; 2]; 4] = [[0, 1], [2, 3], [1, 0], [3, 2]];
/// The interval is short, so that folds come while a cell runs.
const FOLD_INTERVAL: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(10);
/// The time in which two coordinators meet at a step.
const MEET: Duration = Duration::from_millis(100);
/// INV-17: everything has ended within this time after the last fault.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// The point before the next commit of any lane.
const NEXT_COMMIT: &str = "commit.before";
/// The point at which the destination decides. While a node stands there, the saga is under way.
const DECIDES: &str = "credit.before";

/// The fault that a cell causes at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    NodeDies,
    /// The node dies again while it recovers, at the same step or at its next commit.
    NodeDiesTwice,
    /// The router that drives the saga dies.
    RouterDies,
    /// The router that drives the saga dies, and the other router dies at the next commit.
    BothRoutersDie,
    DatabaseDies,
    /// Before the step, the write does not happen. After the step, its answer is lost, and the node repeats it.
    WriteFails,
    /// Two routers get the same request at the same time.
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

    fn interruption(self) -> Interruption {
        match self {
            Self::NodeDies | Self::NodeDiesTwice | Self::TwoCoordinatorsAndNodeDies => Interruption::Abort,
            Self::RouterDies | Self::BothRoutersDie | Self::DatabaseDies | Self::TwoCoordinators => {
                Interruption::Stop
            }
            Self::WriteFails => Interruption::Fail,
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
struct StepCell {
    kind: Kind,
    step: &'static str,
    edge: &'static str,
    harm: Harm,
}

impl StepCell {
    fn point(&self) -> String {
        format!("{}.{}", self.step, self.edge)
    }

    /// The point at which the node dies a second time. A node that died before a write reaches the same point again. A node that died after
    /// it does not.
    fn second_point(&self) -> String {
        if self.edge == "before" || self.kind.is_fold() { self.point() } else { NEXT_COMMIT.to_owned() }
    }
}

impl fmt::Display for StepCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}: {:?}", self.kind, self.point(), self.harm)
    }
}

fn matrix() -> Vec<StepCell> {
    let mut cells = Vec::new();
    for kind in Kind::ALL {
        for step in kind.steps() {
            for edge in ["before", "after"] {
                cells.extend(Harm::of(kind).iter().map(|harm| StepCell { kind, step, edge, harm: *harm }));
            }
        }
    }
    cells
}

/// A cluster whose nodes have failpoints, and the client of its cells.
struct WatchedCluster {
    cluster: Cluster,
    failpoints: Failpoints,
    teller: Teller,
    cells: usize,
}

/// The clients of a cell, one for each coordinator. Each repeats the request until its answer is definite.
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

    /// Whether all clients have their answers.
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

impl WatchedCluster {
    async fn set() -> anyhow::Result<Self> {
        let failpoints = Failpoints::create()?;
        let mut cluster = failpoints.start_cluster(SHARDS, ROUTERS).await?;
        cluster.set_fold_intervals(FOLD_INTERVAL).await?;
        let teller = Teller::of(&cluster)?;
        Ok(Self { cluster, failpoints, teller, cells: 0 })
    }

    async fn run(&mut self, cell: &StepCell) -> anyhow::Result<()> {
        let [source, elsewhere] = PAIRS[self.cells % PAIRS.len()];
        self.cells += 1;
        let (source_name, elsewhere_name) = (format!("s{source}"), format!("s{elsewhere}"));
        let scene = Scene::set(cell.kind, &self.teller, &source_name, &elsewhere_name).await?;
        if cell.kind == Kind::Replay {
            self.cluster.kill_and_recover(&[Member::Node(source)]).await?;
        }
        // A node may reach the point and die before anyone looks again.
        let nodes = self.nodes()?;
        let mut clients = self.begin(cell, &scene, source).await?;
        self.harm(cell, &nodes, &mut clients).await.with_context(|| format!("harm at {}", cell.point()))?;
        self.failpoints.disarm(DECIDES);
        let answers = clients.answers().await?;
        self.ended_well(cell, &scene, &answers).await
    }

    /// Arms the point of a cell, and sends its request.
    async fn begin(&self, cell: &StepCell, scene: &Scene, source: usize) -> anyhow::Result<Clients> {
        let clients = || Clients::start(&self.teller, &scene.request, cell.harm.coordinators());
        let arm = || self.failpoints.arm(&cell.point(), cell.harm.interruption());
        match cell.kind {
            Kind::FoldOfSagaBegun => {
                self.failpoints.arm(DECIDES, Interruption::Stop)?;
                arm()?;
                let clients = clients();
                self.failpoints.reached(DECIDES).await?;
                Ok(clients)
            }
            Kind::FoldOfSagaEnded => {
                self.failpoints.arm(DECIDES, Interruption::Stop)?;
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

    fn nodes(&self) -> anyhow::Result<Vec<(Member, Process)>> {
        let nodes = (0..usize::from(SHARDS)).map(Member::Node);
        nodes.map(|node| Ok((node, self.cluster.process(node)?))).collect()
    }

    /// `nodes` are those that ran before the request was sent.
    async fn harm(
        &mut self,
        cell: &StepCell,
        nodes: &[(Member, Process)],
        clients: &mut Clients,
    ) -> anyhow::Result<()> {
        let point = cell.point();
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
                self.failpoints.arm(&second, Interruption::Stop)?;
                let again = self.reached_or_ended(&second, clients).await?;
                let again = match again {
                    Some(pid) => Process::of(pid).context("the node that stopped at the point has ended")?,
                    None => {
                        // Nothing is left to be committed, so the node dies at rest.
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
                self.failpoints.arm(NEXT_COMMIT, Interruption::Stop)?;
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
                // By now both routers have sent the step. A slow one sends it later, which is a valid case as well.
                tokio::time::sleep(MEET).await;
                self.failpoints.disarm(&point);
                Ok(())
            }
        }
    }

    /// Waits until a node reaches a point. `None` if all clients have their answers before that.
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

    /// Checks that the answers are right and stay the same, that nothing is under way, and that the accounts hold the right amounts.
    async fn ended_well(&mut self, cell: &StepCell, scene: &Scene, answers: &[Answer]) -> anyhow::Result<()> {
        for answer in answers {
            let text = answer.text();
            ensure!(
                answer.outcome() == scene.says,
                "the client should be answered {}, not {} {text}",
                scene.says,
                answer.status
            );
        }
        sagas_end(&self.cluster).await?;
        if let Some((hold, status)) = &scene.hold {
            until(&format!("the hold is {status}"), ENDS_WITHIN, async || {
                let shown = self.teller.show_hold(hold).await?;
                expect!(shown["status"] == *status, "{shown}");
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
async fn run_batch(cells: &[StepCell], done: &mut usize) -> anyhow::Result<()> {
    let mut watched = WatchedCluster::set().await?;
    for cell in cells {
        let begun = Instant::now();
        watched.run(cell).await.with_context(|| format!("cell {cell}"))?;
        eprintln!("cell {cell}: {:.1?}", begun.elapsed());
        *done += 1;
    }
    watched.cluster.finish().await
}

/// Every step that the nodes list for the lane or the fold is in a cell, and every step of a cell is listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_durable_step_of_the_lane_and_the_fold_is_in_a_cell() -> anyhow::Result<()> {
    let steps = failpoints::durable_steps().await?;
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

/// `make test` runs a sample that the seed chooses. `CELLS=all` runs every cell, and `CELLS=settle` those whose names contain that word.
/// `FROM=100` continues a run: it leaves out the first 100 cells in the seed's order.
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
    let CellsRun { run, failures } = run_cells(&cells, CELLS_PER_CLUSTER, run_batch).await;
    eprintln!("{run} cells in {:.1?}, {} failures, seed {}", begun.elapsed(), failures.len(), seed.value());
    expect!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
