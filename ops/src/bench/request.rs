//! Request bodies written and answers counted byte by byte: what the client spends, the server cannot.

use std::io::Write;

use bytes::Bytes;

use super::{random::Random, tally::Tally, workload::Picker};

/// Account ids of a bench: the same in every run, so that a second run finds them open.
pub fn account_id(number: usize) -> String {
    format!("bench:{number}")
}

pub const ASSET: &str = "USD";
/// Amounts are below this many minor units.
const AMOUNTS: usize = 10_000;
/// Bytes of one transfer in a request, rounded up.
const TRANSFER_BYTES: usize = 144;

/// Writes the requests of one connection.
#[derive(Debug)]
pub struct Writer {
    random: Random,
    buffer: Vec<u8>,
}

impl Writer {
    pub fn new(random: Random) -> Self {
        Self { random, buffer: Vec::new() }
    }

    /// `POST /v1/transfers`
    pub fn single(&mut self, picker: &Picker, now_ms: u64) -> Bytes {
        self.buffer.reserve(TRANSFER_BYTES);
        self.transfer(picker, now_ms);
        self.take()
    }

    /// `POST /v1/transfers:batch`
    pub fn batch(&mut self, picker: &Picker, size: usize, now_ms: u64) -> Bytes {
        self.buffer.reserve(size * TRANSFER_BYTES);
        self.buffer.extend_from_slice(b"{\"transfers\":[");
        for item in 0..size {
            if item > 0 {
                self.buffer.push(b',');
            }
            self.transfer(picker, now_ms);
        }
        self.buffer.extend_from_slice(b"]}");
        self.take()
    }

    fn transfer(&mut self, picker: &Picker, now_ms: u64) {
        let (debit, credit) = picker.pick(&mut self.random);
        let minor = self.random.below(AMOUNTS - 1) + 1;
        let id = time_ordered_id(now_ms, &mut self.random);
        // Writing to a Vec cannot fail.
        let _ = write!(
            self.buffer,
            "{{\"id\":\"{id}\",\"debit\":\"bench:{debit}\",\"credit\":\"bench:{credit}\",\"amount\":\"{}.{:02}\",\
             \"asset\":\"{ASSET}\"}}",
            minor / 100,
            minor % 100,
        );
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.buffer))
    }
}

/// A version 7 UUID, as the API advises: ids that begin with the time keep the database's indexes growing at one edge.
fn time_ordered_id(now_ms: u64, random: &mut Random) -> uuid::Uuid {
    let mut bytes = [0_u8; 10];
    bytes[..8].copy_from_slice(&random.next().to_be_bytes());
    bytes[8..].copy_from_slice(&random.next().to_be_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(now_ms, &bytes).into_uuid()
}

const STATUS: &[u8] = b"\"status\":\"";
const CODE: &[u8] = b"\"code\":\"";

/// Counts the outcomes in the answer to `items` transfers. The answer is compact JSON: it is not parsed, its statuses and
/// codes are picked out of it.
pub fn count(status: http::StatusCode, answer: &[u8], items: u64, tally: &mut Tally) {
    let (mut counted, mut codes) = (0, 0);
    let mut rest = answer;
    while let Some(quote) = rest.iter().position(|&byte| byte == b'"') {
        rest = &rest[quote..];
        if let Some(word) = word_after(STATUS, rest) {
            counted += 1;
            match word {
                b"posted" => tally.posted += 1,
                b"pending" => tally.pending += 1,
                // A code says more.
                _ => {}
            }
        } else if let Some(code) = word_after(CODE, rest) {
            codes += 1;
            tally.count_code(&String::from_utf8_lossy(code));
        }
        rest = &rest[1..];
    }
    if !status.is_success() && codes == 0 {
        tally.count_code(status.as_str());
    } else if status.is_success() && counted != items {
        tally.count_code("unreadable_answer");
    }
}

/// The string that follows `key` at the beginning of `text`.
fn word_after<'a>(key: &[u8], text: &'a [u8]) -> Option<&'a [u8]> {
    let word = text.strip_prefix(key)?;
    let end = word.iter().position(|&byte| byte == b'"')?;
    Some(&word[..end])
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::bench::workload::{Locality, Workload};

    #[test]
    fn requests_are_the_apis() {
        let picker = Picker::new(Workload::Uniform, Locality::Any, vec![0; 10]).unwrap();
        let mut writer = Writer::new(Random::new(1, 1));
        let batch: serde_json::Value = serde_json::from_slice(&writer.batch(&picker, 3, 1_000)).unwrap();
        let transfers = batch["transfers"].as_array().unwrap();
        assert_eq!(transfers.len(), 3);
        for transfer in transfers {
            let id = uuid::Uuid::parse_str(transfer["id"].as_str().unwrap()).unwrap();
            assert_eq!(id.get_version_num(), 7);
            assert_ne!(transfer["debit"], transfer["credit"]);
            assert!(ledger::parse_minor(transfer["amount"].as_str().unwrap(), 2).unwrap() > 0);
        }
        assert_ne!(transfers[0]["id"], transfers[1]["id"]);
        let single: serde_json::Value = serde_json::from_slice(&writer.single(&picker, 1_000)).unwrap();
        assert_eq!(single["asset"], ASSET);
    }

    #[test]
    fn answers_are_counted_by_outcome() {
        let mut tally = Tally::new().unwrap();
        let answer = br#"{"results":[{"id":"1","status":"posted","replayed":false},{"id":"2","status":"rejected",
            "replayed":false,"code":"insufficient_funds"},{"id":"3","status":"pending","replayed":false}]}"#;
        count(StatusCode::OK, answer, 3, &mut tally);
        count(StatusCode::SERVICE_UNAVAILABLE, br#"{"status":503,"code":"overloaded"}"#, 3, &mut tally);
        count(StatusCode::BAD_GATEWAY, b"", 1, &mut tally);
        assert_eq!((tally.posted, tally.pending), (1, 1));
        let codes: Vec<(&str, u64)> = tally.codes.iter().map(|(code, count)| (code.as_str(), *count)).collect();
        assert_eq!(codes, [("502", 1), ("insufficient_funds", 1), ("overloaded", 1)]);
    }
}
