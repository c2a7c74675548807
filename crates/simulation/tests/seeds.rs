//! Seeds of the simulation. `make simulate` plays many more.

use std::env;

use shard_node::simulation::Fault;
use simulation::{moves::Moved, run, run_with_lies};

fn from_environment(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in 1..=12 {
        let (first, second) = (run(seed, true), run(seed, true));
        let (first, second) = (first.trace.expect("a trace"), second.trace.expect("a trace"));
        let difference = first.0.iter().zip(&second.0).find(|(one, other)| one != other);
        assert_eq!(difference, None, "SEED={seed}");
        assert_eq!((first.0.len(), first.1), (second.0.len(), second.1), "SEED={seed}");
        assert!(first.0.len() > 100, "SEED={seed}: a trace of {} lines", first.0.len());
    }
}

#[test]
fn a_trace_does_not_change_the_run() {
    for seed in 20..=26 {
        let (with, without) = (run(seed, true), run(seed, false));
        let of =
            |report: &simulation::Report| (report.orders, report.attempts, report.reads, report.calls, report.took);
        assert_eq!(of(&with), of(&without), "SEED={seed}");
    }
}

/// How many of some seeds find something when databases lie, and what.
fn findings(lie: Fault) -> Vec<String> {
    (1..=30).filter_map(|seed| run_with_lies(seed, lie).finding).collect()
}

#[test]
fn a_database_that_denies_a_commit_is_noticed() {
    let findings = findings(Fault::Deny);
    let is_told = |finding: &String| finding.contains("the client was told that nothing was executed");
    assert!(findings.iter().any(is_told), "{findings:?}");
}

#[test]
fn a_database_that_pretends_a_commit_is_noticed() {
    let findings = findings(Fault::Pretend);
    assert!(findings.len() >= 20, "{findings:?}");
}

/// The seed made a commit crash its database in the moment in which everything healed, and the database stayed down.
#[test]
fn a_crash_that_was_ordered_before_everything_heals_does_not_last() {
    assert_eq!(run(20_598_599, false).finding, None);
}

/// Seeds that have found something in moves of slots, with frozen routers, or with accounts that have a limit: `docs/reliability.md` says what.
#[test]
fn what_moves_and_limits_once_broke_stays_whole() {
    for seed in [4_104, 4_185, 5_483, 35_162, 61_908, 80_460, 122_688, 151_800, 234_444, 245_361] {
        assert_eq!(run(seed, false).finding, None, "SEED={seed}");
    }
}

#[test]
fn no_seed_finds_anything() {
    let (first, seeds) = (from_environment("SEED", 1), from_environment("SEEDS", 60));
    eprintln!("SEED={first} SEEDS={seeds}");
    let (mut attempts, mut orders, mut doubtful, mut reads, mut undecided) = (0, 0, 0, 0, 0);
    let mut moves = Moved::default();
    for seed in first..first + seeds {
        let report = run(seed, false);
        assert_eq!(report.finding, None, "repeat it with: make simulate SEED={seed} SEEDS=1");
        attempts += report.attempts;
        orders += report.orders;
        doubtful += report.doubtful;
        reads += report.reads;
        undecided += u64::from(report.is_undecided);
        moves.add(report.moves);
    }
    assert!(undecided * 100 <= seeds, "{undecided} runs are without a decision about a serial order");
    // Runs without retries and doubt would prove little.
    if seeds >= 60 {
        assert!(attempts > orders && doubtful >= 20, "{orders} orders, {attempts} attempts, {doubtful} in doubt");
        assert!(reads >= 500, "{reads} reads");
        let Moved { taken, given_up, reversed, finished, .. } = moves;
        assert!(taken >= 10 && given_up > 0 && reversed > 0 && finished > 0, "{moves:?}");
    }
}
