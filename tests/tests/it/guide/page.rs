//! A page of Markdown: its sections, and its examples with what they are said to print.

use anyhow::{Context, bail, ensure};
use serde_json::Value;

const FENCE: &str = "```";

/// A block of shell commands.
#[derive(Debug)]
pub struct Example {
    /// Where its fence is.
    pub line: usize,
    pub script: String,
    pub shown: Shown,
}

/// What the page says an example prints: the block right after it.
#[derive(Debug)]
pub enum Shown {
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

/// The blocks of shell commands in order.
pub fn examples(page: &str) -> anyhow::Result<Vec<Example>> {
    let mut blocks = blocks(page)?.into_iter().peekable();
    let mut examples = Vec::new();
    while let Some(Block { line, after, language, text }) = blocks.next() {
        if language != "sh" {
            continue;
        }
        let shown = match blocks.next_if(|next| next.line == after && next.language != "sh") {
            None => Shown::Nothing,
            Some(next) => read(&next).with_context(|| format!("line {}", next.line))?,
        };
        examples.push(Example { line, script: text, shown });
    }
    Ok(examples)
}

fn read(block: &Block) -> anyhow::Result<Shown> {
    match block.language.as_str() {
        "json" => values(&block.text).map(Shown::Json),
        "text" => Ok(Shown::Text(block.text.clone())),
        other => bail!("{other:?} after an example"),
    }
}

/// JSON values one after another.
pub fn values(text: &str) -> anyhow::Result<Vec<Value>> {
    Ok(serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?)
}

/// From this heading to the next of its level.
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
                ensure!(rest.is_empty(), "line {number}: a fence within a block");
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
