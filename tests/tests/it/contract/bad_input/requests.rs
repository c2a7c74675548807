//! Requests with a mistake in their line or headers, whatever their body.

use anyhow::ensure;
use http::Method;
use testkit::client::account_path;

use super::Tried;
use crate::contract::api::Call;

const TRANSFER: &str = "/v1/transfers/01890a5d-ac96-774b-bcce-b302099a8057";
const BODY: &str = r#"{"debit": "alice", "credit": "bob", "amount": "0", "asset": "USD"}"#;
/// The answer to [`BODY`] with a good idempotency key.
const KEY_TAKEN: &str = "400 invalid_amount at='/amount'";
const BAD_KEY: &str = "400 invalid_parameter at=Idempotency-Key:";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_wrong_path_parameter_or_header_is_refused() -> anyhow::Result<()> {
    let mut tried = Tried::new().await?;
    let account = account_path(&tried.debit);
    paths(&mut tried, &account).await;
    parameters(&mut tried, &account).await;
    headers(&mut tried, &account).await;
    tried.finish().await
}

async fn paths(tried: &mut Tried, account: &str) {
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
}

/// Path, query, answer.
async fn parameters(tried: &mut Tried, account: &str) {
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
}

async fn headers(tried: &mut Tried, account: &str) {
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
}
