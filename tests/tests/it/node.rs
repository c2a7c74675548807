//! One shard-node and its database: messages lost between them, two nodes on one shard, and databases that a node
//! must not serve.
//!
//! The tests of this file share one PostgreSQL; each has its own database.

mod commit_faults;
mod due_holds;
mod hold_commit_faults;
mod listed_slots;
mod missing_guards;
mod one_batch;
mod opened_again;
mod refused_databases;
mod second_writer;

use std::net::SocketAddr;

use ledger::Limit;
use testkit::{
    audit::rebuilds,
    cluster::Cluster,
    database,
    node::{Folder, Node, NodeConfig, open},
    section::section,
};

/// A map in which the shard under test owns every slot.
const MAP: &str = "cluster = \"0190d7c0-0000-7000-8000-00000000c1a5\"\nversion = 1\n[[shard]]\nid = \"s0\"\nnumber = 0\nnodes = [\"http://127.0.0.1:1\"]\nslots = [\"0-16383\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_its_shard_whole() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let place = Place { cluster: &cluster, folder: Folder::create()? };
    section("commit faults", commit_faults::a_commit_whose_fate_is_unknown_takes_effect_once(&place)).await?;
    section("commit faults of holds", hold_commit_faults::of_every_step_take_effect_once(&place)).await?;
    section("killed at commit", commit_faults::a_node_killed_at_its_commit_is_survived_by_what_was_committed(&place))
        .await?;
    section("black hole", commit_faults::a_silent_database_is_given_up_and_the_batch_run_again(&place)).await?;
    section("flapping", commit_faults::a_flapping_link_costs_time_and_no_money(&place)).await?;
    section("two nodes", second_writer::two_nodes_on_one_shard_lose_no_update(&place)).await?;
    section("thawed node", second_writer::a_thawed_node_decides_on_nothing_it_remembers(&place)).await?;
    section("superseded node", second_writer::a_superseded_node_answers_no_old_balance(&place)).await?;
    section("frozen in COPY", second_writer::a_node_frozen_within_copy_lets_another_serve_within_two_seconds(&place))
        .await?;
    section("row by hand", second_writer::a_row_changed_by_hand_is_replaced_by_what_the_journal_says(&place)).await?;
    section("version by hand", second_writer::a_row_that_does_not_lead_to_the_journal_stops_the_shard(&place))
        .await?;
    section("under way", second_writer::a_refusal_that_stores_nothing_waits_for_a_commit_under_way(&place)).await?;
    section("one batch", one_batch::a_debt_is_paid_and_its_limit_lowered_in_one_commit(&place)).await?;
    section("opened again", opened_again::accounts_are_what_their_first_entry_says(&place)).await?;
    section("fence", second_writer::a_slot_that_changed_hands_is_refused_and_nothing_written(&place)).await?;
    section("listed slots", listed_slots::are_owned_all_of_them_or_named(&place)).await?;
    section("due holds", due_holds::expire_once_the_node_is_back(&place)).await?;
    section("missing guards", missing_guards::are_noticed(&place)).await?;
    section("newer schema", refused_databases::of_a_newer_version(&place)).await?;
    section("never initialised", refused_databases::never_initialised(&place)).await?;
    section("another shard's", refused_databases::of_another_shard(&place)).await?;
    cluster.finish().await
}

/// Where the tests of this file take their databases and files from.
struct Place<'a> {
    cluster: &'a Cluster,
    folder: Folder,
}

impl Place<'_> {
    /// A new database made a shard, and the configuration of a node in front of it.
    async fn shard(&self, name: &str) -> anyhow::Result<NodeConfig> {
        let url = database::create(self.cluster, name).await?;
        let config = NodeConfig::write(&self.folder, name, "s0", &url)?;
        config.init(MAP)?;
        Ok(config)
    }

    /// A second way to the same shard.
    fn another_node(&self, name: &str, url: &str) -> anyhow::Result<NodeConfig> {
        NodeConfig::write(&self.folder, name, "s0", url)
    }

    /// Where PostgreSQL listens.
    fn postgres(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.cluster.status().shards[0].postgres_port).into()
    }
}

/// Opens a payer without limit and a payee.
async fn open_pair(node: &Node, payer: &str, payee: &str) -> anyhow::Result<()> {
    node.execute_until_definite(&open(payer, Limit::Unlimited)?).await?;
    node.execute_until_definite(&open(payee, Limit::ZERO)?).await?;
    Ok(())
}

/// Checks the books of one database: entries balance, chains have no gaps, and all rows are the fold of the journal.
/// (`shardctl verify` also checks what holds between shards.)
async fn books_are_sound(url: &str) -> anyhow::Result<()> {
    rebuilds(url).await
}
