//! Lists that routers answer page by page.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Context,
    router_address::{PublicAddress, Routers},
};
use crate::{http_client::encoded, json_object::JsonObject, output};

/// The most that a router puts into a page.
const PAGE: u64 = 500;

/// The beginning of a list, as long as was asked for.
#[derive(Debug, Serialize)]
pub struct List {
    data: Vec<JsonObject>,
    /// Whether the list goes on.
    has_more: bool,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<JsonObject>,
    next_cursor: Option<String>,
}

/// Reads the whole list at `path`, which is one answer.
pub async fn read_whole(routers: &Routers, path: &str) -> anyhow::Result<List> {
    #[derive(Deserialize)]
    struct Whole {
        data: Vec<JsonObject>,
    }
    let Whole { data } = routers.get(path).await?;
    Ok(List { data, has_more: false })
}

/// Reads up to `limit` items of the list at `path`. `query` has the list's own parameters.
pub async fn read(routers: &Routers, path: &str, query: Vec<String>, limit: u64) -> anyhow::Result<List> {
    let mut list = List { data: Vec::new(), has_more: false };
    let mut cursor = None;
    loop {
        let left = limit.saturating_sub(list.data.len() as u64);
        let mut query = query.clone();
        query.push(format!("limit={}", left.min(PAGE)));
        query.extend(cursor.map(|cursor: String| format!("cursor={}", encoded(&cursor))));
        let page: Page = routers.get(&format!("{path}?{}", query.join("&"))).await?;
        list.data.extend(page.data);
        list.has_more = page.next_cursor.is_some();
        cursor = page.next_cursor;
        if cursor.is_none() || list.data.len() as u64 >= limit {
            return Ok(list);
        }
    }
}

/// What the lists of an account's transfers and holds are asked for.
#[derive(clap::Args)]
pub struct History {
    /// The account's id
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
    /// Only those that are in this state now
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only those whose metadata has this name, or this value under it
    #[arg(long, value_name = "NAME[=VALUE]")]
    metadata: Option<String>,
    /// Entries of the account at this time or later (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Entries before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    address: PublicAddress,
}

impl History {
    /// Prints the list at `path`.
    pub async fn print<const COLUMNS: usize>(
        self,
        path: &str,
        columns: [&str; COLUMNS],
        context: &Context,
    ) -> anyhow::Result<ExitCode> {
        let Self { account, status, metadata, from, to, limit, address } = self;
        let routers = address.routers(context)?;
        let given =
            [("account", Some(account)), ("status", status), ("metadata", metadata), ("from", from), ("to", to)];
        let query = given.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?))));
        read(&routers, path, query.collect(), limit).await?.print(columns, context.json)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    /// Prints the list as JSON, or these columns of it as a table.
    pub fn print<const COLUMNS: usize>(&self, columns: [&str; COLUMNS], as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return output::json(self);
        }
        let cell = |item: &JsonObject, column: &str| {
            item.fields()
                .find(|(name, _)| *name == column)
                .map_or_else(|| output::cell(&Value::Null), |(_, value)| output::cell(value))
        };
        let rows: Vec<[String; COLUMNS]> =
            self.data.iter().map(|item| columns.map(|column| cell(item, column))).collect();
        output::table(columns, &rows)?;
        if self.has_more {
            output::note(&format!("there are more than these {}: --limit", self.data.len()));
        }
        Ok(())
    }
}
