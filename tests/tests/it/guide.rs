//! Compares `docs/api.md` with the product. Its examples run from top to bottom on a new cluster, as a reader runs them, and must print
//! what the page shows. Its table of codes must have every code.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use testkit::cluster::Cluster;

const PAGE: &str = include_str!("../../../docs/api.md");
const DESCRIPTION: &str = include_str!("../../../docs/openapi.json");
/// The source of the router's codes.
const CODES: &str = include_str!("../../../router/src/http/problem/code.rs");

/// The address in the page, which is the one that `make up` prints.
const ADDRESS: &str = "http://127.0.0.1:8080";
/// The number of shards that `make up` starts. The answers show which accounts share a shard.
const SHARDS: u16 = 4;
/// The line that is printed after each example.
const MARK: &str = "=== end of an example ===";
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_of_the_guide_print_what_it_shows() -> anyhow::Result<()> {
    let examples = examples(PAGE)?;
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
    cluster.verify_and_finish().await
}

/// A unit test of the router compares `docs/openapi.json` with the code.
#[test]
fn the_guide_names_every_path_and_every_member_of_the_description() -> anyhow::Result<()> {
    let description: Value = serde_json::from_str(DESCRIPTION)?;
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
    ensure!(members(paths).count() > 10 && members(schemas).count() > 10, "too few paths or schemas: {description}");
    ensure!(missing.is_empty(), "docs/api.md does not name {missing:?}");
    Ok(())
}

/// Runs all examples in one shell, because later ones use variables of earlier ones. Returns what each example printed.
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
    expect!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    let mut printed: Vec<String> = String::from_utf8(output.stdout)?.split(MARK).map(str::to_owned).collect();
    printed.pop();
    ensure!(printed.len() == examples.len(), "{} of {} examples ended", printed.len(), examples.len());
    Ok(printed)
}

impl ShownOutput {
    fn compare(&self, printed: &str) -> anyhow::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Text(text) => {
                let lines =
                    |text: &str| text.trim().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
                ensure!(lines(text) == lines(printed), "it prints another text");
                Ok(())
            }
            Self::Json(shown) => {
                let printed = values(printed).context("it prints no JSON")?;
                ensure!(shown.len() == printed.len(), "it prints {} values, not {}", printed.len(), shown.len());
                for (shown, printed) in shown.iter().zip(printed) {
                    ensure!(lasting(shown.clone()) == lasting(printed), "it prints other JSON");
                }
                Ok(())
            }
        }
    }
}

/// The value without times, journal positions and request ids, which differ between runs.
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

/// The text that stands for every time.
const TIME: &str = "0000-00-00T00:00:00.000000Z";

#[test]
fn the_guide_explains_every_code() -> anyhow::Result<()> {
    let router = CODES.split("\", S::").filter_map(|text| text.rsplit_once("(\"")).map(|(_, code)| code);
    let mut codes: Vec<&str> = router.chain(ledger::Refusal::ALL.map(ledger::Refusal::as_str)).collect();
    // The last text is the rest of the source after its last row, so it is left out here.
    codes.retain(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    ensure!(codes.len() > 40, "{} codes were found: {codes:?}", codes.len());
    let rows = section(PAGE, "## All codes")?;
    let missing: Vec<&str> = codes.into_iter().filter(|code| !rows.contains(&format!("`{code}`"))).collect();
    ensure!(missing.is_empty(), "docs/api.md does not explain {missing:?}");
    Ok(())
}

const FENCE: &str = "```";

/// A block of shell commands.
#[derive(Debug)]
pub struct Example {
    /// The line of its fence.
    pub line: usize,
    pub script: String,
    pub shown: ShownOutput,
}

/// The output of an example, which the page shows in the block right after it.
#[derive(Debug)]
pub enum ShownOutput {
    Nothing,
    Text(String),
    Json(Vec<Value>),
}

struct Block {
    line: usize,
    /// The line after its end.
    after: usize,
    language: String,
    text: String,
}

/// Returns the blocks of shell commands in order.
pub fn examples(page: &str) -> anyhow::Result<Vec<Example>> {
    let mut blocks = blocks(page)?.into_iter().peekable();
    let mut examples = Vec::new();
    while let Some(Block { line, after, language, text }) = blocks.next() {
        if language != "sh" {
            continue;
        }
        let shown = match blocks.next_if(|next| next.line == after && next.language != "sh") {
            None => ShownOutput::Nothing,
            Some(next) => read(&next).with_context(|| format!("line {}", next.line))?,
        };
        examples.push(Example { line, script: text, shown });
    }
    Ok(examples)
}

fn read(block: &Block) -> anyhow::Result<ShownOutput> {
    match block.language.as_str() {
        "json" => values(&block.text).map(ShownOutput::Json),
        "text" => Ok(ShownOutput::Text(block.text.clone())),
        other => bail!("the block after an example must be json or text, not {other:?}"),
    }
}

/// Parses JSON values that follow one another.
pub fn values(text: &str) -> anyhow::Result<Vec<Value>> {
    Ok(serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?)
}

/// Returns the text from this heading to the next one of the same level.
pub fn section<'p>(page: &'p str, heading: &str) -> anyhow::Result<&'p str> {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).with_context(|| format!("no {heading:?}"))?;
    Ok(rest.split("\n## ").next().unwrap_or(rest))
}

fn blocks(page: &str) -> anyhow::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, text) in (1..).zip(page.lines()) {
        match (open.take(), text.strip_prefix(FENCE)) {
            (None, None) => {}
            (None, Some(language)) => {
                open = Some(Block { line: number, after: 0, language: language.to_owned(), text: String::new() });
            }
            (Some(block), Some(rest)) => {
                ensure!(rest.is_empty(), "line {number}: a block contains a fence with a language");
                blocks.push(Block { after: number + 1, ..block });
            }
            (Some(mut block), None) => {
                block.text.push_str(text);
                block.text.push('\n');
                open = Some(block);
            }
        }
    }
    ensure!(open.is_none(), "the last block has no end");
    Ok(blocks)
}
