//! Tables of small scripts of holds, captures, releases and reversals. Every script is played with both accounts on one shard and on two,
//! and the answers must not differ.
//!
//! A script has a debit account, a credit account (both as [`Stage::account`] takes them) and steps, each with its answer:
//!
//! | step | does |
//! |---|---|
//! | `hold 6.00 [10s]`, `pay 6.00` | from debit to credit; later steps refer to this hold or payment |
//! | `capture [2.00] [more]`, `release` | the hold; without an amount all of it, with `more` not the final capture |
//! | `reverse [2.00]` | the last payment or capture |
//! | `reverse-it` | the last reversal |
//! | `again` | the last request, once more |
//! | `again with 1.00` | the same with another amount |
//! | `spend 2.00` | from credit to a third account |
//! | `debit frozen`, `credit max=5.00` … | changes the account |
//! | `expire` | waits until the hold has expired |
//! | `see debit`, `see credit` | `posted held available` |
//! | `see hold`, `see payment` | as stored: `status captured remaining`, `status reversed_amount` |

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use testkit::{client::account_path, wait::until};
use uuid::Uuid;

use super::{
    api::{Call, Reply},
    stage::{Findings, Shard, Stage, terms, with_roles},
};

/// The time within which a hold must have expired. The longest hold of a script lasts ten seconds. Other tests measure how soon after its
/// time a hold expires.
const EXPIRED_WITHIN: Duration = Duration::from_secs(60);

type ScriptStep = (&'static str, &'static str);
type ContractScript = (&'static str, &'static str, &'static str, &'static [ScriptStep]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn a_hold_is_decided_by_its_debit_side_alone() -> anyhow::Result<()> {
    play_all(&[
        ("a hold reserves", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("see debit", "10.00 6.00 4.00"), ("see credit", "0.00 0.00 0.00"),
            ("again", "200 held replayed"), ("again with 7.00", "422 idempotency_mismatch field=amount"),
            ("pay 4.01", "422 insufficient_funds side=debit"), ("pay 4.00", "201 posted"), ("see hold", "held 0.00 6.00")]),
        ("a hold is refused by its debit side", "USD posted=10", "USD", &[
            ("hold 10.01", "422 insufficient_funds side=debit"), ("again", "422 insufficient_funds side=debit replayed"),
            ("see hold", "rejected 0.00 0.00"), ("capture", "404 hold_not_found"), ("release", "404 hold_not_found")]),
        ("a hold may use the overdraft", "USD overdraft=5", "USD", &[("hold 5.00", "201 held"), ("see debit", "0.00 5.00 0.00")]),
        ("no debit account", "none", "USD", &[("hold 1.00", "422 account_not_found side=debit"), ("again", "422 account_not_found side=debit")]),
        ("another asset", "EUR posted=10", "USD", &[("hold 1.00", "422 asset_mismatch side=debit")]),
        ("frozen", "USD posted=10 frozen", "USD", &[("hold 1.00", "422 account_frozen side=debit")]),
        ("closed", "USD closed", "USD", &[("hold 1.00", "422 account_closed side=debit")]),
        ("less than the ledger can hold", "USD posted=-92233720368547758.07 overdraft=unlimited", "USD", &[("hold 0.02", "422 balance_overflow side=debit")]),
        ("the credit side is not looked at", "USD posted=10", "none", &[("hold 1.00", "201 held"), ("release", "200 released")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn captures_take_what_a_hold_has_and_not_more() -> anyhow::Result<()> {
    play_all(&[
        ("captured whole", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("capture", "201 posted"), ("again", "200 posted replayed"),
            ("see debit", "4.00 0.00 4.00"), ("see credit", "6.00 0.00 6.00"), ("see hold", "captured 6.00 0.00"),
            ("capture", "409 hold_captured"), ("again", "409 hold_captured replayed"), ("release", "409 hold_captured")]),
        ("captured in part, the rest released", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("capture 2.00", "201 posted"), ("see debit", "8.00 0.00 8.00"), ("see hold", "captured 2.00 0.00"),
            ("again with 3.00", "422 idempotency_mismatch field=amount"), ("capture 1.00", "409 hold_captured")]),
        ("captured in parts", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("capture 2.00 more", "201 posted"), ("see hold", "held 2.00 4.00"), ("see debit", "8.00 4.00 4.00"),
            ("capture 3.00 more", "201 posted"), ("capture 1.01", "422 exceeds_hold"), ("again", "422 exceeds_hold replayed"),
            ("see hold", "held 5.00 1.00"), ("capture more", "201 posted"), ("see hold", "captured 6.00 0.00"), ("see credit", "6.00 0.00 6.00")]),
        ("captured in part, then released", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("capture 2.00 more", "201 posted"), ("release", "200 released"), ("again", "200 released replayed"),
            ("see hold", "released 2.00 0.00"), ("see debit", "8.00 0.00 8.00"), ("capture", "409 hold_released")]),
        ("too much", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("capture 6.01", "422 exceeds_hold"), ("see hold", "held 0.00 6.00"), ("capture 6.00", "201 posted")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn a_capture_is_a_transfer_between_the_accounts_of_its_hold() -> anyhow::Result<()> {
    play_all(&[
        ("frozen since", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("debit frozen", "200 frozen"), ("capture", "422 account_frozen side=debit"), ("see hold", "held 0.00 6.00"),
            ("debit closed", "409 account_not_empty"), ("debit open", "200 open"), ("again", "422 account_frozen side=debit replayed"), ("capture", "201 posted")]),
        ("released while frozen", "USD posted=10", "USD", &[("hold 6.00", "201 held"), ("debit frozen", "200 frozen"), ("release", "200 released")]),
        ("no credit account", "USD posted=10", "none", &[
            ("hold 6.00", "201 held"), ("capture", "422 account_not_found side=credit"), ("again", "422 account_not_found side=credit replayed"),
            ("see hold", "held 0.00 6.00"), ("see debit", "10.00 6.00 4.00"), ("release", "200 released")]),
        ("another asset there", "USD posted=10", "EUR", &[("hold 6.00", "201 held"), ("capture", "422 asset_mismatch side=credit"), ("see hold", "held 0.00 6.00")]),
        ("closed there", "USD posted=10", "USD closed", &[
            ("hold 6.00", "201 held"), ("capture 2.00", "422 account_closed side=credit"), ("see hold", "held 0.00 6.00"), ("see debit", "10.00 6.00 4.00"),
            ("credit open", "200 open"), ("capture 2.00", "201 posted"), ("see debit", "8.00 0.00 8.00")]),
        ("frozen there", "USD posted=10", "USD frozen", &[("hold 6.00", "201 held"), ("capture", "201 posted")]),
        ("beyond max_balance", "USD posted=10", "USD max=5.00", &[
            ("hold 6.00", "201 held"), ("capture", "422 limit_exceeded side=credit"), ("capture 5.00", "201 posted"), ("see credit", "5.00 0.00 5.00")]),
        ("more than the ledger can hold", "USD posted=10", "USD posted=92233720368547758.07", &[
            ("hold 1.00", "201 held"), ("capture 0.01", "422 balance_overflow side=credit"), ("see hold", "held 0.00 1.00")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_first_rule_that_a_capture_breaks_is_answered() -> anyhow::Result<()> {
    play_all(&[
        ("frozen, and too much", "USD posted=10", "USD", &[("hold 6.00", "201 held"), ("debit frozen", "200 frozen"), ("capture 9.00", "422 account_frozen side=debit")]),
        ("closed there, and too much", "USD posted=10", "USD closed", &[("hold 6.00", "201 held"), ("capture 9.00", "422 account_closed side=credit")]),
        ("no credit account, and released", "USD posted=10", "none", &[("hold 6.00", "201 held"), ("release", "200 released"), ("capture 1.00", "422 account_not_found side=credit")]),
        ("beyond max_balance, and too much", "USD posted=10", "USD max=8.00", &[("hold 6.00", "201 held"), ("capture 9.00", "422 limit_exceeded side=credit"), ("capture 7.00", "422 exceeds_hold")]),
        ("debit closed, and captured", "USD posted=6", "USD", &[
            ("hold 6.00", "201 held"), ("capture", "201 posted"), ("debit closed", "200 closed"), ("capture 1.00", "422 account_closed side=debit"), ("release", "409 hold_captured")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn reversals_give_back_what_was_paid_and_not_more() -> anyhow::Result<()> {
    play_all(&[
        ("reversed whole", "USD posted=10", "USD", &[
            ("pay 6.00", "201 posted"), ("reverse", "201 posted"), ("again", "200 posted replayed"), ("see payment", "reversed 6.00"),
            ("see debit", "10.00 0.00 10.00"), ("see credit", "0.00 0.00 0.00"), ("again with 1.00", "422 idempotency_mismatch field=amount")]),
        ("reversed in parts", "USD posted=10", "USD posted=9", &[
            ("pay 6.00", "201 posted"), ("reverse 2.00", "201 posted"), ("see payment", "posted 2.00"), ("reverse 4.01", "422 already_reversed"),
            ("again", "422 already_reversed replayed"), ("reverse", "201 posted"), ("see payment", "reversed 6.00"), ("reverse 0.01", "422 already_reversed"),
            ("reverse", "422 already_reversed"), ("see debit", "10.00 0.00 10.00"), ("see credit", "9.00 0.00 9.00")]),
        ("more than was paid", "USD posted=10", "USD posted=9", &[("pay 6.00", "201 posted"), ("reverse 6.01", "422 already_reversed"), ("see payment", "posted")]),
        ("the money has left", "USD posted=10", "USD", &[
            ("pay 6.00", "201 posted"), ("spend 5.00", "201 posted"), ("reverse", "422 insufficient_funds side=debit"), ("again", "422 insufficient_funds side=debit replayed"),
            ("reverse 1.00", "201 posted"), ("see payment", "posted 1.00"), ("see debit", "5.00 0.00 5.00")]),
        ("a rejected payment", "USD posted=1", "USD posted=9", &[("pay 6.00", "422 insufficient_funds side=debit"), ("reverse 1.00", "422 already_reversed"), ("reverse", "422 already_reversed")]),
        ("a capture reversed", "USD posted=10", "USD", &[
            ("hold 6.00", "201 held"), ("capture 5.00", "201 posted"), ("reverse 2.00", "201 posted"), ("see payment", "posted 2.00"),
            ("see hold", "captured 5.00 0.00"), ("see debit", "7.00 0.00 7.00")]),
        ("a reversal reversed", "USD posted=10", "USD", &[
            ("pay 6.00", "201 posted"), ("reverse", "201 posted"), ("reverse-it 1.00", "201 posted"), ("see payment", "reversed 6.00"), ("see credit", "1.00 0.00 1.00")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn a_reversal_is_a_transfer_with_the_accounts_exchanged() -> anyhow::Result<()> {
    play_all(&[
        ("payee frozen", "USD posted=10", "USD", &[("pay 6.00", "201 posted"), ("credit frozen", "200 frozen"), ("reverse", "422 account_frozen side=debit")]),
        ("payee closed", "USD posted=10", "USD", &[("pay 6.00", "201 posted"), ("spend 6.00", "201 posted"), ("credit closed", "200 closed"), ("reverse", "422 account_closed side=debit")]),
        ("payer frozen", "USD posted=10", "USD", &[("pay 6.00", "201 posted"), ("debit frozen", "200 frozen"), ("reverse", "201 posted")]),
        ("payer closed", "USD posted=6", "USD", &[
            ("pay 6.00", "201 posted"), ("debit closed", "200 closed"), ("reverse", "422 account_closed side=credit"), ("see credit", "6.00 0.00 6.00"),
            ("see payment", "posted"), ("debit open", "200 open"), ("reverse", "201 posted")]),
        ("beyond the payer's max_balance", "USD posted=10", "USD", &[("pay 6.00", "201 posted"), ("debit max=5.00", "200 open"), ("reverse", "422 limit_exceeded side=credit"), ("reverse 1.00", "201 posted")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_first_rule_that_a_reversal_breaks_is_answered() -> anyhow::Result<()> {
    play_all(&[
        ("money has left, and too much", "USD posted=10", "USD", &[("pay 6.00", "201 posted"), ("reverse 6.01", "422 insufficient_funds side=debit")]),
        ("payer closed, and too much", "USD posted=6", "USD posted=9", &[("pay 6.00", "201 posted"), ("debit closed", "200 closed"), ("reverse 7.00", "422 account_closed side=credit")]),
        ("payer closed, and nothing left", "USD posted=6", "USD posted=9", &[
            ("pay 6.00", "201 posted"), ("reverse", "201 posted"), ("debit max=6.00", "200 open"), ("reverse 1.00", "422 limit_exceeded side=credit"),
            ("credit frozen", "200 frozen"), ("reverse", "422 account_frozen side=debit")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn a_hold_keeps_its_account_open_and_its_overdraft() -> anyhow::Result<()> {
    play_all(&[
        ("a hold keeps an account open", "USD overdraft=5", "USD", &[("hold 5.00", "201 held"), ("debit closed", "409 account_not_empty"), ("release", "200 released"), ("debit closed", "200 closed")]),
        ("a hold keeps its overdraft", "USD overdraft=5", "USD", &[("hold 5.00", "201 held"), ("debit overdraft=4.00", "422 insufficient_funds"), ("release", "200 released"), ("debit overdraft=4.00", "200 open")]),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn a_hold_whose_time_is_over_expires_and_is_captured_no_more() -> anyhow::Result<()> {
    play_all(&[
        ("expired", "USD posted=10", "USD", &[
            ("hold 6.00 1s", "201 held"), ("expire", ""), ("see debit", "10.00 0.00 10.00"), ("see hold", "expired 0.00 0.00"),
            ("capture", "409 hold_expired"), ("again", "409 hold_expired replayed"), ("release", "409 hold_expired")]),
        ("captured in part, then expired", "USD posted=10", "USD", &[
            ("hold 6.00 10s", "201 held"), ("capture 2.00 more", "201 posted"), ("expire", ""), ("see hold", "expired 2.00 0.00"),
            ("see debit", "8.00 0.00 8.00"), ("capture 1.00", "409 hold_expired")]),
        ("expired while frozen", "USD posted=10", "USD", &[("hold 6.00 1s", "201 held"), ("debit frozen", "200 frozen"), ("expire", ""), ("see debit", "10.00 0.00 10.00")]),
    ]).await
}

/// Plays each script with both accounts on one shard and on two.
async fn play_all(scripts: &[ContractScript]) -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let played = scripts.iter().map(async |script| join(play(&stage, script, 0), play(&stage, script, 1)).await);
    let mut findings = Findings::default();
    for ((name, ..), (local, cross_shard)) in scripts.iter().zip(join_all(played).await) {
        match (local, cross_shard) {
            (Ok(local), Ok(cross_shard)) if local != cross_shard => {
                findings.note(name, Err::<(), _>(anyhow::anyhow!("differs:\n  {local:#?}\n  {cross_shard:#?}")));
            }
            (local, cross_shard) => {
                findings.note(format!("{name}, on one shard"), local);
                findings.note(format!("{name}, on two"), cross_shard);
            }
        }
    }
    findings.conclude()?;
    stage.finish().await
}

/// Plays a script and returns everything that a client sees of it, without names, ids and times.
async fn play(stage: &Stage, script: &ContractScript, credit_shard: Shard) -> anyhow::Result<Vec<String>> {
    let (_, debit, credit, steps) = *script;
    let mut actors = Actors {
        stage,
        debit: stage.account(0, debit).await?,
        credit: stage.account(credit_shard, credit).await?,
        somebody: stage.account(credit_shard, "USD").await?,
        hold: Uuid::nil(),
        payment: (Uuid::nil(), false),
        reversal: Uuid::nil(),
        last: None,
        ids: Vec::new(),
    };
    let mut seen = Vec::new();
    for (step, expected) in steps {
        let shown = actors.take(step, expected).await.with_context(|| format!("step `{step}`"))?;
        seen.push(format!("{step}: {shown}"));
    }
    Ok(seen)
}

/// The accounts of a script, and what its steps refer to.
struct Actors<'s> {
    stage: &'s Stage,
    debit: String,
    credit: String,
    somebody: String,
    hold: Uuid,
    /// The last payment or capture, and whether it is a capture.
    payment: (Uuid, bool),
    reversal: Uuid,
    last: Option<(String, Value)>,
    ids: Vec<Uuid>,
}

impl Actors<'_> {
    async fn take(&mut self, step: &str, expected: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = step.split(' ').collect();
        let amount = words.iter().find(|word| word.parse::<f64>().is_ok()).copied();
        match words.as_slice() {
            ["see", what] => {
                let shown = self.see(what).await?;
                ensure!(shown == expected, "expected {expected:?}, not {shown:?}");
                Ok(shown)
            }
            ["expire"] => self.expire().await,
            ["again", changed @ ..] => {
                let (path, mut body) = self.last.clone().context("`again` needs a request before it")?;
                if !changed.is_empty() {
                    body["amount"] = json!(amount);
                }
                self.send(&path, &body, expected).await
            }
            [side @ ("debit" | "credit"), change] => {
                let change = match change.split_once('=') {
                    Some(("max", limit)) => json!({"max_balance": limit}),
                    Some((name, limit)) => json!({name: limit}),
                    None => json!({"status": change}),
                };
                let account = if *side == "debit" { &self.debit } else { &self.credit };
                let reply = self.stage.api.expect(Call::patch(&account_path(account), &change), expected).await?;
                Ok(reply.summary())
            }
            [verb, ..] => {
                let (path, body) = self.order(verb, amount, &words)?;
                self.last = Some((path.clone(), body.clone()));
                self.send(&path, &body, expected).await
            }
            [] => bail!("the step is empty"),
        }
    }

    /// The path and the body of the request that a step orders.
    fn order(&mut self, verb: &str, amount: Option<&str>, words: &[&str]) -> anyhow::Result<(String, Value)> {
        let id = Uuid::now_v7();
        self.ids.push(id);
        let mut part = json!({"id": id});
        if let Some(amount) = amount {
            part["amount"] = json!(amount);
        }
        let between = |debit: &str, credit: &str| -> anyhow::Result<Value> {
            Ok(terms(id, debit, credit, amount.context("no amount")?, "USD"))
        };
        Ok(match verb {
            "pay" => {
                self.payment = (id, false);
                ("/v1/transfers".to_owned(), between(&self.debit, &self.credit)?)
            }
            "spend" => ("/v1/transfers".to_owned(), between(&self.credit, &self.somebody)?),
            "hold" => {
                self.hold = id;
                let mut body = between(&self.debit, &self.credit)?;
                body["metadata"] = json!({"order": "7"});
                let seconds = words.iter().find_map(|word| word.strip_suffix('s')?.parse::<u32>().ok());
                if let Some(seconds) = seconds {
                    body["expires_in_s"] = json!(seconds);
                }
                ("/v1/holds".to_owned(), body)
            }
            "capture" => {
                self.payment = (id, true);
                if words.contains(&"more") {
                    part["final"] = json!(false);
                }
                (format!("/v1/holds/{}/capture", self.hold), part)
            }
            "release" => (format!("/v1/holds/{}/release", self.hold), json!({})),
            "reverse" => {
                self.reversal = id;
                (format!("/v1/transfers/{}/reverse", self.payment.0), part)
            }
            "reverse-it" => (format!("/v1/transfers/{}/reverse", self.reversal), part),
            other => bail!("there is no step {other}"),
        })
    }

    async fn send(&self, path: &str, body: &Value, expected: &str) -> anyhow::Result<String> {
        let reply = self.stage.api.expect(Call::post(path, body), expected).await?;
        Ok(self.faceless(&reply))
    }

    async fn see(&self, what: &str) -> anyhow::Result<String> {
        let (path, members): (String, &[&str]) = match what {
            "debit" => (account_path(&self.debit), &["posted", "held", "available"]),
            "credit" => (account_path(&self.credit), &["posted", "held", "available"]),
            "hold" => (format!("/v1/holds/{}", self.hold), &["status", "captured", "remaining"]),
            "payment" => (format!("/v1/transfers/{}", self.payment.0), &["status", "reversed_amount"]),
            other => bail!("`see` knows no {other}"),
        };
        let reply = self.stage.api.send(Call::get(&path)).await?;
        expect!(reply.status == 200, "{}", reply.body);
        if what == "payment" && reply.body["reversed_amount"].is_string() {
            expect!(reply.body["reversed_by"].as_array().is_some_and(|ids| !ids.is_empty()), "{}", reply.body);
        }
        let words: Vec<&str> = members.iter().filter_map(|member| reply.body[member].as_str()).collect();
        Ok(words.join(" "))
    }

    async fn expire(&self) -> anyhow::Result<String> {
        let call = Call::get(&format!("/v1/holds/{}", self.hold));
        until("the hold has expired", EXPIRED_WITHIN, async || {
            let status = self.stage.api.send(call.clone()).await?.body["status"].clone();
            Ok((status == "expired").then(|| "expired".to_owned()))
        })
        .await
    }

    /// The answer without the parts that may differ between accounts on different shards or between two plays of one script.
    fn faceless(&self, reply: &Reply) -> String {
        let mut body = reply.body.clone();
        hide(&mut body);
        let mut text = body.to_string();
        for (index, id) in self.ids.iter().enumerate() {
            text = text.replace(&id.to_string(), &format!("ID{index}"));
        }
        let names = [(&self.debit, "DEBIT"), (&self.credit, "CREDIT"), (&self.somebody, "SOMEBODY")];
        let text = with_roles(text, names.map(|(name, role)| (name.as_str(), role)).into());
        format!("{} {text}", reply.summary())
    }
}

/// Removes times, places and versions. In a cross-shard refusal, the money goes into transit and back, so the payer has two more entries.
fn hide(body: &mut Value) {
    let Some(members) = body.as_object_mut() else { return };
    for member in ["scope", "steps", "shard", "slot", "request_id", "version"] {
        members.remove(member);
    }
    for (name, value) in members.iter_mut() {
        if name.ends_with("_at") && value.is_string() {
            *value = json!("TIME");
        }
        hide(value);
    }
}
