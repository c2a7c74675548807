//! Bodies that are no JSON document of the right kind, or too large.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use super::Tried;
use crate::contract::api::{Call, JSON, NDJSON};

const ONE_TOO_MANY: usize = 10_001;
const DEPTH: usize = 10_000;
/// More than the router's 16 MiB.
const HUGE: usize = 17 << 20;

/// How long a busy router may take to read, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The paths that take bodies.
const PLACES: [&str; 4] = ["/v1/transfers", "/v1/transfers:batch", "/v1/accounts", "/v1/accounts:batch"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_document_or_too_large_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    documents_are_refused(&mut tried).await;
    too_much_is_refused(&mut tried).await;
    tried.finish().await
}

async fn documents_are_refused(tried: &mut Tried) {
    let documents: Vec<Vec<u8>> = [
        "",
        " ",
        "{",
        "}",
        "[]",
        "\"x\"",
        "1",
        "null",
        "NaN",
        "{} {}",
        "{},",
        "{\"id\": }",
        "{'id': 1}",
        "{\"id\": \"\t\"}",
        "{\"id\": \"\\ud800\"}",
        "{\"id\": \"\\x\"}",
        "// no",
        "\u{feff}{}",
        "id=1",
    ]
    .into_iter()
    .map(Vec::from)
    .chain([b"\"\xff\"".to_vec(), b"{\"id\": \"\xc3\x28\"}".to_vec(), vec![0; 16]])
    .chain(["[", "{\"a\":", "[[["].map(|open| open.repeat(DEPTH).into()))
    .chain(["id", "metadata", "transfers"].map(|field| format!("{{\"{field}\": {}", "[".repeat(DEPTH)).into()))
    .collect();
    for document in documents {
        for place in PLACES {
            let text = String::from_utf8_lossy(&document);
            tried
                .call(&format!("{place} {text:?}"), Call::new(Method::POST, place, document.clone()), MALFORMED)
                .await;
        }
    }
    for (place, body) in [
        ("/v1/transfers:batch", r#"{"transfers": []}"#),
        ("/v1/transfers:batch", r#"{"transfers": null}"#),
        ("/v1/transfers:batch", r#"{"transfers": {}}"#),
        ("/v1/transfers:batch", "{}"),
        ("/v1/accounts:batch", r#"{"accounts": []}"#),
    ] {
        let expected =
            MALFORMED.replace("''", if place.contains("transfers") { "'/transfers'" } else { "'/accounts'" });
        tried.call(body, Call::new(Method::POST, place, body), &expected).await;
    }
    let good = item(tried);
    let atomic = format!(r#"{{"transfers": [{good}], "atomic": "yes"}}"#);
    let batch = |body: String| Call::new(Method::POST, "/v1/transfers:batch", body);
    tried.call("atomic of the wrong type", batch(atomic), "400 invalid_json at='/atomic'").await;
    let extra = format!(r#"{{"transfers": [{good}], "dry": true}}"#);
    tried.call("an unknown field", batch(extra), "400 unknown_field at='/dry'").await;
}

const MALFORMED: &str = "400 invalid_json at=''";

/// A transfer without a mistake.
fn item(tried: &Tried) -> String {
    format!(
        r#"{{"id": "{}", "debit": "{}", "credit": "{}", "amount": "0.01", "asset": "USD"}}"#,
        Uuid::now_v7(),
        tried.debit,
        tried.credit
    )
}

async fn too_much_is_refused(tried: &mut Tried) {
    let items: Vec<String> = (0..ONE_TOO_MANY).map(|_| item(tried)).collect();
    let batch = |body: String| Call::new(Method::POST, "/v1/transfers:batch", body);
    tried.call("10,001", batch(format!("{{\"transfers\": [{}]}}", items.join(","))), "413 batch_too_large").await;
    let lines = Call::bare(Method::POST, "/v1/transfers:batch", items.join("\n")).header("content-type", NDJSON);
    tried.call("10,001 lines", lines, "413 batch_too_large").await;
    let accounts: Vec<String> =
        (0..ONE_TOO_MANY).map(|n| format!("{{\"id\": \"m{n}\", \"asset\": \"USD\"}}")).collect();
    let body = format!("{{\"accounts\": [{}]}}", accounts.join(","));
    tried.call("10,001 accounts", Call::new(Method::POST, "/v1/accounts:batch", body), "413 batch_too_large").await;
    // The number of items is checked before the items.
    let same = vec![item(tried); ONE_TOO_MANY];
    tried
        .call("10,001 times one", batch(format!("{{\"transfers\": [{}]}}", same.join(","))), "413 batch_too_large")
        .await;

    let no_amount = item(tried).replace("0.01", "0");
    let padded = |len: usize| format!("{}{no_amount}", " ".repeat(len));
    let single = |body: String| Call::new(Method::POST, "/v1/transfers", body);
    tried.call("64 KiB and a little", single(padded(64 << 10)), "413 body_too_large").await;
    tried.call("a little under 64 KiB", single(padded(60 << 10)), "400 invalid_amount at='/amount'").await;
    let url = tried.stage.api.url(0).to_owned();
    let path = testkit::client::account_path(&tried.debit);
    for (method, path) in [("POST", "/v1/transfers:batch"), ("POST", "/v1/accounts"), ("PATCH", path.as_str())] {
        for chunked in [false, true] {
            let refused = huge(&url, method, path, chunked).await;
            tried.note(&format!("{method} {path} of 17 MiB, chunked: {chunked}"), refused);
        }
    }
}

/// Sends a body that is too large, on a socket, because the answer comes before the end of the body and the connection closes then.
async fn huge(url: &str, method: &str, path: &str, chunked: bool) -> anyhow::Result<()> {
    let address = url.strip_prefix("http://").context("no http")?;
    let mut stream = TcpStream::connect(address).await?;
    let length = if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {HUGE}") };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {JSON}\r\n{length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    if chunked {
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        for _ in 0..=HUGE / 0x10000 {
            // The router stops reading at some point, and the rest cannot be written.
            if tokio::time::timeout(PATIENCE, stream.write_all(chunk.as_bytes())).await.is_err() {
                break;
            }
        }
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.starts_with("HTTP/1.1 413 "), "{read:?}: {answer:?}");
    ensure!(answer.contains("application/problem+json") && answer.contains("\"body_too_large\""), "{answer}");
    Ok(())
}
