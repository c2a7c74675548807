//! A key for `{shop42}:` can neither read nor move another tenant's money, by any operation of the API.
//!
//! Each attack is sent twice: about something of another tenant, and about something that does not exist. The two answers must be the same up to
//! the names, so that an answer does not even tell what exists. Every operation of `docs/openapi.json` and each of its parameters has an attack;
//! an operation that is added later fails the first test until it has one.

mod attacks;
mod stage;

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::Value;

use self::{
    attacks::{ATTACKS, Attack, OWN_READS, REUSED_IDS, under_key},
    stage::{Stage, Target, USED_KEY, form},
};

/// Parameters that say nothing of accounts, transfers or holds.
const NEUTRAL: [&str; 3] = ["X-Request-Id", "X-Request-Timeout-Ms", "traceparent"];

#[test]
fn every_operation_and_every_parameter_of_the_description_has_an_attack() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json")).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    let target = Target::nothing();
    let tried = |operation: &str| {
        let attacks = ATTACKS.iter().filter(|attack| attack.operation == operation);
        attacks.map(|attack| (attack.request)(&target)).collect::<Vec<_>>()
    };
    let mut operations = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            operations.insert(name);
            let requests = tried(name);
            assert!(!requests.is_empty(), "{name} ({method} {path}) has no attack: add one to tenants/attacks.rs");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter = match parameter["$ref"].as_str() {
                    Some(reference) => description.pointer(reference.trim_start_matches('#')).unwrap(),
                    None => parameter,
                };
                let (kind, parameter) = (parameter["in"].as_str().unwrap(), parameter["name"].as_str().unwrap());
                let is_tried = match kind {
                    "path" => true,
                    "query" => requests.iter().any(|request| request.has_parameter(parameter)),
                    _ => NEUTRAL.contains(&parameter) || requests.iter().any(|request| request.has_header(parameter)),
                };
                assert!(is_tried, "no attack on {name} uses {parameter}: add one to tenants/attacks.rs");
            }
        }
    }
    for Attack { operation, .. } in ATTACKS {
        assert!(operations.contains(operation), "{operation} is no operation of the description");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_learns_and_moves_nothing_of_another_one_by_any_operation() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let (foreign, own) = (stage.foreign().await?, stage.own().await?);
    let mut findings = Vec::new();
    for attack in ATTACKS {
        for target in stage.targets() {
            if let Err(error) = attacked(&stage, attack, target).await {
                findings.push(format!("{} {}: {error:#}", attack.operation, target.account));
            }
        }
    }
    ensure!(stage.own().await? == own, "a part of an attack was executed on accounts of the attacker");

    // An id or a key that another tenant has used is treated as one that was never used.
    for (operation, request) in REUSED_IDS {
        for id in stage.used_ids() {
            let answer = stage.attack(&request(&stage, id)).await?;
            if answer.status != 201 || answer.is_replay() {
                findings.push(format!(
                    "{operation} with an id of another tenant: {} {}",
                    answer.status,
                    answer.text()
                ));
            }
        }
    }
    let under_key = stage.attack(&under_key(USED_KEY)).await?;
    ensure!(under_key.status == 201 && !under_key.is_replay(), "{}", under_key.text());
    for request in OWN_READS {
        let request = request(&stage);
        let answer = stage.attack(&request).await?;
        if answer.status != 200 {
            findings.push(format!("{}: {} {}", request.path, answer.status, answer.text()));
        }
        findings.extend(stage.secret_in(&answer.text()).map(|secret| format!("{} shows {secret}", request.path)));
    }
    // After the ids were used again, too.
    ensure!(stage.foreign().await? == foreign, "something of another tenant has changed");
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    stage.finish().await
}

/// Sends an attack on something that exists and on something that does not.
async fn attacked(stage: &Stage, attack: &Attack, target: &Target) -> anyhow::Result<()> {
    let request = (attack.request)(target);
    let missing = target.missing();
    let (found, absent) = (stage.attack(&request).await?, stage.attack(&(attack.request)(&missing)).await?);
    let said = || format!("{} {}: {} {}", request.method, request.path, found.status, found.text());
    ensure!(format!("{} {}", found.status, found.code()) == attack.expected, "{}, not {}", said(), attack.expected);
    let (found_form, absent_form) = (form(&found, target)?, form(&absent, &missing)?);
    ensure!(
        found_form == absent_form,
        "{} {}\n  exists: {found_form}\n  absent: {absent_form}",
        request.method,
        request.path
    );
    if let Some(secret) = stage.secret_in(&found.text()) {
        return Err(anyhow::anyhow!("it shows {secret}")).with_context(said);
    }
    Ok(())
}
