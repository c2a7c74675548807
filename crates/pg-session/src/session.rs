//! A session, its scripts and their results.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{
    backend::{DataRowBody, Message},
    frontend,
};

use crate::{
    error::{Error, ServerMessage, Severity, malformed},
    options::ConnectOptions,
    socket::{Channel, Step},
    startup,
};

/// The rows of a `COPY` are cut into messages of this length. The server holds one message in memory.
const CHUNK: usize = 128 << 10;
/// The rows of one script may occupy this much.
const MAX_ROWS: usize = 256 << 20;
/// Warnings beyond this number are dropped.
const MAX_WARNINGS: usize = 100;

const COPY_DATA: u8 = b'd';
const COPY_DONE: Bytes = Bytes::from_static(b"c\0\0\0\x04");

/// One connection to a PostgreSQL database.
///
/// No method has a time limit. A caller that gives up drops the future, and then the session: a session that was
/// abandoned within [`run`](Self::run) refuses every further script.
pub struct Session {
    channel: Channel,
    /// Messages are composed here, so that their memory is used again.
    draft: BytesMut,
    backend_pid: i32,
    transaction: TransactionStatus,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// A script runs, or its future was dropped.
    Busy,
    /// The connection broke, or the server ended it.
    Ended,
}

/// Whether the session is within a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// The session is in no transaction.
    Idle,
    /// A transaction is open.
    Open,
    /// A transaction failed. It accepts nothing but its end.
    Failed,
}

/// What a script did. Every statement succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// The command tags of the statements in order.
    pub tags: Vec<Tag>,
    /// The rows of the last statement that has a result set, in text format. A null is `None`.
    pub rows: Vec<Vec<Option<String>>>,
    /// The notices of severity `WARNING`, at most 100. A cancelled wait for a synchronous stand-by arrives so.
    pub warnings: Vec<ServerMessage>,
    /// Whether the script left a transaction open.
    pub transaction: TransactionStatus,
}

/// What the server reports about a completed statement: `BEGIN`, `UPDATE 3`, `INSERT 0 1`, `COPY 500`.
#[derive(Clone, PartialEq, Eq)]
pub struct Tag(Box<str>);

impl Session {
    /// Connects, encrypts and authenticates as the options say.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the server is not reached, [`Error::Terminated`] if it refuses the session, [`Error::Tls`] and
    /// [`Error::Authentication`] if the two sides do not agree, [`Error::Protocol`] if the peer is no PostgreSQL server.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, Error> {
        let mut channel = Channel::open(options).await?;
        let started = startup::start(&mut channel, options).await?;
        Ok(Self {
            channel,
            draft: BytesMut::new(),
            backend_pid: started.backend_pid,
            transaction: started.transaction,
            state: State::Ready,
        })
    }

    /// The process id of the server's backend, as in `pg_blocking_pids`. It is zero if a pooler told none.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Whether the session was within a transaction when it last became ready, also after [`Error::Statement`].
    pub fn transaction(&self) -> TransactionStatus {
        self.transaction
    }

    /// Whether [`run`](Self::run) accepts a script: the session has not ended, and no script was abandoned.
    pub fn is_usable(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether the server has ended the session, as far as is known without waiting. A script that is sent afterwards
    /// may still fail because the server ends the session then.
    pub fn has_ended(&mut self) -> bool {
        match self.state {
            State::Ready => self.channel.is_closed(),
            State::Busy => false,
            State::Ended => true,
        }
    }

    /// Runs a script of several statements, and reads all answers.
    ///
    /// `copy` is the payload of the one `COPY … FROM STDIN` in the script. Script and payload are sent together, without
    /// a wait for the server. After an error in the script the server itself skips the payload.
    ///
    /// Statements outside `BEGIN` and `COMMIT` share one implicit transaction.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] if the server refuses a statement; the statements after it are not run. This includes a
    /// `COPY … FROM STDIN` without payload. After every other error the session is over, and the caller does not know
    /// how much was carried out, except if a script is refused because it contains a zero byte: then nothing was sent.
    pub async fn run(&mut self, script: &str, copy: Option<Bytes>) -> Result<Completed, Error> {
        match self.state {
            State::Ready => {}
            State::Busy => {
                return Err(unsent("a script was abandoned half way, so the session cannot be used again"));
            }
            State::Ended => return Err(unsent("the session is over")),
        }
        let offered = copy.is_some();
        self.push_script(script, copy)?;
        self.state = State::Busy;
        let result = self.answers(offered).await;
        self.state = match &result {
            Ok(_) | Err(Error::Statement(_)) => State::Ready,
            Err(_) => State::Ended,
        };
        result
    }

    /// Ends the session in an orderly way. A session that is not usable is only dropped, which closes its socket.
    pub async fn close(mut self) {
        if self.state != State::Ready {
            return;
        }
        frontend::terminate(&mut self.draft);
        self.channel.push(self.draft.split().freeze());
        // There is nothing left that an error could harm.
        while !self.channel.is_sent() && self.channel.step().await.is_ok() {}
        let _ = self.channel.shut_down().await;
    }

    /// Queues the script, and the payload without copying it.
    fn push_script(&mut self, script: &str, copy: Option<Bytes>) -> Result<(), Error> {
        if let Err(error) = frontend::query(script, &mut self.draft) {
            self.draft.clear();
            return Err(unsent(&format!("the script cannot be sent: {error}")));
        }
        let Some(mut payload) = copy else {
            self.channel.push(self.draft.split().freeze());
            return Ok(());
        };
        while !payload.is_empty() {
            let chunk = payload.split_to(payload.len().min(CHUNK));
            self.draft.put_u8(COPY_DATA);
            // The length counts its own four bytes.
            self.draft.put_u32(chunk.len() as u32 + 4);
            self.channel.push(self.draft.split().freeze());
            self.channel.push(chunk);
        }
        self.channel.push(self.draft.split().freeze());
        self.channel.push(COPY_DONE);
        Ok(())
    }

    /// Reads until the server is ready and everything is sent. `payload` tells whether the script came with one.
    async fn answers(&mut self, payload: bool) -> Result<Completed, Error> {
        let mut tags = Vec::new();
        let mut rows = Vec::new();
        let mut row_bytes = 0;
        let mut warnings = Vec::new();
        let mut refusal = None;
        let mut copies = 0_usize;
        let mut ready = None;
        while ready.is_none() || !self.channel.is_sent() {
            let Step::Received(message) = self.channel.step().await? else { continue };
            match message {
                Message::CommandComplete(body) => tags.push(Tag(body.tag().map_err(malformed)?.into())),
                Message::RowDescription(_) => {
                    rows.clear();
                    row_bytes = 0;
                }
                Message::DataRow(body) => {
                    row_bytes += body.buffer().len();
                    if row_bytes > MAX_ROWS {
                        return Err(Error::Protocol(format!(
                            "a statement returned more than {MAX_ROWS} bytes of rows"
                        )));
                    }
                    rows.push(row(&body)?);
                }
                Message::NoticeResponse(body) => {
                    let notice = ServerMessage::read(body.fields(), Severity::Notice)?;
                    if notice.severity == Severity::Warning && warnings.len() < MAX_WARNINGS {
                        warnings.push(notice);
                    }
                }
                Message::ErrorResponse(body) => {
                    let error = ServerMessage::read(body.fields(), Severity::Error)?;
                    if matches!(error.severity, Severity::Fatal | Severity::Panic) {
                        return Err(Error::Terminated(Box::new(error)));
                    }
                    refusal.get_or_insert(error);
                }
                Message::CopyInResponse(_) => {
                    copies += 1;
                    if copies > usize::from(payload) {
                        // The server would wait for rows without end.
                        frontend::copy_fail("the client has no rows for this COPY", &mut self.draft)
                            .map_err(malformed)?;
                        self.channel.push(self.draft.split().freeze());
                    }
                }
                Message::ReadyForQuery(body) => ready = Some(TransactionStatus::read(body.status())?),
                Message::EmptyQueryResponse | Message::ParameterStatus(_) | Message::NotificationResponse(_) => {}
                Message::CopyOutResponse(_) => {
                    return Err(Error::Protocol(
                        "the script has a COPY … TO STDOUT, which is not supported".to_owned(),
                    ));
                }
                _ => return Err(Error::Protocol("the server sends a message that belongs to no script".to_owned())),
            }
        }
        if let Some(error) = self.channel.write_error() {
            return Err(error.into());
        }
        let Some(transaction) = ready else {
            return Err(Error::Protocol("the server did not become ready".to_owned()));
        };
        self.transaction = transaction;
        if let Some(error) = refusal {
            return Err(Error::Statement(Box::new(error)));
        }
        if payload && copies == 0 {
            return Err(Error::Protocol(
                "the script has no COPY … FROM STDIN, so its rows are not stored".to_owned(),
            ));
        }
        Ok(Completed { tags, rows, warnings, transaction })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("backend_pid", &self.backend_pid)
            .field("transaction", &self.transaction)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl TransactionStatus {
    pub(crate) fn read(status: u8) -> Result<Self, Error> {
        match status {
            b'I' => Ok(Self::Idle),
            b'T' => Ok(Self::Open),
            b'E' => Ok(Self::Failed),
            other => Err(Error::Protocol(format!("the server is ready in the unknown state {other:#04x}"))),
        }
    }
}

impl Tag {
    /// The tag as the server sends it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number of rows that the statement touched or returned, if its tag has one.
    pub fn rows(&self) -> Option<u64> {
        self.0.rsplit_once(' ').and_then(|(_, rows)| rows.parse().ok())
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn row(body: &DataRowBody) -> Result<Vec<Option<String>>, Error> {
    let mut values = Vec::with_capacity(body.ranges().size_hint().0);
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next().map_err(malformed)? {
        values.push(match range {
            Some(range) => {
                let text = std::str::from_utf8(&body.buffer()[range])
                    .map_err(|_| Error::Protocol("the server sends a value that is not UTF-8".to_owned()))?;
                Some(text.to_owned())
            }
            None => None,
        });
    }
    Ok(values)
}

fn unsent(reason: &str) -> Error {
    Error::Protocol(format!("{reason}; nothing was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_tells_its_rows() {
        for (tag, rows) in [
            ("BEGIN", None),
            ("LOCK TABLE", None),
            ("INSERT 0 5", Some(5)),
            ("UPDATE 3", Some(3)),
            ("COPY 500", Some(500)),
        ] {
            assert_eq!(Tag(tag.into()).rows(), rows, "{tag}");
        }
    }
}
