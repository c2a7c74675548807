//! The points at which nodes that a test watches are interrupted (`shard-node/src/durable.rs`).

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use testkit::{node::Folder, wait::until_every};

/// The environment variable with which a node is watched.
pub const VARIABLE: &str = "SHARDLEDGER_FAILPOINTS";

const LOOK: Duration = Duration::from_millis(10);
/// How long a step may take to come.
const REACHED_WITHIN: Duration = Duration::from_secs(40);

/// What a node does at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
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

/// The points of all nodes of a cluster. A point is `<step>.before` or `<step>.after`; the first node that reaches it obeys.
pub struct Failpoints {
    folder: Folder,
}

impl Failpoints {
    pub fn create() -> anyhow::Result<Self> {
        Ok(Self { folder: Folder::create()? })
    }

    /// The value of [`VARIABLE`].
    pub fn path(&self) -> anyhow::Result<String> {
        Ok(self.folder.path().to_str().context("a path that is no text")?.to_owned())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn arm(&self, point: &str, order: Order) -> anyhow::Result<()> {
        let word = match order {
            Order::Stop => "stop",
            Order::Abort => "abort",
            Order::Fail => "fail",
        };
        // A node must not see the file before it has its content.
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

    /// Every durable step.
    pub async fn steps(&self) -> anyhow::Result<Vec<Step>> {
        let text = until_every(LOOK, "the nodes list their steps", REACHED_WITHIN, async || {
            Ok(std::fs::read_to_string(self.file("steps")).ok().filter(|text| text.ends_with('\n')))
        });
        let steps = text.await?;
        let steps = steps.lines().map(|line| {
            let (name, occasion) = line.split_once(' ').context("a step without an occasion")?;
            Ok(Step { name: name.to_owned(), occasion: occasion.to_owned() })
        });
        steps.collect()
    }
}
