//! Request bodies: the media type, the idempotency key beside the body, and the bytes, read within bounds of size, time and memory.

use std::{convert::Infallible, future::Future, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt;
use ledger::AssetRegistry;
use tokio::time::Instant;

use super::{
    Edge,
    admission::{Caller, Exhausted, Shares, Taken},
    context::{RequestDeadline, single},
    metrics::{RefusalReason, count_refused},
    problem::{Code, Problem},
};

/// The largest body of a request about one thing: 4 KiB of metadata, all of it escaped, fit in several times.
const MAX_SINGLE_BYTES: usize = 64 * 1024;
/// The bodies of one key may have 1/`KEY_SHARE` of the memory for bodies, and at least that of one body.
const KEY_SHARE: usize = 2;

/// The parts of a request with which its body is read, taken without copying the headers.
#[derive(Debug)]
pub struct Sent {
    pub headers: HeaderMap,
    pub body: Upload,
}

/// A body that has not been read.
#[derive(Debug)]
pub struct Upload {
    body: Body,
    caller: Caller,
}

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Infallible;

    fn from_request(request: Request, _: &S) -> impl Future<Output = Result<Self, Infallible>> + Send {
        let (head, body) = request.into_parts();
        let caller = Caller::of(&head.extensions);
        std::future::ready(Ok(Self { headers: head.headers, body: Upload { body, caller } }))
    }
}

/// How the body of a request is read, with the assets that are known and the idempotency key that stands for an id.
type ReadBody<T> = fn(&str, &AssetRegistry, Option<&str>) -> Result<T, Problem>;

impl Sent {
    /// Reads what the request orders.
    pub async fn order<T>(self, edge: &Edge, deadline: RequestDeadline, read: ReadBody<T>) -> Result<T, Problem> {
        require_json(&self.headers)?;
        let key = idempotency_key(&self.headers)?;
        let payload = edge.bodies.read_single(self.body, deadline).await?;
        read(payload.text()?, &edge.assets, key)
    }

    /// Reads what the request orders to be done with a stored transfer or hold. Such a request may have no body.
    pub async fn follow_up<T>(self, edge: &Edge, deadline: RequestDeadline, read: ReadBody<T>) -> Result<T, Problem> {
        let key = idempotency_key(&self.headers)?;
        let payload = edge.bodies.read_optional(&self.headers, self.body, deadline).await?;
        read(payload.text()?, &edge.assets, key)
    }
}

/// The header that stands for the id of a transfer or hold that has none of its own.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_LEN: usize = 255;

/// The idempotency key of the request, if it has one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        // Whichever is taken, a proxy may take the other one at the next attempt, and the client would pay twice.
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

// === the bytes ===

/// Bounds on bodies, shared by all requests.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// The largest body of a batch.
    pub max_bytes: usize,
    pub timeout: Duration,
    /// Bytes of all bodies together.
    budget: Shares,
    /// Bytes of all bodies together, and of the bodies of one key.
    max_buffered_bytes: usize,
    max_bytes_of_key: usize,
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    Json,
    NdJson,
}

/// A body in memory. While it lives, its bytes count against the budget.
#[derive(Debug)]
pub struct Payload {
    bytes: Bytes,
    _taken: Option<Taken>,
}

impl Payload {
    /// The body as text: JSON is UTF-8.
    pub fn text(&self) -> Result<&str, Problem> {
        std::str::from_utf8(&self.bytes)
            .map_err(|reason| Problem::body(Code::InvalidJson, "", format!("the body is not UTF-8: {reason}")))
    }
}

/// The media type of the body, which must be JSON.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers)? {
        Some(MediaType::Json) => Ok(()),
        _ => Err(Problem::new(Code::UnsupportedMediaType, "Content-Type must be application/json")),
    }
}

/// The media type of a batch: JSON or NDJSON.
pub fn batch_media_type(headers: &HeaderMap) -> Result<MediaType, Problem> {
    media_type(headers)?.ok_or_else(|| {
        Problem::new(Code::UnsupportedMediaType, "Content-Type must be application/json or application/x-ndjson")
    })
}

/// Returns the media type, or `None` if the API accepts no body of that type. Refuses a compressed body, because the router does not
/// decompress it.
fn media_type(headers: &HeaderMap) -> Result<Option<MediaType>, Problem> {
    let is_plain = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|encoding| !is_plain(encoding)) {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "Content-Encoding must be absent or identity: send the body uncompressed",
        ));
    }
    let Some(text) = single(headers, "Content-Type")?.and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    Ok(if essence.eq_ignore_ascii_case("application/json") {
        Some(MediaType::Json)
    } else if essence.eq_ignore_ascii_case("application/x-ndjson") {
        Some(MediaType::NdJson)
    } else {
        None
    })
}

impl BodyLimits {
    pub fn new(max_bytes: usize, max_buffered_bytes: usize, timeout: Duration) -> Self {
        Self {
            max_bytes,
            timeout,
            budget: Shares::new(max_buffered_bytes),
            max_buffered_bytes,
            max_bytes_of_key: (max_buffered_bytes / KEY_SHARE).max(max_bytes),
        }
    }

    /// Reads the body of a request about one thing.
    pub async fn read_single(&self, body: Upload, deadline: RequestDeadline) -> Result<Payload, Problem> {
        self.read(body, self.max_bytes.min(MAX_SINGLE_BYTES), deadline).await
    }

    /// Reads the body of a request that may have none. An absent body counts as the empty object and needs no media type.
    pub async fn read_optional(
        &self,
        headers: &HeaderMap,
        body: Upload,
        deadline: RequestDeadline,
    ) -> Result<Payload, Problem> {
        let payload = self.read_single(body, deadline).await?;
        if payload.bytes.is_empty() {
            return Ok(Payload { bytes: Bytes::from_static(b"{}"), _taken: None });
        }
        require_json(headers)?;
        Ok(payload)
    }

    /// Reads the body of a batch.
    pub async fn read_batch(&self, body: Upload, deadline: RequestDeadline) -> Result<Payload, Problem> {
        self.read(body, self.max_bytes, deadline).await
    }

    async fn read(&self, body: Upload, max_bytes: usize, deadline: RequestDeadline) -> Result<Payload, Problem> {
        let until = deadline.0.min(Instant::now() + self.timeout);
        match tokio::time::timeout_at(until, self.collect(body, max_bytes)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                count_refused(RefusalReason::BodyTimeout);
                Err(Problem::new(Code::RequestTimeout, "the body did not arrive in time").closing())
            }
        }
    }

    async fn collect(&self, Upload { mut body, caller }: Upload, max_bytes: usize) -> Result<Payload, Problem> {
        let too_large = || {
            count_refused(RefusalReason::BodyTooLarge);
            Problem::new(Code::BodyTooLarge, format!("the body may have {max_bytes} bytes")).closing()
        };
        // A declared length is refused before a byte of it is read.
        let declared = body.size_hint().lower();
        if usize::try_from(declared).map_or(true, |declared| declared > max_bytes) {
            return Err(too_large());
        }
        let mut taken = None;
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|reason| {
                // The client is gone, or does not speak HTTP, and does not read this answer.
                tracing::debug!(%reason, "a body broke off");
                Problem::new(Code::InvalidJson, "the body broke off").closing()
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + rest.len() + data.len() > max_bytes {
                return Err(too_large());
            }
            self.charge(&mut taken, &caller, data.len())?;
            // Most bodies are one frame, which is then taken as it is.
            if first.is_empty() && rest.is_empty() {
                first = data;
                continue;
            }
            if rest.is_empty() {
                rest.reserve(usize::try_from(declared).unwrap_or_default().max(first.len() + data.len()));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
        let bytes = if rest.is_empty() { first } else { rest.freeze() };
        Ok(Payload { bytes, _taken: taken })
    }

    /// Counts `len` more bytes against the budget of all bodies and the share of the caller.
    fn charge(&self, taken: &mut Option<Taken>, caller: &Caller, len: usize) -> Result<(), Problem> {
        let charged = match taken {
            Some(taken) => taken.more(len),
            None => {
                let share = match caller {
                    Caller::Key(_) => self.max_bytes_of_key,
                    // Behind a gateway, every client has its address.
                    Caller::Address(_) => self.max_buffered_bytes,
                };
                self.budget.take(caller.clone(), share, len).map(|first| *taken = Some(first))
            }
        };
        charged.map_err(|exhausted| match (exhausted, caller) {
            (Exhausted::Share, Caller::Key(key)) => {
                count_refused(RefusalReason::KeyBodyMemory);
                let detail = format!("too many bodies of the key {key} are being read; send fewer requests at once");
                Problem::new(Code::RateLimited, detail).closing()
            }
            (Exhausted::Share | Exhausted::All, _) => {
                count_refused(RefusalReason::BodyMemory);
                Problem::new(Code::Overloaded, "too many bodies are being read").closing()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use ledger::KeyName;

    use super::*;

    fn soon() -> RequestDeadline {
        RequestDeadline(Instant::now() + Duration::from_secs(5))
    }

    fn upload(body: impl Into<Body>) -> Upload {
        Upload { body: body.into(), caller: Caller::Address(None) }
    }

    fn chunks(count: usize, len: usize) -> Upload {
        let chunk = move |_| Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; len]));
        upload(Body::from_stream(futures_util::stream::iter((0..count).map(chunk))))
    }

    async fn code(limits: &BodyLimits, body: Upload) -> Code {
        limits.read_batch(body, soon()).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn bodies_are_read_whole_within_their_bounds() {
        let limits = BodyLimits::new(1000, 1500, Duration::from_secs(1));
        for (count, len) in [(0, 0), (1, 1000), (10, 100), (3, 7)] {
            let payload = limits.read_batch(chunks(count, len), soon()).await.unwrap();
            assert_eq!(payload.text().unwrap().len(), count * len);
        }
        assert_eq!(code(&limits, chunks(11, 100)).await, Code::BodyTooLarge);
        assert_eq!(code(&limits, upload(vec![b'x'; 1001])).await, Code::BodyTooLarge);
    }

    #[tokio::test]
    async fn bodies_share_a_budget_and_give_it_back() {
        let limits = BodyLimits::new(1000, 1500, Duration::from_secs(1));
        let first = limits.read_batch(chunks(10, 100), soon()).await.unwrap();
        assert_eq!(code(&limits, chunks(10, 100)).await, Code::Overloaded);
        drop(first);
        assert!(limits.read_batch(chunks(10, 100), soon()).await.is_ok());
    }

    #[tokio::test]
    async fn one_key_has_a_share_of_the_memory_for_bodies() {
        let limits = BodyLimits::new(1000, 4000, Duration::from_secs(1));
        let of = |key: &str, len: usize| Upload {
            caller: Caller::Key(KeyName::new(key).unwrap()),
            ..upload(vec![b'x'; len])
        };
        let first = limits.read_batch(of("one", 1000), soon()).await.unwrap();
        let second = limits.read_batch(of("one", 1000), soon()).await.unwrap();
        assert_eq!(code(&limits, of("one", 1)).await, Code::RateLimited);
        assert!(limits.read_batch(of("two", 1000), soon()).await.is_ok(), "another key has memory of its own");
        drop(first);
        assert!(limits.read_batch(of("one", 1000), soon()).await.is_ok());
        // Bodies of callers without a key have what is left.
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(limits.read_batch(chunks(10, 100), soon()).await.unwrap());
        }
        assert_eq!(code(&limits, chunks(10, 100)).await, Code::Overloaded);
        drop((second, others));
        // A body of the largest size is always within the share of its key.
        let least = BodyLimits::new(1000, 1000, Duration::from_secs(1));
        assert!(least.read_batch(of("one", 1000), soon()).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_given_up() {
        let limits = BodyLimits::new(1000, 1500, Duration::from_millis(10));
        let stalled = futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
        assert_eq!(code(&limits, upload(Body::from_stream(stalled))).await, Code::RequestTimeout);
    }

    #[tokio::test]
    async fn a_body_can_be_left_out_where_nothing_need_be_said() {
        let limits = BodyLimits::new(1000, 1500, Duration::from_secs(1));
        let payload = limits.read_optional(&HeaderMap::new(), upload(Body::empty()), soon()).await.unwrap();
        assert_eq!(payload.text().unwrap(), "{}");
        let untyped = limits.read_optional(&HeaderMap::new(), upload("{}"), soon()).await;
        assert_eq!(untyped.unwrap_err().code(), Code::UnsupportedMediaType);
    }

    #[test]
    fn media_types() {
        let with = |value: &str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            media_type(&headers).unwrap()
        };
        assert_eq!(with("application/json"), Some(MediaType::Json));
        assert_eq!(with("Application/JSON; charset=utf-8"), Some(MediaType::Json));
        assert_eq!(with("application/x-ndjson"), Some(MediaType::NdJson));
        assert_eq!(with("text/plain"), None);
        assert_eq!(with("application/jsonx"), None);
        assert_eq!(media_type(&HeaderMap::new()).unwrap(), None);
        let of = |headers: &[(HeaderName, &str)]| {
            let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            media_type(&headers.collect()).map_err(|problem| problem.code())
        };
        let json = (header::CONTENT_TYPE, "application/json");
        assert_eq!(of(&[json.clone(), (header::CONTENT_ENCODING, "identity")]), Ok(Some(MediaType::Json)));
        for packed in ["gzip", "br", "identity, gzip", ""] {
            let packed = of(&[json.clone(), (header::CONTENT_ENCODING, packed)]);
            assert_eq!(packed, Err(Code::UnsupportedMediaType));
        }
        assert_eq!(of(&[json.clone(), json.clone()]), Ok(Some(MediaType::Json)));
        assert_eq!(of(&[json, (header::CONTENT_TYPE, "text/plain")]), Err(Code::InvalidParameter));
    }
}
