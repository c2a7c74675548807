//! Answers that are sent while they are read, part by part, so that a router holds one part of each in memory, however large the answer is.
//!
//! The first part is read before the head is sent: an answer that cannot begin is a problem. A later part that cannot be read breaks the
//! connection off. The last chunk of the body does not come then, and the client's HTTP library reports an incomplete body.

use std::{convert::Infallible, future::Future, io};

use axum::{body::Body, extract::FromRequestParts, response::Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Version, header, request::Parts};
use tokio::time::Instant;

use super::{
    Edge,
    admission::{Caller, Exhausted, Shares, Taken},
    answer::wants_csv,
    context::RequestDeadline,
    metrics::{RefusalReason, count_refused},
    problem::{Code, Problem},
};

/// Answers of this kind that one router sends at once. Each has one part in memory, and asks every shard for the next one.
pub const AT_ONCE: usize = 8;
/// How many of them one key may have.
const OF_KEY: usize = 2;
/// How many of them one address may have that needs no key. Behind a gateway, every client has its address.
const OF_ADDRESS: usize = 6;

/// A part of an answer, and where the next one begins; `None`: this was the last.
pub struct Part<S> {
    pub bytes: Bytes,
    pub next: Option<S>,
}

/// The deadlines of the parts: the request's time counts anew for each.
#[derive(Debug, Clone, Copy)]
pub struct PartDeadlines(std::time::Duration);

impl PartDeadlines {
    pub fn of(deadline: RequestDeadline) -> Self {
        Self(deadline.0.saturating_duration_since(Instant::now()))
    }

    /// The deadline of a part that begins now.
    pub fn next(self) -> Instant {
        Instant::now() + self.0
    }
}

/// The client of a route that can answer with a whole list: whose share the answer takes, and what the client accepts.
#[derive(Debug)]
pub struct Recipient {
    pub caller: Caller,
    /// Whether it asks for a table.
    pub csv: bool,
    version: Version,
}

impl Recipient {
    /// Refuses a client that could take a part for the whole.
    pub fn needs_http_1_1(&self) -> Result<(), Problem> {
        needs_http_1_1(self.version)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Recipient {
    type Rejection = Infallible;

    fn from_request_parts(parts: &mut Parts, _: &S) -> impl Future<Output = Result<Self, Infallible>> + Send {
        std::future::ready(Ok(Self {
            caller: Caller::of(&parts.extensions),
            csv: wants_csv(&parts.headers),
            version: parts.version,
        }))
    }
}

/// Refuses a request by HTTP/1.0, whose answers end where the connection does: one that breaks off would look whole.
fn needs_http_1_1(version: Version) -> Result<(), Problem> {
    if version >= Version::HTTP_11 {
        return Ok(());
    }
    Err(Problem::new(Code::InvalidRequest, "an answer that is sent while it is read needs HTTP/1.1 or HTTP/2"))
}

/// Reads the first part, and answers with it and all that follow.
///
/// # Errors
/// When the first part cannot be read, or too many such answers are being sent, to this caller or altogether.
pub async fn answer<S, R, F>(
    edge: &Edge,
    caller: Caller,
    media_type: &'static str,
    begin: S,
    read: R,
) -> Result<Response, Problem>
where
    S: Send + 'static,
    R: Fn(S) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Part<S>, Problem>> + Send + 'static,
{
    let turn = turn(&edge.streams, caller)?;
    let first = read(begin).await?;
    let mut response = Response::new(Body::from_stream(parts(first, read, turn)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// Admits an answer, which is counted for as long as the result lives.
fn turn(streams: &Shares, caller: Caller) -> Result<Taken, Problem> {
    let share = match caller {
        Caller::Key(_) => OF_KEY,
        Caller::Address(_) => OF_ADDRESS,
    };
    streams.take(caller, share, 1).map_err(|exhausted| match exhausted {
        Exhausted::Share => {
            count_refused(RefusalReason::CallerStreams);
            let detail = format!(
                "a router sends {share} whole lists at once to one caller; read one of them to its end first"
            );
            Problem::new(Code::RateLimited, detail)
        }
        Exhausted::All => {
            count_refused(RefusalReason::InFlight);
            Problem::new(Code::Overloaded, "too many whole lists are being sent")
        }
    })
}

/// The first part and those that are read after it. `held` is dropped with the last part, or when the client is gone.
fn parts<S, R, F>(first: Part<S>, read: R, held: impl Send) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Send,
    R: Fn(S) -> F + Clone + Send,
    F: Future<Output = Result<Part<S>, Problem>> + Send,
{
    let Part { bytes, next } = first;
    let rest = stream::try_unfold(next, move |next| {
        let read = read.clone();
        async move {
            let Some(next) = next else { return Ok(None) };
            match read(next).await {
                Ok(Part { bytes, next }) => Ok(Some((bytes, next))),
                Err(problem) => {
                    tracing::warn!(code = problem.code().as_str(), "an answer broke off that was being sent");
                    Err(io::Error::other(problem.code().as_str()))
                }
            }
        }
    });
    stream::once(std::future::ready(Ok(bytes))).chain(rest).map(move |part| {
        let _held = &held;
        part
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use ledger::KeyName;

    use super::*;

    fn part(number: u32, last: u32) -> Part<u32> {
        Part { bytes: Bytes::from(number.to_string()), next: (number < last).then_some(number + 1) }
    }

    #[test]
    fn an_answer_that_could_break_off_unnoticed_is_refused() {
        assert!(needs_http_1_1(Version::HTTP_10).is_err());
        assert!(needs_http_1_1(Version::HTTP_11).is_ok() && needs_http_1_1(Version::HTTP_2).is_ok());
    }

    #[test]
    fn no_caller_has_all_answers_that_are_sent_at_once() {
        let streams = Shares::new(AT_ONCE);
        let key = |name: &str| Caller::Key(KeyName::new(name).unwrap());
        let code = |result: Result<Taken, Problem>| result.map_err(|problem| problem.code());
        for (caller, share) in [(key("one"), OF_KEY), (Caller::Address(None), OF_ADDRESS)] {
            let held: Vec<Taken> = (0..share).map(|_| turn(&streams, caller.clone()).unwrap()).collect();
            assert_eq!(code(turn(&streams, caller.clone())).unwrap_err(), Code::RateLimited);
            assert!(turn(&streams, key("other")).is_ok(), "another caller has a turn");
            drop(held);
            assert!(turn(&streams, caller).is_ok(), "a turn is given back");
        }
        let all = ["one", "two", "three", "four"].map(|name| [turn(&streams, key(name)), turn(&streams, key(name))]);
        assert!(all.iter().flatten().all(Result::is_ok));
        assert_eq!(code(turn(&streams, key("five"))).unwrap_err(), Code::Overloaded);
    }

    #[tokio::test]
    async fn parts_follow_each_other_to_the_last() {
        let sent = parts(part(1, 3), |number| async move { Ok(part(number, 3)) }, ());
        let sent: Vec<Bytes> = sent.map(Result::unwrap).collect().await;
        assert_eq!(sent, ["1", "2", "3"]);
    }

    #[tokio::test]
    async fn a_part_that_fails_breaks_the_answer_off_and_is_the_last() {
        let read = |number| async move {
            if number == 3 { Err(Problem::new(Code::ShardUnavailable, "s1")) } else { Ok(part(number, 9)) }
        };
        let sent: Vec<io::Result<Bytes>> = parts(part(1, 9), read, ()).collect().await;
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[2].as_ref().unwrap_err().to_string(), "shard_unavailable");
    }

    #[tokio::test]
    async fn a_part_is_read_when_the_client_has_taken_those_before_it() {
        let reads = Arc::new(AtomicUsize::new(0));
        let held = Arc::new(());
        let counted = Arc::clone(&reads);
        let read = move |number| {
            counted.fetch_add(1, Relaxed);
            async move { Ok(part(number, 9)) }
        };
        let mut sent = Box::pin(parts(part(1, 9), read, Arc::clone(&held)));
        sent.next().await.unwrap().unwrap();
        assert_eq!(reads.load(Relaxed), 0);
        sent.next().await.unwrap().unwrap();
        assert_eq!((reads.load(Relaxed), Arc::strong_count(&held)), (1, 2));
        drop(sent);
        assert_eq!(Arc::strong_count(&held), 1, "a client that is gone keeps its turn");
    }
}
