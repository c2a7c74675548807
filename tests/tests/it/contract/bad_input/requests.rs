//! Tests of requests with a mistake in their path, parameters or headers, and of bodies that are too large or not the right JSON document.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use testkit::client::account_path;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use super::Tried;
use crate::contract::api::{Call, JSON, NDJSON};

const TRANSFER: &str = "/v1/transfers/01890a5d-ac96-774b-bcce-b302099a8057";
const BODY: &str = r#"{"debit": "alice", "credit": "bob", "amount": "0", "asset": "USD"}"#;
/// The answer to [`BODY`] with a good idempotency key.
const KEY_TAKEN: &str = "400 invalid_amount at='/amount'";
const BAD_KEY: &str = "400 invalid_parameter at=Idempotency-Key:";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_wrong_path_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let account = account_path(&tried.debit);
    let account = account.as_str();
    for path in
        ["/", "/v1", "/v1/", "/v1/nothing", "/v2/accounts", "/admin/shard-map", "/metrics", "/v1/accounts/a/b/c"]
    {
        tried.call(path, Call::get(path), "404 not_found").await;
        tried.call(path, Call::new(Method::POST, path, "{}"), "404 not_found").await;
    }
    for (path, allowed) in [
        ("/v1/accounts", "GET,HEAD,POST"),
        ("/v1/accounts:batch", "POST"),
        ("/v1/balances", "GET,HEAD"),
        ("/v1/transfers:batch", "POST"),
        ("/v1/transfers", "GET,HEAD,POST"),
        (account, "GET,HEAD,PATCH"),
        (&format!("{account}/entries"), "GET,HEAD"),
        (&format!("{account}/balance"), "GET,HEAD"),
        (TRANSFER, "GET,HEAD"),
        ("/openapi.json", "GET,HEAD"),
    ] {
        for method in [Method::DELETE, Method::PUT, Method::OPTIONS] {
            let refused = async {
                let call = Call::new(method.clone(), path, "{}");
                let reply = tried.stage.api.expect(call, "405 method_not_allowed").await?;
                let mut methods: Vec<&str> = reply.header("allow").split(',').map(str::trim).collect();
                methods.sort_unstable();
                ensure!(methods.join(",") == allowed, "Allow: {methods:?}");
                anyhow::Ok(())
            };
            let refused = refused.await;
            tried.note(&format!("{method} {path}"), refused);
        }
    }
    for id in ["%00", "a%00b", "%ff", "a%20b", "%40in-transit:USD", "a%2Fb", &"a".repeat(129), "%2E", ".."] {
        for rest in ["", "/entries", "/balance"] {
            let path = format!("/v1/accounts/{id}{rest}");
            tried.call(&path, Call::get(&path), "400 invalid_id at=?id").await;
        }
    }
    for id in ["x", "%00", "01890a5dac96774bbcceb302099a8057", "00000000-0000-0000-0000-000000000000"] {
        let path = format!("/v1/transfers/{id}");
        tried.call(&path, Call::get(&path), "400 invalid_id at=?id").await;
    }
    for path in ["/v1/accounts/nobody", "/v1/accounts/nobody/entries", "/v1/accounts/nobody/balance"] {
        tried.call(path, Call::get(path), "404 account_not_found").await;
    }
    for path in [TRANSFER.to_owned(), format!("{TRANSFER}?debit=nobody")] {
        tried.call(&path, Call::get(&path), "404 transfer_not_found").await;
    }
    tried.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_wrong_parameter_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let account = account_path(&tried.debit);
    let account = account.as_str();
    let entries = format!("{account}/entries");
    let balance = format!("{account}/balance");
    let table: &[(&str, &str, &str)] = &[
        (account, "verbose=1", "400 unknown_parameter at=?verbose"),
        (account, "a=1&a=2", "400 unknown_parameter at=?a"),
        (&entries, "page=2", "400 unknown_parameter at=?page"),
        (&entries, "limit=0", "400 invalid_parameter at=?limit"),
        (&entries, "limit=501", "400 invalid_parameter at=?limit"),
        (&entries, "limit=-1", "400 invalid_parameter at=?limit"),
        (&entries, "limit=1.5", "400 invalid_parameter at=?limit"),
        (&entries, "limit=", "400 invalid_parameter at=?limit"),
        (&entries, "limit=ten", "400 invalid_parameter at=?limit"),
        (&entries, "limit=99999999999999999999", "400 invalid_parameter at=?limit"),
        (&entries, "limit=1&limit=2", "400 invalid_parameter at=?limit"),
        (&entries, "cursor=", "400 invalid_parameter at=?cursor"),
        (&entries, "cursor=x", "400 invalid_parameter at=?cursor"),
        (&entries, "cursor=%00", "400 invalid_parameter at=?cursor"),
        (&entries, "cursor=%ff", "400 invalid_parameter at=?cursor"),
        (&entries, "order=up", "400 invalid_parameter at=?order"),
        (&entries, "from=yesterday", "400 invalid_parameter at=?from"),
        (&entries, "from=2026-01-01", "400 invalid_parameter at=?from"),
        (&entries, "from=1767225600", "400 invalid_parameter at=?from"),
        (&entries, "from=2026-01-01T00:00:00%2B24:00", "400 invalid_parameter at=?from"),
        (&entries, "to=2026-13-01T00:00:00Z", "400 invalid_parameter at=?to"),
        (&entries, "to=2026-01-01T00:00:00", "400 invalid_parameter at=?to"),
        (&entries, "limit=0&page=2", "400 unknown_parameter at=?page"),
        (&balance, "at=now", "400 invalid_parameter at=?at"),
        (&balance, "at=2026-02-30T00:00:00Z", "400 invalid_parameter at=?at"),
        (&balance, "time=2026-01-01T00:00:00Z", "400 unknown_parameter at=?time"),
        ("/v1/accounts", "limit=0", "400 invalid_parameter at=?limit"),
        ("/v1/accounts", "limit=501", "400 invalid_parameter at=?limit"),
        ("/v1/accounts", "limit=1&limit=1", "400 invalid_parameter at=?limit"),
        ("/v1/accounts", "cursor=", "400 invalid_parameter at=?cursor"),
        ("/v1/accounts", "cursor=a00", "400 invalid_parameter at=?cursor"),
        ("/v1/accounts", "cursor=a0000", "400 invalid_parameter at=?cursor"),
        ("/v1/accounts", "cursor=%ff", "400 invalid_parameter at=?cursor"),
        ("/v1/accounts", "prefix=a%20b", "400 invalid_parameter at=?prefix"),
        ("/v1/accounts", "prefix=%00", "400 invalid_parameter at=?prefix"),
        ("/v1/accounts", "prefix=a%2Fb", "400 invalid_parameter at=?prefix"),
        ("/v1/accounts", "prefix=%25", "400 invalid_parameter at=?prefix"),
        ("/v1/accounts", "prefix=a&prefix=b", "400 invalid_parameter at=?prefix"),
        ("/v1/accounts", "order=asc", "400 unknown_parameter at=?order"),
        ("/v1/balances", "prefix=a%20b", "400 invalid_parameter at=?prefix"),
        ("/v1/balances", "asset=USD", "400 unknown_parameter at=?asset"),
        ("/v1/balances", "limit=1", "400 unknown_parameter at=?limit"),
        (TRANSFER, "credit=a", "400 unknown_parameter at=?credit"),
        (TRANSFER, "debit=", "400 invalid_id at=?debit"),
        (TRANSFER, "debit=%40x", "400 invalid_id at=?debit"),
        ("/v1/accounts/nobody/entries", "limit=0", "400 invalid_parameter at=?limit"),
        ("/openapi.json", "x=1", "400 unknown_parameter at=?x"),
    ];
    for path in ["/v1/accounts", "/v1/balances"] {
        let path = format!("{path}?prefix={}", "a".repeat(129));
        tried.call(&path, Call::get(&path), "400 invalid_parameter at=?prefix").await;
    }
    for (path, query, expected) in table {
        let path = format!("{path}?{query}");
        tried.call(&path, Call::get(&path), expected).await;
    }
    for path in ["/v1/accounts", "/v1/accounts:batch", "/v1/transfers", "/v1/transfers:batch"] {
        let path = format!("{path}?force=true");
        tried.call(&path, Call::new(Method::POST, &path, "{}"), "400 unknown_parameter at=?force").await;
    }
    let atomic = "/v1/transfers:batch?atomic=true";
    tried.call(atomic, Call::new(Method::POST, atomic, "{}"), "400 unknown_parameter at=?atomic").await;
    let lines =
        Call::bare(Method::POST, "/v1/transfers:batch?atomic=1", "{}").header("content-type", "application/x-ndjson");
    tried.call("atomic=1", lines, "400 invalid_parameter at=?atomic").await;
    tried.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_wrong_header_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let account = account_path(&tried.debit);
    let account = account.as_str();
    let table: &[(&'static str, Vec<u8>, &str)] = &[
        ("idempotency-key", b"a".to_vec(), KEY_TAKEN),
        ("idempotency-key", vec![b'k'; 255], KEY_TAKEN),
        ("idempotency-key", b"a key: \"~\"".to_vec(), KEY_TAKEN),
        ("idempotency-key", vec![b'k'; 256], BAD_KEY),
        ("idempotency-key", Vec::new(), BAD_KEY),
        ("idempotency-key", "schlüssel".as_bytes().to_vec(), BAD_KEY),
        ("idempotency-key", b"a\tb".to_vec(), BAD_KEY),
        ("idempotency-key", vec![0xff], BAD_KEY),
    ];
    for (name, value, expected) in table {
        let what = format!("{name}: {}", String::from_utf8_lossy(value));
        let call = Call::new(Method::POST, "/v1/transfers", BODY).header(name, value);
        tried.call(&what, call, expected).await;
    }
    let two =
        Call::new(Method::POST, "/v1/transfers", BODY).header("idempotency-key", "a").header("idempotency-key", "b");
    tried.call("two keys", two, BAD_KEY).await;
    for bad in ["0", "30001", "-1", "+5", "1.5", "soon", "", "99999999999999999999"] {
        for call in [Call::get(account), Call::new(Method::POST, "/v1/transfers", BODY)] {
            let call = call.header("x-request-timeout-ms", bad);
            tried.call(&format!("timeout {bad:?}"), call, "400 invalid_parameter at=X-Request-Timeout-Ms:").await;
        }
    }
    let two_limits = Call::get(account).header("x-request-timeout-ms", "100").header("x-request-timeout-ms", "200");
    tried.call("two time limits", two_limits, "400 invalid_parameter at=X-Request-Timeout-Ms:").await;
    let two_types = Call::new(Method::POST, "/v1/transfers", BODY).header("content-type", "text/plain");
    tried.call("two media types", two_types, "400 invalid_parameter at=Content-Type:").await;
    for packed in ["gzip", "br", "deflate, identity"] {
        let call = Call::new(Method::POST, "/v1/transfers", BODY).header("content-encoding", packed);
        tried.call(packed, call, "415 unsupported_media_type").await;
    }
    let plain = Call::new(Method::POST, "/v1/transfers", BODY).header("content-encoding", "identity");
    tried.call("identity", plain, "400 invalid_amount at='/amount'").await;
    for (method, path) in [
        (Method::POST, "/v1/accounts"),
        (Method::POST, "/v1/accounts:batch"),
        (Method::PATCH, account),
        (Method::POST, "/v1/transfers"),
        (Method::POST, "/v1/transfers:batch"),
    ] {
        let bare = || Call::bare(method.clone(), path, BODY);
        tried.call("no media type", bare(), "415 unsupported_media_type").await;
        for media_type in ["text/plain", "application/xml", "application/jsonx", "", "json"] {
            let call = bare().header("content-type", media_type);
            tried.call(&format!("{path} {media_type}"), call, "415 unsupported_media_type").await;
        }
    }
    let lines = Call::bare(Method::POST, "/v1/transfers", BODY).header("content-type", "application/x-ndjson");
    tried.call("lines where one is wanted", lines, "415 unsupported_media_type").await;
    tried.finish().await
}

const ONE_TOO_MANY: usize = 10_001;
const DEPTH: usize = 10_000;
/// The size of a body that is larger than the 16 MiB that a router accepts.
const HUGE: usize = 17 << 20;

/// The time that a busy router may take to read or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The paths that take bodies.
const PLACES: [&str; 4] = ["/v1/transfers", "/v1/transfers:batch", "/v1/accounts", "/v1/accounts:batch"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_document_of_the_right_kind_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
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
    let good = item(&tried);
    let atomic = format!(r#"{{"transfers": [{good}], "atomic": "yes"}}"#);
    let batch = |body: String| Call::new(Method::POST, "/v1/transfers:batch", body);
    tried.call("atomic of the wrong type", batch(atomic), "400 invalid_json at='/atomic'").await;
    let extra = format!(r#"{{"transfers": [{good}], "dry": true}}"#);
    tried.call("an unknown field", batch(extra), "400 unknown_field at='/dry'").await;
    tried.finish().await
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let items: Vec<String> = (0..ONE_TOO_MANY).map(|_| item(&tried)).collect();
    let batch = |body: String| Call::new(Method::POST, "/v1/transfers:batch", body);
    tried.call("10,001", batch(format!("{{\"transfers\": [{}]}}", items.join(","))), "413 batch_too_large").await;
    let lines = Call::bare(Method::POST, "/v1/transfers:batch", items.join("\n")).header("content-type", NDJSON);
    tried.call("10,001 lines", lines, "413 batch_too_large").await;
    let accounts: Vec<String> =
        (0..ONE_TOO_MANY).map(|n| format!("{{\"id\": \"m{n}\", \"asset\": \"USD\"}}")).collect();
    let body = format!("{{\"accounts\": [{}]}}", accounts.join(","));
    tried.call("10,001 accounts", Call::new(Method::POST, "/v1/accounts:batch", body), "413 batch_too_large").await;
    // The router checks the number of items before the items.
    let same = vec![item(&tried); ONE_TOO_MANY];
    tried
        .call("10,001 times one", batch(format!("{{\"transfers\": [{}]}}", same.join(","))), "413 batch_too_large")
        .await;

    let no_amount = item(&tried).replace("0.01", "0");
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
    tried.finish().await
}

/// Sends a body that is too large. It uses a socket, because the answer comes before the end of the body, and the router then closes the
/// connection.
async fn huge(url: &str, method: &str, path: &str, chunked: bool) -> anyhow::Result<()> {
    let address = url.strip_prefix("http://").context("the URL is not http")?;
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
    expect!(answer.starts_with("HTTP/1.1 413 "), "{read:?}: {answer:?}");
    expect!(answer.contains("application/problem+json") && answer.contains("\"body_too_large\""), "{answer}");
    Ok(())
}
