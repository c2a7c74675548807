//! Starts a session on an open channel: start-up parameters and authentication.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};

use crate::{
    error::{Error, ServerMessage, Severity, malformed},
    options::ConnectOptions,
    session::TransactionStatus,
    socket::{Channel, Step},
};

/// What the server says about the new session.
pub(crate) struct Started {
    pub(crate) backend_pid: i32,
    pub(crate) transaction: TransactionStatus,
}

/// How far a SCRAM exchange is.
enum Scram {
    Unused,
    Begun(ScramSha256),
    /// The server has proved that it knows the password.
    Proved,
}

/// Sends the start-up parameters, authenticates, and waits until the server is ready.
///
/// # Errors
///
/// The server refuses the session ([`Error::Terminated`]), asks for an authentication that the options do not allow, or
/// does not prove that it knows the password, or the connection fails.
pub(crate) async fn start(channel: &mut Channel, options: &ConnectOptions) -> Result<Started, Error> {
    let mut message = BytesMut::new();
    frontend::startup_message(options.startup_parameters(), &mut message).map_err(malformed)?;
    channel.push(message.split().freeze());
    let mut scram = Scram::Unused;
    let mut backend_pid = 0;
    loop {
        let Step::Received(received) = channel.step().await? else { continue };
        match received {
            Message::AuthenticationOk => {
                if let Scram::Begun(_) = scram {
                    let reason = "the server did not prove that it knows the password";
                    return Err(Error::Authentication(reason.to_owned()));
                }
            }
            Message::AuthenticationCleartextPassword => {
                frontend::password_message(password(options)?, &mut message).map_err(malformed)?;
            }
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(options.user.as_bytes(), password(options)?, body.salt());
                frontend::password_message(hash.as_bytes(), &mut message).map_err(malformed)?;
            }
            Message::AuthenticationSasl(body) => {
                let begun = begin_scram(&body, options)?;
                frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), &mut message).map_err(malformed)?;
                scram = Scram::Begun(begun);
            }
            Message::AuthenticationSaslContinue(body) => {
                let Scram::Begun(begun) = &mut scram else { return Err(unexpected("SASL data")) };
                begun.update(body.data()).map_err(|error| Error::Authentication(error.to_string()))?;
                frontend::sasl_response(begun.message(), &mut message).map_err(malformed)?;
            }
            Message::AuthenticationSaslFinal(body) => {
                let Scram::Begun(begun) = &mut scram else { return Err(unexpected("SASL data")) };
                begun.finish(body.data()).map_err(|error| Error::Authentication(error.to_string()))?;
                scram = Scram::Proved;
            }
            Message::AuthenticationGss
            | Message::AuthenticationGssContinue(_)
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => {
                let reason = "the server asks for a method other than trust, password, md5 and SCRAM-SHA-256";
                return Err(Error::Authentication(reason.to_owned()));
            }
            Message::BackendKeyData(body) => backend_pid = body.process_id(),
            Message::ReadyForQuery(body) => {
                let transaction = TransactionStatus::read(body.status())?;
                return Ok(Started { backend_pid, transaction });
            }
            Message::ErrorResponse(body) => {
                let refusal = ServerMessage::read(body.fields(), Severity::Fatal)?;
                return Err(Error::Terminated(Box::new(refusal)));
            }
            Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
            _ => return Err(unexpected("a message that belongs to a query")),
        }
        channel.push(message.split().freeze());
    }
}

fn begin_scram(body: &AuthenticationSaslBody, options: &ConnectOptions) -> Result<ScramSha256, Error> {
    let mut mechanisms = body.mechanisms();
    while let Some(mechanism) = mechanisms.next().map_err(malformed)? {
        if mechanism == SCRAM_SHA_256 {
            return Ok(ScramSha256::new(password(options)?, ChannelBinding::unsupported()));
        }
    }
    Err(Error::Authentication("the server offers no SCRAM-SHA-256".to_owned()))
}

fn password(options: &ConnectOptions) -> Result<&[u8], Error> {
    match &options.password {
        Some(password) => Ok(password.as_bytes()),
        None => Err(Error::Authentication("the server asks for a password, and the URL has none".to_owned())),
    }
}

fn unexpected(what: &str) -> Error {
    Error::Protocol(format!("the server sends {what} while the session starts"))
}
