//! `docs/api.md`, held against what is there: its examples are run from top to bottom on a new cluster, as a reader would,
//! and must print what it shows; its table of codes has all of them.

mod page;

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::cluster::Cluster;

use self::page::{Example, Shown};

const PAGE: &str = include_str!("../../../docs/api.md");
/// The only table of codes there is.
const CODES: &str = include_str!("../../../router/src/http/problem/code.rs");

/// The address in the page: what `make up` prints.
const ADDRESS: &str = "http://127.0.0.1:8080";
/// As many as `make up` starts: which accounts share one shows in the answers.
const SHARDS: u16 = 4;
/// Printed after each example.
const MARK: &str = "=== end of an example ===";
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_examples_print_what_it_shows_and_it_is_complete() -> anyhow::Result<()> {
    let examples = page::examples(PAGE)?;
    ensure!(examples.len() > 20, "{} examples were found", examples.len());
    let cluster = Cluster::start(SHARDS, 1).await?;
    let printed = run(&examples, &cluster.status().routers[0].url).await?;
    let findings: Vec<String> = examples
        .iter()
        .zip(printed)
        .filter_map(|(example, printed)| {
            let differs = example.shown.compare(&printed).err()?;
            Some(format!("docs/api.md:{}: {differs:#}\nprinted:\n{}", example.line, printed.trim()))
        })
        .collect();
    ensure!(findings.is_empty(), "{} examples differ\n{}", findings.len(), findings.join("\n\n"));
    names_all_of(&cluster.client().get(0, "/openapi.json").await?)?;
    cluster.verify().await?;
    cluster.finish().await
}

fn names_all_of(description: &Value) -> anyhow::Result<()> {
    let (paths, schemas) = (&description["paths"], &description["components"]["schemas"]);
    let members = |value: &Value| value.as_object().cloned().unwrap_or_default().into_iter();
    let mut missing: Vec<String> =
        members(paths).map(|(path, _)| path).filter(|path| !PAGE.contains(path.as_str())).collect();
    for (schema, described) in members(schemas) {
        let unnamed =
            |member: &String| !PAGE.contains(&format!("`{member}`")) && !PAGE.contains(&format!("\"{member}\":"));
        missing.extend(
            members(&described["properties"]).map(|(m, _)| m).filter(unnamed).map(|m| format!("{schema}.{m}")),
        );
    }
    ensure!(members(paths).count() > 10 && members(schemas).count() > 10, "is that the description? {description}");
    ensure!(missing.is_empty(), "docs/api.md does not name {missing:?}");
    Ok(())
}

/// One shell for all of them, because later ones use variables of earlier ones. Gives what each printed.
async fn run(examples: &[Example], address: &str) -> anyhow::Result<Vec<String>> {
    let mut script = String::new();
    for example in examples {
        script += &format!("{}\nprintf '\\n%s\\n' '{MARK}'\n", example.script.replace(ADDRESS, address));
    }
    let shell = tokio::process::Command::new("sh")
        .args(["-u", "-c", &script])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, shell).await.context("the examples do not end")??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    let mut printed: Vec<String> = String::from_utf8(output.stdout)?.split(MARK).map(str::to_owned).collect();
    printed.pop();
    ensure!(printed.len() == examples.len(), "{} of {} examples ended", printed.len(), examples.len());
    Ok(printed)
}

impl Shown {
    fn compare(&self, printed: &str) -> anyhow::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Text(text) => {
                let lines =
                    |text: &str| text.trim().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
                ensure!(lines(text) == lines(printed), "it prints other text");
                Ok(())
            }
            Self::Json(shown) => {
                let printed = page::values(printed).context("it prints no JSON")?;
                ensure!(shown.len() == printed.len(), "it prints {} values, not {}", printed.len(), shown.len());
                for (shown, printed) in shown.iter().zip(printed) {
                    ensure!(lasting(shown.clone()) == lasting(printed), "it prints other JSON");
                }
                Ok(())
            }
        }
    }
}

/// The value without what is different in every run: times, journal positions, request ids.
fn lasting(mut value: Value) -> Value {
    match &mut value {
        Value::Array(items) => items.iter_mut().for_each(|item| *item = lasting(item.take())),
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                *member = match name.as_str() {
                    "position" | "request_id" => json!(name),
                    _ if member.as_str().is_some_and(|text| text.len() == TIME.len() && text.ends_with('Z')) => {
                        json!(TIME)
                    }
                    _ => lasting(member.take()),
                };
            }
        }
        _ => {}
    }
    value
}

/// Any time.
const TIME: &str = "0000-00-00T00:00:00.000000Z";

#[test]
fn it_explains_every_code() -> anyhow::Result<()> {
    let router = CODES.split("\", S::").filter_map(|text| text.rsplit_once("(\"")).map(|(_, code)| code);
    let mut codes: Vec<&str> = router.chain(ledger::Refusal::ALL.map(ledger::Refusal::as_str)).collect();
    // What follows the last row.
    codes.retain(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    ensure!(codes.len() > 40, "{} codes were found: {codes:?}", codes.len());
    let rows = page::section(PAGE, "## All codes")?;
    let missing: Vec<&str> = codes.into_iter().filter(|code| !rows.contains(&format!("`{code}`"))).collect();
    ensure!(missing.is_empty(), "docs/api.md does not explain {missing:?}");
    Ok(())
}
