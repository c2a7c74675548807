//! What can go wrong in a session, and what the server said.

use std::{fmt, io};

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

/// Why a connection, or a script, failed. No message contains a password or the text of a script.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused a statement with severity `ERROR`. The session stays usable. An open transaction of the script
    /// is failed until the caller sends `ROLLBACK`; [`Session::transaction`](crate::Session::transaction) tells whether
    /// there is one.
    #[error("{0}")]
    Statement(Box<ServerMessage>),
    /// The server ended the session with severity `FATAL` or `PANIC`. What was sent may have been carried out. While the
    /// session is being connected, this is a refusal: a wrong password, too many connections, a server that starts.
    #[error("the server ended the session: {0}")]
    Terminated(Box<ServerMessage>),
    /// The socket broke or could not be opened. What was sent may have been carried out.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The encrypted connection was not made, or the server's certificate was refused.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// One side broke the protocol, or the session is used after its end. Unless the message says that nothing was sent,
    /// what was sent may have been carried out.
    #[error("PostgreSQL protocol: {0}")]
    Protocol(String),
    /// The two sides did not agree on an authentication, or the server did not prove that it knows the password.
    #[error("authentication failed: {0}")]
    Authentication(String),
}

impl Error {
    /// The message of the server, if the server sent one.
    pub fn server(&self) -> Option<&ServerMessage> {
        match self {
            Self::Statement(message) | Self::Terminated(message) => Some(message),
            _ => None,
        }
    }

    /// The SQLSTATE, if the server sent a message.
    pub fn code(&self) -> Option<&str> {
        self.server().map(|message| message.code.as_str())
    }
}

/// The error for a message that the parser refuses.
pub(crate) fn malformed(error: io::Error) -> Error {
    Error::Protocol(error.to_string())
}

/// How grave a [`ServerMessage`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Every session of the server ends.
    Panic,
    /// This session ends.
    Fatal,
    /// The statement, and with it the transaction, fails.
    Error,
    /// The statement succeeds, but not in every respect.
    Warning,
    /// The server reports something of interest.
    Notice,
    /// The server reports something that was asked for.
    Info,
    /// The message is meant for the server's log.
    Log,
    /// The message is meant for developers.
    Debug,
}

impl Severity {
    /// Reads the word that the server sends.
    fn of(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"PANIC" => Self::Panic,
            b"FATAL" => Self::Fatal,
            b"ERROR" => Self::Error,
            b"WARNING" => Self::Warning,
            b"NOTICE" => Self::Notice,
            b"INFO" => Self::Info,
            b"LOG" => Self::Log,
            b"DEBUG" => Self::Debug,
            _ => return None,
        })
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panic => "PANIC",
            Self::Fatal => "FATAL",
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
            Self::Info => "INFO",
            Self::Log => "LOG",
            Self::Debug => "DEBUG",
        })
    }
}

/// An error or a notice of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerMessage {
    /// How grave the message is.
    pub severity: Severity,
    /// The SQLSTATE, five characters.
    pub code: String,
    /// The message itself.
    pub message: String,
    /// More about the message. It can contain values of the row that was refused.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The table that the message is about.
    pub table: Option<String>,
    /// The constraint that was violated.
    pub constraint: Option<String>,
}

impl ServerMessage {
    /// Reads the fields of a message. `severity` is for a server that sends none that is known.
    pub(crate) fn read(mut fields: ErrorFields<'_>, severity: Severity) -> Result<Self, Error> {
        let mut message = Self {
            severity,
            code: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
            table: None,
            constraint: None,
        };
        let mut localized = None;
        let mut known = None;
        while let Some(field) = fields.next().map_err(malformed)? {
            // Before authentication the server sends messages in its own encoding.
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                // Severity in the server's language, and the same word in English, which not every pooler sends.
                b'S' => localized = Severity::of(field.value_bytes()),
                b'V' => known = Severity::of(field.value_bytes()),
                b'C' => message.code = text(),
                b'M' => message.message = text(),
                b'D' => message.detail = Some(text()),
                b'H' => message.hint = Some(text()),
                b't' => message.table = Some(text()),
                b'n' => message.constraint = Some(text()),
                _ => {}
            }
        }
        message.severity = known.or(localized).unwrap_or(severity);
        Ok(message)
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, " ({more})")?;
        }
        Ok(())
    }
}
