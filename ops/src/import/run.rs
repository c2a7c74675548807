//! The second reading of a file. Rows become batches, several batches are sent at once, and their answers are taken in the file's order.

use std::{collections::BTreeMap, io::BufRead, time::Duration};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::{
    Kind, RowCounts,
    progress_file::{Progress, ProgressFile, Witness},
    rejects::Rejects,
    rows::{CsvRow, FilePlace, RowReader},
    sender::{BatchSender, ItemFate},
    survey::SourceFile,
};
use crate::{http_client::encoded, output};

/// The most bytes of values in a batch. The limit leaves room for names and quotes below the API's limit of 16 MiB.
const BATCH_BYTES: usize = 4 << 20;
/// The progress file is written at most this often.
const SAVE_EVERY: Duration = Duration::from_millis(250);

/// How the rows are sent.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The most rows of a batch.
    pub batch: usize,
    /// The most batches that wait for their answers at the same time.
    pub in_flight: usize,
}

/// Rows that are sent together.
struct Batch<I> {
    items: Vec<I>,
    /// The row of each item.
    rows: Vec<CsvRow>,
    left_out: Vec<(CsvRow, String)>,
    empty: u64,
    end: FilePlace,
}

/// A batch whose outcome is certain.
struct SettledBatch {
    counts: RowCounts,
    left_out: Vec<(CsvRow, String)>,
    /// The minor units that were paid, by asset.
    paid: BTreeMap<String, i64>,
    /// An account of a confirmed item.
    confirmed: Option<String>,
    end: FilePlace,
}

/// The batches of a file.
struct Batches<'a, K, R> {
    reader: RowReader<R>,
    kind: &'a K,
    rows: usize,
    ended: bool,
}

/// Sends the remaining rows, and stores the progress beside the file. After an error, another run continues from this progress.
pub async fn send<K: Kind>(
    kind: &K,
    file: &SourceFile,
    total: u64,
    sender: &BatchSender,
    pace: Pace,
    mut progress: Progress,
) -> anyhow::Result<(Progress, Rejects)> {
    let progress_file = ProgressFile(file.beside("progress.json"));
    let mut reader = file.rows::<K>()?;
    let mut rejects = Rejects::open(file.beside("rejected.csv"), reader.names(), progress.rejected_bytes)?;
    if let Some(place) = progress.next {
        reader.skip_to(place)?;
    }
    let batches = Batches { reader, kind, rows: pace.batch, ended: false };
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    output::counted(K::NAME, total, async |bar| {
        bar.set_position(progress.counts.rows);
        bar.reset_eta();
        let mut settled = stream::iter(batches)
            .map(|batch| async move { settle(kind, sender, batch?).await })
            .buffered(pace.in_flight);
        let mut saved = None::<Instant>;
        while let Some(settled) = settled.next().await {
            let ended = match settled {
                Ok(settled) => advance(settled, sender, &mut progress, &mut rejects, bar).await,
                Err(error) => Err(error),
            };
            if ended.is_err() || saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY) {
                rejects.sync()?;
                progress_file.save(&progress)?;
                saved = Some(Instant::now());
            }
            ended?;
        }
        anyhow::Ok(())
    })
    .await?;
    file.must_be_unchanged()?;
    progress.finished = true;
    rejects.sync()?;
    progress_file.save(&progress)?;
    Ok((progress, rejects))
}

/// Checks every row as [`send`] does, and sends none. Rows that would be rejected are printed on standard error.
pub fn check<K: Kind>(kind: &K, file: &SourceFile, pace: Pace) -> anyhow::Result<RowCounts> {
    let mut rejects = Rejects::shown_only();
    let mut counts = RowCounts::default();
    for batch in (Batches { reader: file.rows::<K>()?, kind, rows: pace.batch, ended: false }) {
        let batch = batch?;
        counts.add(&batch.counts());
        rejects.add(&batch.left_out, &ProgressBar::hidden())?;
    }
    file.must_be_unchanged()?;
    Ok(counts)
}

async fn settle<K: Kind>(kind: &K, sender: &BatchSender, mut batch: Batch<K::Item>) -> anyhow::Result<SettledBatch> {
    let mut counts = batch.counts();
    let fates = sender.settle(kind, &mut batch.items).await?;
    let mut paid = BTreeMap::<String, i64>::new();
    let mut confirmed = None;
    for ((item, row), fate) in batch.items.iter().zip(batch.rows).zip(fates) {
        match fate {
            ItemFate::Done => counts.done += 1,
            ItemFate::Replayed => counts.replayed += 1,
            ItemFate::Refused(reason) => {
                counts.rejected += 1;
                batch.left_out.push((row, reason));
                continue;
            }
        }
        confirmed.get_or_insert_with(|| K::witness(item).to_owned());
        if let Some((asset, minor)) = K::pays(item) {
            add(&mut paid, asset, minor)?;
        }
    }
    batch.left_out.sort_by_key(|(row, _)| row.line);
    Ok(SettledBatch { counts, left_out: batch.left_out, paid, confirmed, end: batch.end })
}

/// Takes the outcome of the next batch of the file.
async fn advance(
    settled: SettledBatch,
    sender: &BatchSender,
    progress: &mut Progress,
    rejects: &mut Rejects,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    if let (None, Some(account)) = (&progress.witness, settled.confirmed) {
        progress.witness = witness(sender, &account).await?;
    }
    rejects.add(&settled.left_out, bar)?;
    progress.rejected_bytes = rejects.bytes();
    progress.counts.add(&settled.counts);
    for (asset, minor) in &settled.paid {
        add(&mut progress.paid, asset, *minor)?;
    }
    progress.next = Some(settled.end);
    bar.set_position(progress.counts.rows);
    Ok(())
}

/// The account as a witness of the ledger that has it.
pub async fn witness(sender: &BatchSender, account: &str) -> anyhow::Result<Option<Witness>> {
    let shown = sender.get(&format!("/v1/accounts/{}", encoded(account))).await?;
    let created_at = shown.and_then(|shown| shown["created_at"].as_str().map(str::to_owned));
    Ok(created_at.map(|created_at| Witness { account: account.to_owned(), created_at }))
}

fn add(sums: &mut BTreeMap<String, i64>, asset: &str, minor: i64) -> anyhow::Result<()> {
    let sum = sums.entry(asset.to_owned()).or_default();
    *sum = sum.checked_add(minor).with_context(|| format!("the sum of {asset} is more than a ledger can hold"))?;
    Ok(())
}

impl RowCounts {
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.done += other.done;
        self.replayed += other.replayed;
        self.empty += other.empty;
        self.rejected += other.rejected;
    }
}

impl<I> Batch<I> {
    /// The counts that are known before the batch is sent.
    fn counts(&self) -> RowCounts {
        let rejected = self.left_out.len() as u64;
        let rows = self.rows.len() as u64 + self.empty + rejected;
        RowCounts { rows, empty: self.empty, rejected, ..RowCounts::default() }
    }
}

impl<K: Kind, R: BufRead> Batches<'_, K, R> {
    fn read(&mut self) -> anyhow::Result<Option<Batch<K::Item>>> {
        let mut batch =
            Batch { items: Vec::new(), rows: Vec::new(), left_out: Vec::new(), empty: 0, end: self.reader.place() };
        let mut bytes = 0;
        while batch.counts().rows < self.rows as u64 && bytes < BATCH_BYTES {
            let Some(row) = self.reader.next_row()? else { break };
            bytes += row.values.iter().map(String::len).sum::<usize>();
            let item = match &row.fault {
                Some(fault) => Err(fault.clone()),
                None => self.kind.item(&row),
            };
            match item {
                Ok(Some(item)) => {
                    batch.items.push(item);
                    batch.rows.push(row);
                }
                Ok(None) => batch.empty += 1,
                Err(reason) => batch.left_out.push((row, reason)),
            }
            batch.end = self.reader.place();
        }
        Ok((batch.counts().rows > 0).then_some(batch))
    }
}

impl<K: Kind, R: BufRead> Iterator for Batches<'_, K, R> {
    type Item = anyhow::Result<Batch<K::Item>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let batch = self.read().transpose();
        self.ended = !matches!(batch, Some(Ok(_)));
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::import::accounts::Accounts;

    #[test]
    fn batches_take_rows_in_order_and_end_between_two_rows() {
        let text = "id,asset\na,USD\nb b,USD\nc,USD\n\nd,USD\ne\n";
        let accounts = Accounts::new().unwrap();
        let reader = RowReader::new(Cursor::new(text.as_bytes()), Accounts::REQUIRED, Accounts::OPTIONAL).unwrap();
        let batches = Batches { reader, kind: &accounts, rows: 2, ended: false };
        let found: Vec<(usize, Vec<u64>, u64)> = batches
            .map(|batch| batch.unwrap())
            .map(|batch| {
                let left_out = batch.left_out.iter().map(|(row, _)| row.line).collect();
                (batch.items.len(), left_out, batch.end.line)
            })
            .collect();
        assert_eq!(found, [(1, vec![3], 4), (2, vec![], 7), (0, vec![7], 8)]);
    }
}
