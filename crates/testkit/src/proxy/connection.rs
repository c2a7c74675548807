//! One connection through the proxy. It cuts the bytes of a PostgreSQL client into messages.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{CommitFault, Shared};

const PIECE_BYTES: usize = 64 * 1024;
/// The answer "no" to a request for encryption.
const NO: &[u8] = b"N";
/// The end of the message with which a server reports that it carried out a COMMIT. It is the command's tag. After a failure the server
/// sends another tag, or none.
const COMMITTED: &[u8] = b"COMMIT\0";

/// Forwards in both directions until either side ends, or the proxy breaks it.
pub async fn run(client: TcpStream, server: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut outward = Outward { from_client, to_server, frontend: Frontend::default(), shared };
    // The server sends nothing before the startup message, so the two directions need not share the socket yet.
    let Some(startup) = outward.startup(&mut to_client).await? else { return Ok(()) };
    let drops_options = shared.drops_options.load(SeqCst);
    let startup = if drops_options { without_options(&startup) } else { startup };
    outward.to_server.write_all(&startup).await?;
    let reply_is_doomed = AtomicBool::new(false);
    let mut homeward = Homeward { from_server, to_client, shared };
    tokio::select! {
        ended = outward.run(&reply_is_doomed) => ended,
        ended = homeward.run(&reply_is_doomed) => ended,
    }
}

struct Outward<'a> {
    from_client: OwnedReadHalf,
    to_server: OwnedWriteHalf,
    frontend: Frontend,
    shared: &'a Shared,
}

impl Outward<'_> {
    /// Reads the startup message. `None` if the client closes the connection before it.
    async fn startup(&mut self, to_client: &mut OwnedWriteHalf) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.message().await? {
                Some(Message::EncryptionRequest) => to_client.write_all(NO).await?,
                Some(Message::Commit(message) | Message::Other(message)) => return Ok(Some(message)),
                None => return Ok(None),
            }
        }
    }

    async fn run(&mut self, reply_is_doomed: &AtomicBool) -> io::Result<()> {
        while let Some(message) = self.message().await? {
            let (bytes, fault) = match message {
                Message::EncryptionRequest => continue,
                Message::Commit(bytes) => (bytes, self.shared.take_commit_fault()),
                Message::Other(bytes) => (bytes, CommitFault::None),
            };
            match fault {
                CommitFault::None => self.to_server.write_all(&bytes).await?,
                CommitFault::DropReply => {
                    // The server has answered everything before the COMMIT, so that all further bytes from it are the answer to the COMMIT.
                    reply_is_doomed.store(true, SeqCst);
                    self.to_server.write_all(&bytes).await?;
                }
                CommitFault::Swallow => {
                    self.shared.commit_fault_done();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn message(&mut self) -> io::Result<Option<Message>> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            if let Some(message) = self.frontend.take() {
                return Ok(Some(message));
            }
            let length = self.from_client.read(&mut piece).await?;
            if length == 0 {
                return Ok(None);
            }
            self.shared.pass().await;
            self.frontend.push(&piece[..length]);
        }
    }
}

struct Homeward<'a> {
    from_server: OwnedReadHalf,
    to_client: OwnedWriteHalf,
    shared: &'a Shared,
}

impl Homeward<'_> {
    async fn run(&mut self, reply_is_doomed: &AtomicBool) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut doomed = Vec::new();
        loop {
            let length = self.from_server.read(&mut piece).await?;
            if length == 0 {
                return Ok(());
            }
            self.shared.pass().await;
            if reply_is_doomed.load(SeqCst) {
                // The server answers a part of the script before it has the rows. Only the end of its answer concerns the COMMIT.
                doomed.extend_from_slice(&piece[..length]);
                if doomed.windows(COMMITTED.len()).any(|bytes| bytes == COMMITTED) {
                    self.shared.commit_fault_done();
                    return Ok(());
                }
                continue;
            }
            self.to_client.write_all(&piece[..length]).await?;
        }
    }
}

/// The client asks for an encrypted connection.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Collects bytes until a message is complete.
#[derive(Debug, Default)]
pub struct Frontend {
    buffer: Vec<u8>,
    /// True after the startup message, which is the only message without a type byte.
    started: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A request for encryption. The proxy refuses it, because it could not read encrypted messages.
    EncryptionRequest,
    Commit(Vec<u8>),
    Other(Vec<u8>),
}

impl Frontend {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub fn take(&mut self) -> Option<Message> {
        // The length includes itself and excludes the type byte.
        let type_bytes = usize::from(self.started);
        let length: [u8; 4] = self.buffer.get(type_bytes..type_bytes + 4)?.try_into().ok()?;
        let whole = type_bytes + usize::try_from(u32::from_be_bytes(length)).ok()?;
        if self.buffer.len() < whole {
            return None;
        }
        let message: Vec<u8> = self.buffer.drain(..whole).collect();
        if self.started {
            return Some(if is_commit(&message) { Message::Commit(message) } else { Message::Other(message) });
        }
        let code: [u8; 4] = message.get(4..8)?.try_into().ok()?;
        if matches!(u32::from_be_bytes(code), SSL_REQUEST | GSS_REQUEST) {
            return Some(Message::EncryptionRequest);
        }
        self.started = true;
        Some(Message::Other(message))
    }
}

/// Whether a message is the script with which the lane commits a batch. The script is one simple query from the lock of `lane_fence` to
/// COMMIT.
fn is_commit(message: &[u8]) -> bool {
    let script = message.get(5..).unwrap_or_default();
    message.first() == Some(&b'Q')
        && script.starts_with(b"BEGIN; LOCK TABLE shardledger.lane_fence ")
        && script.ends_with(b"; COMMIT\0")
}

/// Removes the parameter `options` from a startup message. The message has a length, a protocol version, and pairs of
/// zero-terminated texts.
pub fn without_options(startup: &[u8]) -> Vec<u8> {
    let (head, parameters) = startup.split_at(8.min(startup.len()));
    let texts: Vec<&[u8]> = parameters.split(|byte| *byte == 0).collect();
    let kept = texts.chunks_exact(2).filter(|pair| !pair[0].is_empty() && pair[0] != b"options");
    let mut message = head.to_vec();
    kept.flatten().for_each(|text| message.extend([*text, &[0]].concat()));
    message.push(0);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Vec<u8> {
        let length = u32::try_from(4 + text.len() + 1).unwrap();
        [b"Q", &length.to_be_bytes()[..], text.as_bytes(), b"\0"].concat()
    }

    #[test]
    fn only_the_options_are_taken_out_of_a_startup_message() {
        let startup = |parameters: &[u8]| {
            let length = u32::try_from(8 + parameters.len()).unwrap();
            [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat()
        };
        let all = startup(b"user\0ledger\0options\0-c jit=off\0database\0s0\0\0");
        assert_eq!(without_options(&all), startup(b"user\0ledger\0database\0s0\0\0"));
    }

    #[test]
    fn messages_come_out_whole_however_they_came_in() {
        let ssl = [8_u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat();
        let startup = [9_u32.to_be_bytes().to_vec(), 196_608_u32.to_be_bytes().to_vec(), vec![0]].concat();
        let batch = query("BEGIN; LOCK TABLE shardledger.lane_fence IN SHARE ROW EXCLUSIVE MODE; COMMIT");
        let all = [ssl, startup.clone(), query("COMMIT"), batch.clone()].concat();
        let mut frontend = Frontend::default();
        let mut messages = Vec::new();
        for byte in all {
            frontend.push(&[byte]);
            messages.extend(frontend.take());
        }
        let expected = [
            Message::EncryptionRequest,
            Message::Other(startup),
            Message::Other(query("COMMIT")),
            Message::Commit(batch),
        ];
        assert_eq!(messages, expected);
    }
}
