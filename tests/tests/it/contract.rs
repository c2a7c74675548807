//! The HTTP contract, held against a live cluster: every code, the order in which they are answered, and that no answer
//! depends on where accounts live.
//!
//! One cluster for all of it, because starting one takes longer than most of what is asked. Whatever is answered anywhere in
//! here goes through [`rules`] and [`openapi`] besides what the test at hand expects.

mod accounts;
mod api;
mod atomic;
mod bad_input;
mod batches;
pub mod description;
mod faults;
mod journals;
mod keys;
mod lists;
mod model;
mod openapi;
mod openings;
mod reports;
mod rules;
mod rulings;
mod scripts;
mod stage;
mod transfers;

use std::{future::Future, time::Instant};

use futures_util::future::{BoxFuture, join_all};
use testkit::{audit::sagas_end, seed::Seed};

use self::stage::{Findings, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_keeps_its_contract() -> anyhow::Result<()> {
    let seed = Seed::announce("contract");
    let stage = Stage::set().await?;
    let mut findings = Findings::default();

    // These count what is in the databases, so nobody else may write meanwhile.
    findings.note("the description is complete", openapi::is_complete(&stage.api).await);
    findings.note("bad input", timed("bad input", bad_input::is_refused_and_leaves_no_row(&stage)).await);
    findings.note("atomic groups", timed("atomic groups", atomic::groups_are_whole_or_nothing(&stage)).await);

    // These have their own accounts each.
    let together: Vec<(&str, BoxFuture<'_, anyhow::Result<()>>)> = vec![
        ("rulings", Box::pin(rulings::are_the_same_wherever_accounts_live(&stage))),
        ("rulings on in-transit", Box::pin(rulings::hold_for_in_transit_too(&stage))),
        ("holds and reversals", Box::pin(scripts::play_the_same_wherever_accounts_live(&stage))),
        ("accounts opened", Box::pin(openings::are_opened_once(&stage))),
        ("accounts opened again", Box::pin(openings::are_opened_once_whatever_changed_since(&stage))),
        ("accounts changed", Box::pin(accounts::change_within_their_limits(&stage))),
        ("limits changed", Box::pin(accounts::limits_hold_after_they_changed(&stage))),
        ("batches of accounts", Box::pin(openings::batches_answer_each(&stage))),
        ("read-your-writes", Box::pin(accounts::are_read_as_written_through_any_router(&stage))),
        ("reads at once", Box::pin(accounts::are_read_by_many_at_once(&stage))),
        ("journals", Box::pin(journals::are_read_in_pages_and_at_times(&stage))),
        ("lists", Box::pin(lists::are_in_the_order_of_bytes_over_all_shards(&stage))),
        ("lists by prefix", Box::pin(lists::are_of_what_begins_so(&stage))),
        ("sums of balances", Box::pin(lists::add_up_to_balances(&stage))),
        ("idempotency keys", Box::pin(transfers::are_named_by_a_key(&stage))),
        ("steps", Box::pin(transfers::are_found_with_their_steps(&stage))),
        ("shared ids", Box::pin(transfers::of_two_payers_may_share_an_id(&stage))),
        ("replays of ambiguous ids", Box::pin(transfers::replay_when_their_id_has_become_ambiguous(&stage))),
        ("spellings", Box::pin(transfers::are_the_same_however_they_are_spelt(&stage))),
        ("replays", Box::pin(transfers::replay_whatever_happened_since(&stage))),
        ("request ids", Box::pin(transfers::carry_their_request_id(&stage))),
        ("order in batches", Box::pin(batches::take_effect_in_order(&stage))),
    ];
    for (what, held) in join_all(together.into_iter().map(async |(what, test)| (what, timed(what, test).await))).await
    {
        findings.note(what, held);
    }

    // These are as much as the machine can do in the time that a request has, so nobody is in their way.
    findings.note("largest batches", timed("largest batches", batches::of_the_largest_size_are_taken(&stage)).await);
    findings.note("random batches", timed("random batches", model::agrees_with_random_batches(&stage, &seed)).await);

    // These do harm.
    findings.note("faults", timed("faults", faults::are_told_as_what_they_are(&stage)).await);
    findings.note("panics", stage.nobody_panicked().await);
    findings.note("sagas", sagas_end(&stage.cluster).await);
    findings.note("the books", stage.cluster.verify().await);
    findings.conclude()?;
    stage.cluster.finish().await
}

/// Tells how long it took: where the time of this test goes.
async fn timed<T>(what: &str, test: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let output = test.await;
    eprintln!("contract: {:>6.1?} {what}", begun.elapsed());
    output
}
