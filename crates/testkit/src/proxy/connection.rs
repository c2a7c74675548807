//! One connection through the proxy.

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

use super::{
    CommitFault, Shared,
    frontend::{self, Frontend, Message},
};

const PIECE_BYTES: usize = 64 * 1024;
/// The answer "no" to a request for encryption.
const NO: &[u8] = b"N";
/// The end of the message with which a server reports that a COMMIT was carried out: the command's tag. After a failure the
/// tag is another one, or none comes.
const COMMITTED: &[u8] = b"COMMIT\0";

/// Forwards in both directions until either side ends, or the proxy breaks it.
pub async fn run(client: TcpStream, server: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut outward = Outward { from_client, to_server, frontend: Frontend::default(), shared };
    // Until the startup message nothing comes from the server, so the two directions need not share the socket yet.
    let Some(startup) = outward.startup(&mut to_client).await? else { return Ok(()) };
    let drops_options = shared.drops_options.load(SeqCst);
    let startup = if drops_options { frontend::without_options(&startup) } else { startup };
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
    /// The startup message; `None` when the client went away before it.
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
                    // Everything before it was answered, so that all further bytes from the server are the answer to it.
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
                // The server answers a part of the script before it has the rows. Only the end tells of the COMMIT.
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
