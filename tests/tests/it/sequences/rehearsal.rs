//! The sequences of some runs, played to the model alone: whether chance, which decides what a run asks, leaves out what a run
//! must have seen.

use std::collections::BTreeMap;

use model::{Asset, HoldState, Ledger, Named, Request};
use testkit::seed::Seed;

use super::{
    ANSWERS, ANSWERS_OF_SHARDS,
    command::{Command, Sequence},
    script::{SOON_S, Script},
    shrink::Source,
    tally::{EXPIRED_IN_TIME, Tally},
    wire::{Call, Spelling},
};

/// Twice as many as a run plays on each cluster.
const SEQUENCES: usize = 2_000;
/// What comes ten times in a run on average is missing in one of 20,000 runs.
const OFTEN: usize = 20;

#[test]
fn what_a_run_must_have_seen_is_frequent() {
    let source = Source::new(&Seed::of(0));
    for shards in [1, 3] {
        let tally = Tally::default();
        (0..SEQUENCES).for_each(|number| rehearse(&source.sequence(number), shards, &tally));
        let wanted = ANSWERS.iter().chain(ANSWERS_OF_SHARDS.iter().filter(|_| shards > 1));
        let seldom: Vec<(&str, usize)> =
            wanted.map(|answer| (*answer, tally.of(answer))).filter(|(_, count)| *count < OFTEN).collect();
        assert!(seldom.is_empty(), "of {SEQUENCES} sequences on {shards} shards: {seldom:#?}");
    }
}

/// As [`super::play::Play`] does it, with nobody there but the model.
fn rehearse(sequence: &Sequence, shards: usize, tally: &Tally) {
    let places = [0].into_iter().chain(sequence.accounts.iter().map(|opening| opening.shard)).chain([0]);
    let names: Vec<(String, String)> =
        places.enumerate().map(|(index, shard)| (format!("{{m-{index}}}"), format!("s{}", shard % shards))).collect();
    let mut script = Script::new(names.iter().map(|(name, _)| name.clone()).collect());
    let mut ledger = Ledger::new(names.into_iter().collect::<BTreeMap<_, _>>());
    let mut expiring: Vec<Named> = Vec::new();
    let exchange = |request: &Request, script: &mut Script, ledger: &mut Ledger, expiring: &mut Vec<Named>| {
        script.remember(request, ledger);
        let answer = ledger.apply(request);
        tally.count(&Call::of(request, Spelling::Full, Asset::USD), &answer);
        tally.count_openings(request, ledger);
        if let Request::Hold { order, dry_run: false } = request
            && order.expires_in_s == Some(SOON_S)
            && answer.status == 201
        {
            expiring.push(Named { id: order.id.clone(), debit: Some(order.debit.clone()) });
        }
    };
    let wait = |ledger: &mut Ledger, expiring: &mut Vec<Named>| {
        for hold in expiring.drain(..) {
            if ledger.hold(&hold).is_some_and(|hold| hold.state == HoldState::Held) {
                ledger.expire(&hold);
                tally.note(EXPIRED_IN_TIME);
            }
        }
    };
    for request in script.set_up(sequence) {
        exchange(&request, &mut script, &mut ledger, &mut expiring);
    }
    for command in &sequence.commands {
        if matches!(command, Command::Wait) {
            wait(&mut ledger, &mut expiring);
        }
        if let Some((request, _)) = script.request(command, &ledger) {
            exchange(&request, &mut script, &mut ledger, &mut expiring);
        }
    }
    wait(&mut ledger, &mut expiring);
    let transfers = script.transfers().to_vec().into_iter().map(Request::ShowTransfer);
    let holds = script.holds().to_vec().into_iter().map(Request::ShowHold);
    for request in transfers.chain(holds) {
        exchange(&request, &mut script, &mut ledger, &mut expiring);
    }
}
