//! Lists that routers answer page by page.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::router_address::Routers;
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
