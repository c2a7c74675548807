//! A move as an operator sees it.

use serde::Serialize;
use serde_json::Value;
use shard_map::SlotRange;
use telemetry::clock;
use uuid::Uuid;

use crate::output;

/// A move with all its facts.
#[derive(Debug, Clone, Serialize)]
pub struct MoveView {
    pub id: Uuid,
    pub from: String,
    pub to: String,
    pub slots: Vec<String>,
    pub slot_count: u32,
    /// The phase at the target. A rehearsal that was verified and then deleted is `rehearsed`.
    pub phase: String,
    /// The progress of the copy in percent. It is an estimate until the copy is complete.
    pub percent: f64,
    pub bookings: u64,
    pub accounts: u64,
    pub bytes: u64,
    /// The rate in bytes a second: the rate of the last pages during the copy, and of the whole copy afterwards.
    pub rate: f64,
    /// The pause after each page, as a multiple of the time that the page took.
    pub throttle: f64,
    /// The reason for the pauses between pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_reason: Option<String>,
    /// The estimated remaining seconds of the copy, from the rate so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
    /// Entries of the source's journal, of any slot, that the driver has not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_entries: Option<i64>,
    /// Milliseconds since the driver last had read the whole journal of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<f64>,
    pub paused: bool,
    /// The move waits for `shardctl move cutover`.
    pub holds_cutover: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<String>,
    pub started_at: String,
    /// The epoch of the slots at the target.
    pub slot_epoch: i64,
    /// The time at which the source gave the slots away, in microseconds since the epoch. 0 if it has not.
    #[serde(skip)]
    pub released_at_us: i64,
    /// The differences that the last verification found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
    #[serde(skip)]
    pub verifications_asked: u64,
    #[serde(skip)]
    pub verifications_done: u64,
    /// From the lock request of the release at the source until the target owned the slots, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
    /// How long the source's lane was locked out before the commit of the release, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_locked_ms: Option<f64>,
    /// The amounts of each asset that moved, in minor units.
    pub assets: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_position: Option<i64>,
    /// The next command of the operator.
    pub next: String,
}

impl MoveView {
    pub fn of(target: &str, status: &wire::MoveStatus) -> Self {
        let progress: Value = serde_json::from_str(&status.progress).unwrap_or_default();
        let wishes: Value = serde_json::from_str(&status.wishes).unwrap_or_default();
        let number = |name: &str| progress[name].as_i64().unwrap_or(0);
        let count = |name: &str| progress[name].as_u64().unwrap_or(0);
        let id = Uuid::from_slice(&status.r#move).unwrap_or_default();
        let is_over = |at: &str| number(at) > 0;
        let expected = number("expected_bookings") + number("expected_accounts");
        let done = count("bookings") + count("accounts");
        let percent = match (is_over("copied_at_us"), expected) {
            (true, _) => 100.0,
            (false, 0) => 0.0,
            (false, expected) => (done as f64 / expected as f64 * 100.0).min(99.0),
        };
        let end_us = if is_over("copied_at_us") { number("copied_at_us") } else { clock::now_us() };
        let seconds = (end_us - status.started_at_us).max(1) as f64 / 1e6;
        let milliseconds = |name: &str| is_over("taken_at_us").then(|| number(name) as f64 / 1e3);
        let activity =
            status.activity.as_ref().filter(|_| matches!(status.phase.as_str(), "copying" | "catching up"));
        let is_catching_up = status.phase == "catching up";
        let rate = match activity {
            Some(activity) if status.phase == "copying" => activity.bytes_per_second,
            _ => count("bytes") as f64 / seconds,
        };
        let seconds_left =
            (status.phase == "copying" && percent > 1.0).then(|| seconds / percent * (100.0 - percent).max(0.0));
        let is_rehearsed = status.phase == "aborted" && wishes["rehearse"] == true && number("verified_position") > 0;
        let phase = if is_rehearsed { "rehearsed".to_owned() } else { status.phase.clone() };
        let ranges: Vec<SlotRange> =
            status.slots.iter().filter_map(|range| SlotRange::try_from(*range).ok()).collect();
        Self {
            id,
            from: status.peer.clone(),
            to: target.to_owned(),
            slot_count: ranges.iter().map(|range| u32::from(range.len())).sum(),
            slots: ranges.iter().map(ToString::to_string).collect(),
            phase,
            percent,
            bookings: count("bookings"),
            accounts: count("accounts"),
            bytes: count("bytes"),
            rate,
            throttle: progress["throttle"].as_f64().unwrap_or(0.0),
            throttle_reason: activity.map(|it| it.throttle_reason.clone()).filter(|reason| !reason.is_empty()),
            seconds_left,
            lag_entries: activity.filter(|_| is_catching_up).map(|it| it.lag_entries),
            lag_ms: activity.filter(|_| is_catching_up).map(|it| it.lag_us as f64 / 1e3),
            slot_epoch: number("slot_epoch"),
            released_at_us: number("released_at_us"),
            difference: progress["difference"].as_str().map(str::to_owned),
            verifications_asked: wishes["verifications_asked"].as_u64().unwrap_or(0),
            verifications_done: count("verifications_done"),
            paused: wishes["paused"] == true,
            holds_cutover: wishes["hold_cutover"] == true,
            blocked_by: progress["blocked_by"].as_str().map(str::to_owned),
            started_at: clock::format_rfc3339(status.started_at_us),
            pause_ms: milliseconds("pause_us"),
            source_locked_ms: milliseconds("source_locked_us"),
            assets: progress["assets"].clone(),
            map_version: progress["published_map"].as_u64().filter(|version| *version > 0),
            verified_position: Some(number("verified_position")).filter(|position| *position > 0),
            next: next(id, &status.phase, wishes["paused"] == true, wishes["hold_cutover"] == true),
        }
    }

    /// Prints the next command, and the alternatives.
    pub fn print_next(&self) {
        if self.next.is_empty() {
            return;
        }
        let instead = if self.phase == "taken" {
            format!("; to move the slots back instead: shardctl move reverse {}", self.id)
        } else {
            String::new()
        };
        output::note(&format!("next: {}{instead}", self.next));
    }

    /// Whether the move may still change.
    pub fn is_open(&self) -> bool {
        !matches!(self.phase.as_str(), "finished" | "aborted" | "rehearsed" | "reversed")
    }

    /// One line for a progress bar.
    pub fn line(&self) -> String {
        let mut line = format!(
            "{} to {}: {}, {} bookings, {} accounts, {:.1} MB, {:.1} MB/s",
            self.from,
            self.to,
            self.phase,
            self.bookings,
            self.accounts,
            self.bytes as f64 / 1e6,
            self.rate / 1e6,
        );
        if let Some(seconds) = self.seconds_left {
            line.push_str(&format!(", about {seconds:.0} s left"));
        }
        if let (Some(entries), Some(ms)) = (self.lag_entries, self.lag_ms) {
            line.push_str(&format!(", {entries} entries and {ms:.0} ms behind"));
        }
        if self.paused {
            line.push_str(", paused");
        }
        if let Some(cause) = &self.blocked_by {
            line.push_str(&format!(", BLOCKED BY {cause}"));
        }
        line
    }
}

fn next(id: Uuid, phase: &str, is_paused: bool, holds_cut_over: bool) -> String {
    match phase {
        "copying" | "catching up" if is_paused => format!("shardctl move resume {id}"),
        "catching up" if holds_cut_over => format!("shardctl move cutover {id}"),
        "copying" | "catching up" | "aborting" => "shardctl move status --watch".to_owned(),
        "taken" => format!("shardctl move finish {id}"),
        _ => String::new(),
    }
}

/// The wait in milliseconds that this share of the operations in routers did not exceed. `waits` has microseconds and numbers of operations,
/// in ascending order.
pub fn wait_ms(waits: &[(u64, u64)], share: f64) -> Option<f64> {
    let total: u64 = waits.iter().map(|(_, count)| count).sum();
    let rank = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let wait = waits.iter().find(|(_, count)| {
        seen += count;
        seen >= rank
    });
    wait.map(|(us, _)| *us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_says_what_comes_next() {
        let status = |phase: &str, progress: &str, wishes: &str| wire::MoveStatus {
            r#move: Uuid::nil().as_bytes().to_vec().into(),
            is_target: true,
            peer: "s0".to_owned(),
            slots: vec![wire::SlotRange { first: 1, last: 5 }],
            phase: phase.to_owned(),
            progress: progress.to_owned(),
            wishes: wishes.to_owned(),
            ..Default::default()
        };
        let view = MoveView::of("s1", &status("copying", r#"{"bookings": 50, "expected_bookings": 200}"#, "{}"));
        assert_eq!(
            (view.percent as i64, view.slot_count, view.next.as_str()),
            (25, 5, "shardctl move status --watch")
        );
        let view = MoveView::of("s1", &status("catching up", "{}", r#"{"hold_cutover": true}"#));
        assert!(view.next.starts_with("shardctl move cutover "), "{view:?}");
        let view = MoveView::of("s1", &status("aborted", r#"{"verified_position": 7}"#, r#"{"rehearse": true}"#));
        assert_eq!((view.phase.as_str(), view.is_open()), ("rehearsed", false));
        let taken = r#"{"copied_at_us": 5, "taken_at_us": 9, "pause_us": 1500, "blocked_by": "x"}"#;
        let view = MoveView::of("s1", &status("taken", taken, "{}"));
        assert_eq!((view.percent as i64, view.pause_ms), (100, Some(1.5)));
        assert!(view.line().contains("BLOCKED BY x") && view.is_open());
    }
}
