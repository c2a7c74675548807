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
mod faults;
mod journals;
mod model;
mod openapi;
mod rules;
mod rulings;
mod stage;
mod transfers;

use std::time::Instant;

use testkit::{audit::sagas_end, seed::Seed};

use self::stage::{Findings, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_keeps_its_contract() -> anyhow::Result<()> {
    let seed = Seed::announce("contract");
    let stage = Stage::set().await?;
    let mut findings = Findings::default();
    macro_rules! hold {
        ($($call:expr => $what:literal),+ $(,)?) => {
            $(
                let begun = Instant::now();
                findings.note($what, $call.await);
                eprintln!("contract: {:>6.1?} {}", begun.elapsed(), $what);
            )+
        };
    }
    hold! {
        openapi::is_complete(&stage.api) => "the description is complete",
        rulings::are_the_same_wherever_accounts_live(&stage) => "rulings are the same wherever accounts live",
        rulings::hold_for_in_transit_too(&stage) => "rulings hold for in-transit too",
        bad_input::is_refused_and_leaves_no_row(&stage) => "bad input is refused and leaves no row",
        accounts::are_opened_once(&stage) => "accounts are opened once",
        accounts::change_within_their_limits(&stage) => "accounts change within their limits",
        accounts::limits_hold_after_they_changed(&stage) => "limits hold after they changed",
        accounts::batches_answer_each(&stage) => "batches of accounts answer each",
        accounts::are_read_as_written_through_any_router(&stage) => "accounts are read as written through any router",
        journals::are_read_in_pages_and_at_times(&stage) => "journals are read in pages and at times",
        transfers::are_named_by_a_key(&stage) => "transfers are named by a key",
        transfers::are_found_with_their_steps(&stage) => "transfers are found with their steps",
        transfers::of_two_payers_may_share_an_id(&stage) => "transfers of two payers may share an id",
        transfers::are_the_same_however_they_are_spelt(&stage) => "transfers are the same however they are spelt",
        transfers::replay_whatever_happened_since(&stage) => "transfers replay whatever happened since",
        transfers::carry_their_request_id(&stage) => "requests carry their id",
        batches::take_effect_in_order(&stage) => "batches take effect in order",
        batches::of_the_largest_size_are_taken(&stage) => "batches of the largest size are taken",
        atomic::groups_take_effect_whole_or_not_at_all(&stage) => "atomic groups take effect whole or not at all",
        model::agrees_with_random_batches(&stage, &seed) => "the model agrees with random batches",
        faults::are_told_as_what_they_are(&stage) => "faults are told as what they are",
        stage.nobody_panicked() => "nobody panicked",
        sagas_end(&stage.cluster) => "sagas end",
        stage.cluster.verify() => "the books balance",
    }
    findings.conclude()?;
    stage.cluster.finish().await
}
