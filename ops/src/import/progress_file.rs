//! The progress of an import, in `FILE.progress.json`.
//!
//! Repeating rows is harmless, so the file saves work and protects no money. After an interruption, a run continues after the last row whose
//! batch, and every batch before it, was confirmed. The file also prevents the one repetition that is not harmless: opening balances under
//! another name, or from another account, would be paid again.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{RowCounts, rows::FilePlace};
use crate::cluster::files::{self, Audience};

const FORMAT: u32 = 1;

/// The properties that identify an import. Two imports with the same properties are the same import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub kind: String,
    /// The name from which the ids of balances follow. `None` for an import of accounts.
    pub name: Option<String>,
    /// The accounts that pay balances. Empty for an import of accounts.
    pub from: Vec<String>,
    pub file_sha256: String,
}

/// An account with the time at which it was opened. It shows whether the ledger is still the one that was imported to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    pub account: String,
    pub created_at: String,
}

/// The progress file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    format: u32,
    pub identity: Identity,
    pub finished: bool,
    /// Every row before this place is confirmed or rejected. `None`: no row is.
    pub next: Option<FilePlace>,
    /// Bytes of the file of rejected rows at that place.
    pub rejected_bytes: u64,
    pub counts: RowCounts,
    /// The minor units that were paid, by asset.
    pub paid: BTreeMap<String, i64>,
    /// The minor units that earlier runs had paid under the same name, by asset. The payers have this much less.
    pub paid_before: BTreeMap<String, i64>,
    pub witness: Option<Witness>,
}

/// The path of the progress file.
pub struct ProgressFile(pub PathBuf);

impl Progress {
    pub fn new(identity: Identity) -> Self {
        Self {
            format: FORMAT,
            identity,
            finished: false,
            next: None,
            rejected_bytes: 0,
            counts: RowCounts::default(),
            paid: BTreeMap::new(),
            paid_before: BTreeMap::new(),
            witness: None,
        }
    }

    /// The progress with which an import begins, after `previous` if there is one. With `restart`, the import begins at the first row in any
    /// case.
    pub fn after(previous: Option<Self>, identity: Identity, restart: bool) -> anyhow::Result<Self> {
        let Some(previous) = previous else { return Ok(Self::new(identity)) };
        let was = &previous.identity;
        ensure!(was.kind == identity.kind, "it is the progress of an import of {}", was.kind);
        if (&was.name, &was.from) != (&identity.name, &identity.from) {
            let (name, from) = (was.name.as_deref().unwrap_or_default(), was.from.join(" --from "));
            bail!(
                "this file was imported as `--name {name} --from {from}`, and every row would be paid once more under \
                another name or from another account. Repeat these options to continue that import, even after you have \
                corrected rows of the file. If this is another import, remove the progress file"
            );
        }
        if !restart && !previous.finished && was.file_sha256 == identity.file_sha256 {
            return Ok(previous);
        }
        let mut paid_before = previous.paid_before;
        for (asset, paid) in previous.paid {
            let before = paid_before.entry(asset).or_default();
            *before = paid.max(*before);
        }
        Ok(Self { paid_before, witness: previous.witness, ..Self::new(identity) })
    }

    /// The minor units of an asset that the import has paid, in this run or an earlier one.
    pub fn known_paid(&self, asset: &str) -> i64 {
        let of = |paid: &BTreeMap<String, i64>| paid.get(asset).copied().unwrap_or(0);
        of(&self.paid).max(of(&self.paid_before))
    }
}

impl ProgressFile {
    pub fn load(&self) -> anyhow::Result<Option<Progress>> {
        let describe = || format!("{} (remove it to begin again)", self.0.display());
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(describe)?,
        };
        let progress: Progress = serde_json::from_str(&text).with_context(describe)?;
        ensure!(progress.format == FORMAT, "{}: another version of shardctl has written it", describe());
        Ok(Some(progress))
    }

    pub fn save(&self, progress: &Progress) -> anyhow::Result<()> {
        let path = if self.0.parent().is_some_and(|folder| folder.as_os_str().is_empty()) {
            PathBuf::from(".").join(&self.0)
        } else {
            self.0.clone()
        };
        files::replace(&path, &serde_json::to_string_pretty(progress)?, Audience::Everyone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, sha256: &str) -> Identity {
        Identity {
            kind: "balances".to_owned(),
            name: Some(name.to_owned()),
            from: vec!["opening".to_owned()],
            file_sha256: sha256.to_owned(),
        }
    }

    fn interrupted() -> Progress {
        Progress {
            next: Some(FilePlace { byte: 100, line: 5 }),
            paid: BTreeMap::from([("USD".to_owned(), 40)]),
            paid_before: BTreeMap::from([("USD".to_owned(), 90)]),
            ..Progress::new(identity("june", "aa"))
        }
    }

    #[test]
    fn an_interrupted_import_goes_on_and_a_finished_or_restarted_one_begins_anew() {
        let same = |previous, restart| Progress::after(Some(previous), identity("june", "aa"), restart).unwrap();
        assert_eq!(same(interrupted(), false), interrupted());
        for fresh in [same(interrupted(), true), same(Progress { finished: true, ..interrupted() }, false)] {
            assert_eq!((fresh.next, fresh.known_paid("USD"), fresh.finished), (None, 90, false));
        }
    }

    #[test]
    fn a_corrected_file_begins_anew_under_the_same_name() {
        let fresh = Progress::after(Some(interrupted()), identity("june", "bb"), false).unwrap();
        assert_eq!((fresh.next, fresh.identity.file_sha256.as_str(), fresh.known_paid("USD")), (None, "bb", 90));
    }

    #[test]
    fn another_name_another_account_or_another_kind_is_refused() {
        let refused = |identity| Progress::after(Some(interrupted()), identity, true).unwrap_err().to_string();
        assert!(refused(identity("july", "aa")).contains("--name june --from opening"));
        assert!(refused(Identity { from: vec!["other".to_owned()], ..identity("june", "aa") }).contains("once more"));
        assert!(refused(Identity { kind: "accounts".to_owned(), ..identity("june", "aa") }).contains("of balances"));
    }

    #[test]
    fn what_is_saved_is_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = ProgressFile(folder.path().join("b.progress.json"));
        assert_eq!(file.load().unwrap(), None);
        file.save(&interrupted()).unwrap();
        assert_eq!(file.load().unwrap(), Some(interrupted()));
        fs::write(&file.0, "{").unwrap();
        assert!(format!("{:#}", file.load().unwrap_err()).contains("remove it"));
    }
}
