//! Processes that a test kills, freezes and thaws. Each function returns only after its fault has had an effect.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::until;

/// The kernel delivers a signal within this time under any load.
const PATIENCE: Duration = Duration::from_secs(10);

/// One process. Process ids are reused; the start time distinguishes one holder of an id from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    started_ticks: u64,
}

impl Process {
    /// The living process with this id.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, started_ticks) = stat(pid)?;
        is_living(state).then_some(Self { pid, started_ticks })
    }

    /// A child that has not been waited for. Its id is not reused, even if it has ended.
    pub fn of_child(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, started_ticks)| Self { pid, started_ticks })
    }

    pub fn pid(self) -> i32 {
        self.pid
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends `kill -9` and waits until the process is gone.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        until(
            &format!("killed process {} is gone", self.pid),
            PATIENCE,
            async || Ok((!self.is_alive()).then_some(())),
        )
        .await
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub async fn terminate(self, patience: Duration) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        until(&format!("process {} has ended on SIGTERM", self.pid), patience, async || {
            Ok((!self.is_alive()).then_some(()))
        })
        .await
    }

    /// Freezes the process (SIGSTOP) with its sockets open.
    pub async fn freeze(self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        until(&format!("process {} is frozen", self.pid), PATIENCE, async || {
            Ok(stat(self.pid).filter(|(state, _)| *state == 'T').map(|_| ()))
        })
        .await
    }

    pub fn thaw(self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(self, signal: Signal) -> anyhow::Result<()> {
        ensure!(self.is_alive(), "process {} ended before the fault", self.pid);
        let pid = Pid::from_raw(self.pid).context("0 is not a process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal process {}", self.pid))
    }
}

fn is_living(state: char) -> bool {
    !matches!(state, 'Z' | 'X')
}

/// The state and the start time. The second field is the program's name in parentheses, and the name may contain blanks.
fn stat(pid: i32) -> Option<(char, u64)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = line.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}
