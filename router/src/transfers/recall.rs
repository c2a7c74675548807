//! A batch that is sent again: what earlier requests did of it is asked for at once, and not wave by wave.
//!
//! An order is needed only by what has yet to take effect. A stored transfer that waited for its turn would make the waves of a
//! repeated batch as many as those of the first attempt; a chain of transfers between shards too long for one request would
//! then never be through, however often it is sent.

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::operation::Operation;

use super::{Batch, item::Item};
use crate::{
    service::Core,
    shard::{ByShard, Urgency},
};

impl Batch<'_> {
    /// Whether something of it was met that is stored already, with more of it still waiting. True once: one look finds all.
    pub(super) fn is_sent_again(&mut self) -> bool {
        let waiting = || self.open.iter().any(|&index| self.items[index].is_new());
        let sent_again = !self.recalled && self.items.iter().any(Item::is_replay) && waiting();
        self.recalled |= sent_again;
        sent_again
    }

    /// Gives the waiting items what is stored under their ids. A dry run tells: it answers an id in use as the transfer
    /// itself would be answered, and leaves nothing behind where the id is free.
    pub(super) async fn recall(&mut self, core: &Core) {
        let view = core.view();
        let mut groups: ByShard<(Vec<Operation>, Vec<usize>)> = ByShard::default();
        for &index in self.open.iter().filter(|&&index| self.items[index].is_new()) {
            let line = self.items[index].line(&view);
            let transfer = self.items[index].operation(line.source != line.destination, false, false);
            let (operations, indices) = groups.entry(line.source);
            operations.push(Operation::DryRun(Box::new(transfer)));
            indices.push(index);
        }
        let deadline = self.deadline;
        let calls = groups.into_iter().map(|(shard, (operations, indices))| {
            let shard = Arc::clone(view.shard(shard));
            async move { (indices, shard.execute(Urgency::New, operations, false, deadline).await.answers) }
        });
        for (indices, answers) in join_all(calls).await {
            for (index, answer) in indices.into_iter().zip(answers) {
                self.items[index].recall(answer);
            }
        }
        self.close_finished();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use ledger::outcome::TransferState;

    use crate::service::{
        NewTransfer, TransferReply,
        fake_cluster::{Cluster, soon, transfer},
    };

    #[tokio::test]
    async fn a_chain_that_is_sent_again_goes_on_where_it_was() {
        let cluster = Cluster::start(2).await;
        let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
        cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
        // Each is paid with what the one before it brought from the other shard.
        let chain = |length: u128| -> Vec<NewTransfer> {
            let there_and_back = |number| match number % 2 {
                0 => transfer(number, &alice, &bob, 100),
                _ => transfer(number, &bob, &alice, 100),
            };
            (0..length).map(there_and_back).collect()
        };
        let calls = || -> usize { cluster.nodes.iter().map(|node| node.executions.load(Ordering::Relaxed)).sum() };
        cluster.router.transfer_batch(chain(40), soon()).await;

        let before = calls();
        let mut again = chain(41);
        again[20].amount = 99;
        let replies = cluster.router.transfer_batch(again, soon()).await;
        for (number, reply) in replies.iter().enumerate() {
            match reply {
                Ok(TransferReply::Mismatch { field: "amount" }) => assert_eq!(number, 20),
                Ok(TransferReply::Done(answer)) => {
                    assert!(matches!(answer.state, TransferState::Posted { .. }), "{number}: {answer:?}");
                    assert_eq!(answer.replayed, number < 40, "{number}");
                }
                other => panic!("{number}: {other:?}"),
            }
        }
        assert!(calls() - before < 12, "{} calls for one new transfer", calls() - before);
        assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (0, 100));
    }
}
