//! What a driver has done, and what an operator wants: the JSON columns of `slot_move`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::MoveError;

/// What the target's driver has done. Only the driver writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// The epoch that the slots get at this shard.
    pub slot_epoch: i64,
    /// The move that this one reverses.
    pub reverses: Option<Uuid>,
    /// The projections of the source reached this far when the move began: bookings up to here are copied first.
    pub folded_position: i64,
    /// Part and position of the journal up to which bookings are copied.
    pub part: u32,
    pub after: i64,
    /// Rows of accounts are copied up to this id.
    pub after_account: String,
    pub accounts_copied: bool,
    /// The copied rows of `hold` reach this position, those of `saga` the other.
    pub holds_at: i64,
    pub sagas_at: i64,
    pub bookings: u64,
    pub accounts: u64,
    pub bytes: u64,
    pub expected_bookings: i64,
    pub expected_accounts: i64,
    /// The throttle's pause after a page, as a multiple of the time that the page took.
    pub throttle: f64,
    /// What keeps the move from going on.
    pub blocked_by: Option<String>,
    pub verified_position: i64,
    /// How many of the verifications that an operator has asked for are done.
    pub verifications_done: u64,
    /// What the last verification has found to differ. Only a verification writes it.
    pub difference: Option<String>,
    /// What has come holds together, and the newest time of an account; kept up to date by the catch-up.
    pub is_summed: bool,
    pub sums: Vec<AssetSum>,
    pub newest_us: i64,
    /// Every booking that is relevant to the slots is at or before this position of the source.
    pub last_position: i64,
    /// The position of the booking with which the slots came.
    pub taken_position: i64,
    /// Microseconds since the epoch.
    pub copied_at_us: i64,
    pub caught_up_at_us: i64,
    pub released_at_us: i64,
    pub taken_at_us: i64,
    pub finished_at_us: i64,
    /// From the lock request at the source until the slots were owned here, in microseconds, without the way of the answer.
    pub pause_us: i64,
    /// From the lock request at the source until its transaction was ready to commit, in microseconds.
    pub source_locked_us: i64,
    /// The clean-up is done up to this position.
    pub cleaned_to: i64,
    pub bookings_deleted: u64,
    /// What the accounts held together at the cut-over, by asset, in minor units.
    pub assets: Vec<AssetSum>,
    /// The map that names this shard as the owner is known to every shard.
    pub published_map: u64,
}

/// What the source keeps of a move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceProgress {
    /// The epoch that the slots get at the target.
    pub slot_epoch: i64,
    /// The move that this one reverses.
    pub reverses: Option<Uuid>,
    /// The answer to the release.
    pub last_position: i64,
    pub locked_us: i64,
    pub assets: Vec<AssetSum>,
    /// The clean-up is done up to this position.
    pub cleaned_to: i64,
    pub bookings_deleted: u64,
    /// A reversal that was given up has brought the rows here up to this position of the other shard.
    pub reversed_to: i64,
}

impl SourceProgress {
    /// The stored state after a reversal that was given up has brought the rows here up to this position of the other shard.
    ///
    /// # Errors
    /// When the text is not the JSON of a source's progress.
    pub fn reached_by_reversal(text: &str, reached: i64) -> Result<String, MoveError> {
        let mut kept: Self = read(text)?;
        kept.reversed_to = kept.reversed_to.max(reached);
        Ok(write(&kept))
    }
}

/// What moved of one asset, as decimal integers in minor units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetSum {
    pub asset: String,
    /// What the accounts hold.
    pub posted: String,
    /// The in-transit shares of the bookings.
    pub shares: String,
}

/// What an operator wants of a move.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wishes {
    pub paused: bool,
    pub hold_cutover: bool,
    pub rehearse: bool,
    pub abort: bool,
    pub finish: bool,
    /// Bytes a second; 0: no limit.
    pub rate: u64,
    pub unthrottled: bool,
    /// There is no cut-over that would pause the slots for more than so many milliseconds; 0: no limit.
    pub max_pause_ms: u64,
    /// How many times an operator has asked for a verification.
    pub verifications_asked: u64,
}

impl Wishes {
    /// Takes over what is said.
    pub fn update(&mut self, said: &wire::MoveWishes) {
        let set = |wish: &mut bool, said: Option<bool>| *wish = said.unwrap_or(*wish);
        set(&mut self.paused, said.paused);
        set(&mut self.hold_cutover, said.hold_cutover);
        set(&mut self.rehearse, said.rehearse);
        set(&mut self.abort, said.abort);
        set(&mut self.finish, said.finish);
        set(&mut self.unthrottled, said.unthrottled);
        self.rate = said.rate.unwrap_or(self.rate);
        self.max_pause_ms = said.max_pause_ms.unwrap_or(self.max_pause_ms);
        self.verifications_asked += u64::from(said.verify == Some(true));
    }
}

impl From<&wire::MoveAssetSum> for AssetSum {
    fn from(sum: &wire::MoveAssetSum) -> Self {
        Self { asset: sum.asset.clone(), posted: sum.posted.clone(), shares: sum.shares.clone() }
    }
}

/// Reads a JSON column.
///
/// # Errors
/// When the text is not the JSON of a `T`.
pub fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, MoveError> {
    serde_json::from_str(text).map_err(|error| {
        MoveError::Refused(format!("the stored state of the move cannot be read by this version: {error}"))
    })
}

/// Writes a JSON column.
pub fn write(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_columns_survive_and_a_wish_changes_only_what_it_names() {
        let progress =
            Progress { after: 7, throttle: 1.5, blocked_by: Some("it's".to_owned()), ..Progress::default() };
        assert_eq!(read::<Progress>(&write(&progress)).unwrap(), progress);
        let mut wishes: Wishes = read("{}").unwrap();
        wishes.update(&wire::MoveWishes { paused: Some(true), rate: Some(5), ..Default::default() });
        wishes.update(&wire::MoveWishes { abort: Some(true), ..Default::default() });
        assert_eq!(wishes, Wishes { paused: true, rate: 5, abort: true, ..Wishes::default() });
    }
}
