//! The points at which a test interrupts nodes (`shard-node/src/durable.rs`), and the loop that runs a matrix of such interruptions.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use testkit::{cluster::Cluster, node::Folder, wait::until_every};

/// The environment variable that tells a node the folder of its failpoints.
const VARIABLE: &str = "SHARDLEDGER_FAILPOINTS";

const LOOK: Duration = Duration::from_millis(10);
/// The time within which a node must reach a step.
const REACHED_WITHIN: Duration = Duration::from_secs(40);
/// A run of a crash matrix stops after this many failures.
const MOST_FAILURES: usize = 10;

/// What a node does at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// It waits until the point is disarmed.
    Stop,
    /// Its process ends at once.
    Abort,
    /// The step reports an error.
    Fail,
}

/// A durable step as the nodes list it, and the occasion on which a node makes it.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: String,
    pub occasion: String,
}

/// The points of all nodes of a cluster. A point is called `<step>.before` or `<step>.after`. The first node that reaches an armed point is
/// interrupted.
pub struct Failpoints {
    folder: Folder,
}

/// Every durable step, from the nodes of a cluster that this function starts.
pub async fn durable_steps() -> anyhow::Result<Vec<Step>> {
    let failpoints = Failpoints::create()?;
    let cluster = failpoints.start_cluster(1, 1).await?;
    let steps = failpoints.steps().await?;
    cluster.finish().await?;
    Ok(steps)
}

/// The result of [`run_cells`].
pub struct CellsRun {
    pub run: usize,
    pub failures: Vec<String>,
}

/// Runs cells in batches of `per_cluster`, until all have run or [`MOST_FAILURES`] of them have failed. `run_batch` runs its cells on a new
/// cluster and counts those that are done. A failure ends its cluster and proves nothing about the cells after it, so these run in the next
/// batch.
pub async fn run_cells<C>(
    cells: &[C],
    per_cluster: usize,
    mut run_batch: impl AsyncFnMut(&[C], &mut usize) -> anyhow::Result<()>,
) -> CellsRun {
    let mut failures = Vec::new();
    let mut left = cells;
    while !left.is_empty() && failures.len() < MOST_FAILURES {
        let batch = &left[..left.len().min(per_cluster)];
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
    CellsRun { run: cells.len() - left.len(), failures }
}

impl Failpoints {
    pub fn create() -> anyhow::Result<Self> {
        Ok(Self { folder: Folder::create()? })
    }

    /// Starts a cluster whose nodes have these failpoints.
    pub async fn start_cluster(&self, shards: u16, routers: u16) -> anyhow::Result<Cluster> {
        let folder = self.folder.path().to_str().context("the path of the folder is not UTF-8")?;
        Cluster::start_with(&[(VARIABLE, folder)], shards, routers).await
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn arm(&self, point: &str, interruption: Interruption) -> anyhow::Result<()> {
        let word = match interruption {
            Interruption::Stop => "stop",
            Interruption::Abort => "abort",
            Interruption::Fail => "fail",
        };
        // The file is renamed into place, because a node must not see it before it has its content.
        let unfinished = self.file("unfinished");
        std::fs::write(&unfinished, word)?;
        Ok(std::fs::rename(unfinished, self.file(point))?)
    }

    pub fn is_reached(&self, point: &str) -> bool {
        self.file(&format!("{point}.reached")).exists()
    }

    /// The process that has reached a point.
    pub fn reached_by(&self, point: &str) -> Option<i32> {
        let text = std::fs::read_to_string(self.file(&format!("{point}.reached"))).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    }

    /// Waits until a node reaches a point. Returns its process.
    pub async fn reached(&self, point: &str) -> anyhow::Result<i32> {
        let what = format!("a node reaches {point}");
        until_every(LOOK, &what, REACHED_WITHIN, async || Ok(self.reached_by(point))).await
    }

    /// Lets a node that stopped at the point go on. No node stops there again.
    pub fn disarm(&self, point: &str) {
        for file in [self.file(point), self.file(&format!("{point}.reached"))] {
            let _ = std::fs::remove_file(file);
        }
    }

    async fn steps(&self) -> anyhow::Result<Vec<Step>> {
        let text = until_every(LOOK, "the nodes list their steps", REACHED_WITHIN, async || {
            Ok(std::fs::read_to_string(self.file("steps")).ok().filter(|text| text.ends_with('\n')))
        });
        let steps = text.await?;
        let steps = steps.lines().map(|line| {
            let (name, occasion) = line.split_once(' ').context("a listed step has no occasion")?;
            Ok(Step { name: name.to_owned(), occasion: occasion.to_owned() })
        });
        steps.collect()
    }
}
