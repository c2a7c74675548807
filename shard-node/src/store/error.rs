//! Errors of statements, sorted by what the lane does about them.

use std::time::Duration;

use identity::Disagreements;
use shard_database::primary::NoPrimary;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// The lane's session failed.
    #[error("{0}")]
    Session(#[from] pg_session::Error),
    /// None of several hosts of `database.url` is a primary.
    #[error("{0}")]
    NoPrimary(#[from] NoPrimary),
    #[error("no answer from PostgreSQL within {0:?}")]
    TimedOut(Duration),
    /// PostgreSQL committed with a warning: a wait for a synchronous stand-by was cancelled.
    #[error("the commit is not confirmed by a stand-by: {0}")]
    Unconfirmed(String),
    /// Another writer wrote to the shard since its state was read.
    #[error("another writer advanced the shard, or its slots changed hands")]
    Fenced,
    /// An operation was refused before stored results were looked up, and stored nothing (for example a failed atomic
    /// group). If it is a replay of an operation that took effect, no id collides; only stored results can tell.
    #[error("an operation that was refused may be a replay of one that took effect")]
    ReplayInDoubt,
    /// The session's database is no longer the accepted one.
    #[error("the server of the shard's database was started again, or replaced, since this session began")]
    Superseded,
    /// No session is open: none has been opened yet, the last one failed, or the gate does not admit one.
    #[error("no session on the shard's database is open")]
    NotOpen,
    /// The gate refused the database.
    #[error("{0}")]
    Refused(#[from] Disagreements),
    #[error("{0}")]
    Corrupt(String),
    /// A booking does not continue the state that it belongs to.
    #[error("{0}")]
    Fold(#[from] ledger::fold::FoldError),
}

/// What to do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The database is unreachable or cannot write: drop the session and try again later.
    Reconnect,
    /// The batch was decided on a wrong assumption (an id that was used before): look the ids up and decide it again.
    Redecide,
    /// Read the shard's state again and what was appended since, then decide the batch again.
    CatchUp,
    /// A retry cannot succeed.
    Report,
}

impl Remedy {
    pub const ALL: [Self; 4] = [Self::Reconnect, Self::Redecide, Self::CatchUp, Self::Report];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reconnect => "reconnect",
            Self::Redecide => "redecide",
            Self::CatchUp => "catch_up",
            Self::Report => "report",
        }
    }
}

impl StoreError {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::NoPrimary(_)
            | Self::TimedOut(_)
            | Self::Refused(_)
            | Self::Superseded
            | Self::NotOpen
            | Self::Unconfirmed(_) => Remedy::Reconnect,
            Self::ReplayInDoubt => Remedy::Redecide,
            Self::Fenced => Remedy::CatchUp,
            Self::Corrupt(_) | Self::Fold(_) => Remedy::Report,
            Self::Session(pg_session::Error::Statement(message)) => by_sqlstate(&message.code),
            // A server that ends a session before it is open may refuse it for good: a wrong password, for example.
            Self::Session(pg_session::Error::Terminated(message)) => by_sqlstate(&message.code),
            Self::Session(pg_session::Error::Authentication(_) | pg_session::Error::Tls(_)) => Remedy::Report,
            Self::Session(_) => Remedy::Reconnect,
            Self::Database(sqlx::Error::Database(error)) => error.code().map_or(Remedy::Report, |c| by_sqlstate(&c)),
            Self::Database(
                sqlx::Error::Decode(_)
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::Encode(_)
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::Tls(_),
            ) => Remedy::Report,
            // The server's certificate is refused: rustls reports what it finds as invalid data.
            Self::Database(sqlx::Error::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                Remedy::Report
            }
            Self::Database(_) => Remedy::Reconnect,
        }
    }
}

impl StoreError {
    /// Whether a row with this key is there already.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(error)) if error.is_unique_violation())
    }

    /// Whether a move is not in the state that its driver believes.
    pub fn is_superseded_move(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.code().as_deref() == Some("SL003"),
            Self::Session(error) => error.code() == Some("SL003"),
            _ => false,
        }
    }

    /// Whether PostgreSQL cancelled the statement: it took longer than its `statement_timeout`.
    pub fn is_out_of_time(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(error)) if error.code().as_deref() == Some("57014"))
    }

    /// Whether the database answers but cannot write: it is read-only, or out of disk, memory or working files.
    pub fn is_refused_write(&self) -> bool {
        let is_refusal = |code: &str| {
            code == "25006" || code.starts_with("531") || code.starts_with("532") || code.starts_with("58")
        };
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.code().is_some_and(|code| is_refusal(&code)),
            Self::Session(error) => error.code().is_some_and(is_refusal),
            _ => false,
        }
    }
}

/// Classifies PostgreSQL's error codes (appendix A of its manual).
fn by_sqlstate(code: &str) -> Remedy {
    match code {
        // unique_violation: an id was used before, or another writer took the position.
        "23505" => Remedy::Redecide,
        // advance_move, change_slots: another driver has taken over a move, or the move has gone on.
        "SL003" => Remedy::Report,
        // check_fence: the shard is not in the state that the batch was decided on.
        "SL001" => Remedy::CatchUp,
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => Remedy::Redecide,
        // read_only_sql_transaction: a demoted primary. Codes such as invalid_password are reported by the last arm.
        "25006" => Remedy::Reconnect,
        // Connection exceptions, resources (disk full, memory, too many connections), operator intervention (shutdown,
        // crash recovery, query cancelled), idle-in-transaction timeout, system errors (I/O).
        _ if code.starts_with("08")
            || code.starts_with("53")
            || code.starts_with("57")
            || code.starts_with("58")
            || code == "25P03" =>
        {
            Remedy::Reconnect
        }
        _ => Remedy::Report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_have_the_right_remedy() {
        for (code, remedy) in [
            ("23505", Remedy::Redecide),
            ("SL001", Remedy::CatchUp),
            ("SL002", Remedy::Report),
            ("57P01", Remedy::Reconnect),
            ("57P03", Remedy::Reconnect),
            ("53100", Remedy::Reconnect),
            ("53300", Remedy::Reconnect),
            ("08006", Remedy::Reconnect),
            ("25P03", Remedy::Reconnect),
            ("23514", Remedy::Report),
            ("XX001", Remedy::Report),
            ("42P01", Remedy::Report),
        ] {
            assert_eq!(by_sqlstate(code), remedy, "{code}");
        }
    }
}
