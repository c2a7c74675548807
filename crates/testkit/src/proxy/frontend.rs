//! What a PostgreSQL client sends, cut into messages.

/// Asks for an encrypted connection.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Collects bytes until a message is whole.
#[derive(Debug, Default)]
pub struct Frontend {
    buffer: Vec<u8>,
    /// The startup message, which has no type byte, has passed.
    started: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// To be answered with a no by the proxy, which could not read on otherwise.
    EncryptionRequest,
    Commit(Vec<u8>),
    Other(Vec<u8>),
}

impl Frontend {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub fn take(&mut self) -> Option<Message> {
        // The length counts itself and not the type byte.
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

/// The script that the lane commits a batch with: one simple query from the lock of `lane_fence` to COMMIT.
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
