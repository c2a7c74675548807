//! What the supervisor says about its processes: `run/processes.json`. For people and for `up`, which gives up early on
//! a process that keeps dying; nothing relies on it to know what runs.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::cluster::{
    durable_file::{self, Audience},
    layout::Layout,
    member::Member,
};

/// All processes by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report(pub BTreeMap<String, ProcessReport>);

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct ProcessReport {
    pub pid: Option<i32>,
    /// Deaths since the supervisor started.
    pub deaths: u32,
    /// Deaths in a row, none of which followed a time of good health.
    pub early_deaths: u32,
    /// How the last one ended.
    pub last_end: Option<String>,
}

impl Report {
    /// The newest report; an empty one where none was written yet.
    pub fn read(layout: &Layout) -> Self {
        let text = fs::read_to_string(layout.report()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// Keeps the report up to date.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    report: Mutex<Report>,
}

impl Reporter {
    pub fn new(layout: &Layout) -> Self {
        let reporter = Self { path: layout.report(), report: Mutex::default() };
        reporter.change(|_| {});
        reporter
    }

    pub fn started(&self, member: &Member, pid: i32) {
        self.change(|report| report.0.entry(member.name.clone()).or_default().pid = Some(pid));
    }

    pub fn ended(&self, member: &Member, how: &str, early: bool) {
        self.change(|report| {
            let process = report.0.entry(member.name.clone()).or_default();
            process.pid = None;
            process.deaths += 1;
            process.early_deaths = if early { process.early_deaths + 1 } else { 0 };
            process.last_end = Some(how.to_owned());
        });
    }

    /// Removes a process that the supervisor has stopped and does not start again. A failover waits for that.
    pub fn forget(&self, name: &str) {
        self.change(|report| {
            report.0.remove(name);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut report);
        let written = serde_json::to_string_pretty(&*report)
            .map_err(anyhow::Error::from)
            .and_then(|text| durable_file::replace(&self.path, &text, Audience::Everyone));
        // A full disk must not take the cluster down.
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the report");
        }
    }
}
