//! `Idempotency-Key`: what stands for the id of a transfer or hold that has none of its own.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    Edge,
    body::{Upload, require_json},
    context::RequestDeadline,
    parse::Rulebook,
    problem::{Code, Problem},
};

/// On answers that are the stored result of an earlier request.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_LEN: usize = 255;

/// How a body is read beside the key, if there is one.
type Parse<T> = fn(&str, &Rulebook, Option<&str>) -> Result<T, Problem>;

/// Reads what a request orders.
pub async fn order<T>(
    edge: &Edge,
    headers: &HeaderMap,
    body: Upload,
    deadline: RequestDeadline,
    parse: Parse<T>,
) -> Result<T, Problem> {
    require_json(headers)?;
    let key = key(headers)?;
    let payload = edge.bodies.read_single(body, deadline).await?;
    parse(payload.text()?, &edge.rulebook, key)
}

/// Reads what a request orders to be done with something stored; it can do without a body.
pub async fn follow_up<T>(
    edge: &Edge,
    headers: &HeaderMap,
    body: Upload,
    deadline: RequestDeadline,
    parse: Parse<T>,
) -> Result<T, Problem> {
    let key = key(headers)?;
    let payload = edge.bodies.read_optional(headers, body, deadline).await?;
    parse(payload.text()?, &edge.rulebook, key)
}

/// The request's key, if it has one.
fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        // Whichever is taken, a proxy on the next attempt may take the other one and with it pay twice.
        return Err(Problem::header("Idempotency-Key", "Idempotency-Key is given twice"));
    }
    let value = value.to_str().ok().map(unquoted);
    let printable =
        |text: &&str| (1..=MAX_KEY_LEN).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    match value.filter(printable) {
        Some(key) => Ok(Some(key)),
        None => Err(Problem::header("Idempotency-Key", "Idempotency-Key has 1 to 255 printable ASCII characters")),
    }
}

/// The key without the quotes of a structured field, as the draft of the header's standard writes it: `"k"` and `k` are one key. A key
/// that has quotes or backslashes inside is taken as it is.
fn unquoted(text: &str) -> &str {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.filter(|inner| !inner.contains(['"', '\\'])).unwrap_or(text)
}

/// The id names something else already.
pub fn mismatch(what: &str, field: &'static str) -> Problem {
    let detail = format!("the id belongs to a {what} with another {field}");
    Problem::new(Code::IdempotencyMismatch, detail).with_field(field)
}

/// Marks an answer as the stored result of an earlier request.
pub fn mark_replayed(headers: &mut HeaderMap) {
    headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
}
