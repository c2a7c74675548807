//! Answers to what never becomes a request: hyper refuses a broken or oversized head by itself, with a head of its own and no
//! body, before any layer of ours. There is no hook for it, so it is recognised where it is written to the socket.

use http::{StatusCode, header};

use crate::http::{
    context,
    problem::{Code, PROBLEM_JSON, Problem},
};

const VERSION: &[u8] = b"HTTP/1.1 ";
/// Every error of ours has one; hyper's own have no body to have a type.
const CONTENT_TYPE: &[u8] = b"\r\ncontent-type:";

/// What is to be sent in place of `written`, if that is hyper's own refusal of a head.
pub fn in_place_of(written: &[u8]) -> Option<Vec<u8>> {
    let status = written.strip_prefix(VERSION)?.get(..3)?;
    if status[0] != b'4' || !is_whole_head(written) || contains(written, CONTENT_TYPE) {
        return None;
    }
    let (code, detail) = match StatusCode::from_bytes(status).ok()? {
        StatusCode::BAD_REQUEST => (Code::InvalidRequest, "the request line or a header is not HTTP/1.1"),
        StatusCode::URI_TOO_LONG => (Code::UriTooLong, "a request's target has less than 64 KiB"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            (Code::HeadTooLarge, "a request has at most 100 headers, and 64 KiB of them")
        }
        _ => return None,
    };
    Some(answer(Problem::new(code, detail)))
}

/// The problem as a whole answer, after which the connection is closed.
pub fn answer(problem: Problem) -> Vec<u8> {
    let status = problem.code().definition().status;
    let id = context::new_request_id();
    let body = problem.render("", id.to_str().unwrap_or_default());
    let retry_after = match status {
        StatusCode::SERVICE_UNAVAILABLE => "retry-after: 1\r\n",
        _ => "",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{}: {}\r\nx-request-id: {}\r\n{retry_after}connection: close\r\ncontent-length: {}\r\n\r\n",
        header::CONTENT_TYPE,
        PROBLEM_JSON.to_str().unwrap_or_default(),
        id.to_str().unwrap_or_default(),
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// A head and nothing after it.
fn is_whole_head(written: &[u8]) -> bool {
    written.windows(4).position(|bytes| bytes == b"\r\n\r\n") == written.len().checked_sub(4)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_refusals_are_replaced() {
        let refusal = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let answer = String::from_utf8(in_place_of(refusal).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("connection: close"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["code"], &body["executed"]), (&"invalid_request".into(), &false.into()));
        assert!(head.contains(body["request_id"].as_str().unwrap()) && body["request_id"] != "");

        for ours in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n\r\n{}",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(in_place_of(ours), None, "{}", String::from_utf8_lossy(ours));
        }
    }
}
