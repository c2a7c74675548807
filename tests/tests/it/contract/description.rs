//! Tests of the description of the API against a live cluster. They play its examples, generate clients from it and use them, and let
//! schemathesis send what the description allows and forbids.

mod generated_clients;
pub mod packages;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::Value;
use testkit::{cluster::Cluster, programs::program, seed::Seed};
use uuid::Uuid;

use self::packages::Packages;
use super::{
    api::{Api, Call, NDJSON},
    stage::Findings,
};

/// The committed copy of the description, which a unit test of the router compares with the code.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_are_answered_as_described() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 1).await?;
    let api = Api::connect(cluster.status().routers.iter().map(|router| router.url.clone()).collect()).await?;
    play_examples(&api).await?;
    cluster.verify_and_finish().await
}

/// The test does not share its cluster, because schemathesis sends whatever the description allows and forbids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_nothing() -> anyhow::Result<()> {
    let seed = Seed::announce("schemathesis");
    let schemathesis = Schemathesis::ensure().await?;
    let cluster = Cluster::start(3, 1).await?;
    schemathesis.finds_nothing(&cluster.status().routers[0].url, &seed).await?;
    cluster.verify_and_finish().await
}

/// A folder in cargo's target folder, for programs that tests install.
fn target_folder(name: &str) -> anyhow::Result<PathBuf> {
    let shardctl = program("shardctl")?;
    let folder = shardctl.ancestors().nth(2).context("the built programs are not in a target folder")?.join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Returns the folder `name` in `home`. `install` fills it unless an earlier run has. A file lock keeps two tests, which are processes,
/// from filling it at the same time.
async fn installed(
    home: &Path,
    name: &str,
    install: impl AsyncFnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let lock = std::fs::File::create(home.join("lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let folder = home.join(name);
    if !folder.exists() {
        // A draft that exists is the rest of an interrupted installation.
        let draft = home.join("draft");
        if draft.exists() {
            std::fs::remove_dir_all(&draft)?;
        }
        install(&draft).await?;
        std::fs::rename(&draft, &folder)?;
    }
    lock.unlock()?;
    Ok(folder)
}

/// Members whose values differ between runs. Only their types are compared.
const OWN: [&str; 4] = ["shard", "position", "request_id", "at"];
/// The end of the names of times, which are compared as [`OWN`] is.
const OWN_ENDING: &str = "_at";

/// The header that an example may give.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

async fn play_examples(api: &Api) -> anyhow::Result<()> {
    let document = api.description().document();
    let story = document["x-walkthrough"].as_array().context("the description names no examples")?;
    let mut findings = Findings::default();
    for step in story {
        let name = step["example"].as_str().unwrap_or_default();
        findings.note(name, play(api, document, step, name).await);
    }
    ensure!(!story.is_empty(), "there are no examples");
    findings.conclude()
}

async fn play(api: &Api, document: &Value, step: &Value, name: &str) -> anyhow::Result<()> {
    let (method, path, operation) = operation(document, &step["operation"])?;
    let reply = api.send(call(method, path, operation, name)?).await?;
    ensure!(step["status"] == reply.status, "answered {}: {}", reply.status, reply.body);
    let media_type = reply.header("content-type");
    let described = &operation["responses"][reply.status.to_string()]["content"][media_type]["examples"][name];
    compare(&described["value"], &reply.body, "")
}

/// The method and the path of the operation with this id, and its description.
fn operation<'a>(document: &'a Value, id: &Value) -> anyhow::Result<(Method, &'a str, &'a Value)> {
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            if operation["operationId"] == *id {
                return Ok((Method::from_bytes(method.to_uppercase().as_bytes())?, path, operation));
            }
        }
    }
    bail!("there is no operation {id}")
}

/// The request of an example.
fn call(method: Method, path: &str, operation: &Value, name: &str) -> anyhow::Result<Call> {
    let mut path = path.to_owned();
    let mut key = None;
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let example = &parameter["examples"][name]["value"];
        let value = match example {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let parameter_name = parameter["name"].as_str().unwrap_or_default();
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{parameter_name}}}"), &value),
            Some("query") => {
                let separator = if path.contains('?') { '&' } else { '?' };
                write!(path, "{separator}{parameter_name}={value}")?;
            }
            Some("header") if parameter_name == IDEMPOTENCY_KEY => key = Some(value),
            place => bail!("an example gives {parameter_name} in {place:?}"),
        }
    }
    ensure!(!path.contains('{'), "the example leaves out a part of {path}");
    let mut call = match body(operation, name) {
        None => Call::bare(method, &path, ""),
        Some((media_type, body)) if media_type == NDJSON => {
            Call::bare(method, &path, lines(body)).header("content-type", NDJSON)
        }
        Some((_, body)) => Call::new(method, &path, body.to_string()),
    };
    if let Some(key) = key {
        call = call.header("idempotency-key", key);
    }
    Ok(call)
}

/// The body of an example, with its media type.
fn body<'a>(operation: &'a Value, name: &str) -> Option<(&'a str, &'a Value)> {
    let request = &operation["requestBody"];
    let contents = [&request["content"], &request["x-content"]].into_iter().filter_map(Value::as_object);
    contents
        .flatten()
        .find_map(|(media_type, content)| Some((media_type.as_str(), content["examples"].get(name)?.get("value")?)))
}

fn lines(body: &Value) -> String {
    body.as_array().into_iter().flatten().map(|line| format!("{line}\n")).collect()
}

/// Compares an answer with the described one, except for values that differ between runs.
fn compare(described: &Value, found: &Value, place: &str) -> anyhow::Result<()> {
    match (described, found) {
        (Value::Object(described), Value::Object(found)) => {
            for name in described.keys() {
                ensure!(found.contains_key(name), "{place}/{name} is missing");
            }
            for (name, found) in found {
                let described =
                    described.get(name).with_context(|| format!("{place}/{name} is not in the example"))?;
                let place = format!("{place}/{name}");
                if OWN.contains(&name.as_str()) || name.ends_with(OWN_ENDING) {
                    ensure!(kind(described) == kind(found), "{place} is {found}, in the example {described}");
                } else {
                    compare(described, found, &place)?;
                }
            }
            Ok(())
        }
        (Value::Array(described), Value::Array(found)) if described.len() == found.len() => {
            let pairs = described.iter().zip(found).enumerate();
            pairs
                .into_iter()
                .try_for_each(|(index, (described, found))| compare(described, found, &format!("{place}/{index}")))
        }
        (described, found) => {
            ensure!(described == found, "{place} is {found}, in the example {described}");
            Ok(())
        }
    }
}

fn kind(value: &Value) -> std::mem::Discriminant<Value> {
    std::mem::discriminant(value)
}

/// The time for which schemathesis generates random requests after its fixed ones.
const BUDGET_S: u64 = 60;
/// The time that schemathesis may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(500);

/// The folder with configuration, hooks and requirements.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis");

/// schemathesis in exactly the versions of its `requirements.txt`, ready to run.
#[derive(Debug)]
struct Schemathesis(Packages);

impl Schemathesis {
    async fn ensure() -> anyhow::Result<Self> {
        Ok(Self(Packages::ensure("schemathesis", &Path::new(FOLDER).join("requirements.txt")).await?))
    }

    /// Runs all checks in all phases against a router.
    async fn finds_nothing(&self, url: &str, seed: &Seed) -> anyhow::Result<()> {
        let folder = std::env::temp_dir().join(format!("shardledger-schemathesis-{}", Uuid::now_v7().simple()));
        std::fs::create_dir_all(&folder)?;
        let said = self.run(url, seed, &folder).await;
        std::fs::remove_dir_all(&folder)?;
        let (success, said) = said?;
        ensure!(success, "{said}\nschemathesis has findings; the seed is at the end");
        let summary = said.find("= SUMMARY =").map_or(said.as_str(), |at| &said[at..]);
        eprintln!("schemathesis {summary}");
        Ok(())
    }

    /// Runs schemathesis in this folder, because it leaves files where it runs.
    async fn run(&self, url: &str, seed: &Seed, folder: &Path) -> anyhow::Result<(bool, String)> {
        let seed = u32::try_from(seed.random().bits() >> 32)?;
        let mut command = self.0.command(None)?;
        command
            .args(["-m", "schemathesis.cli", "--config-file"])
            .arg(Path::new(FOLDER).join("schemathesis.toml"))
            .args(["run", &format!("{url}/openapi.json")])
            .args(["--seed", &seed.to_string(), "--max-time", &BUDGET_S.to_string()])
            .args(["--no-color", "--output-truncate", "false"])
            .env("SCHEMATHESIS_HOOKS", Path::new(FOLDER).join("hooks.py"))
            // The terminal is so wide that no line of the report is folded.
            .env("COLUMNS", "200")
            .current_dir(folder);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("schemathesis did not end within {PATIENCE:?}"))?
            .context("cannot run schemathesis")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }
}
