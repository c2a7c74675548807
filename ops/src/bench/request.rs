//! Writes request bodies and counts answers byte by byte, so that the client uses as little of the machine as possible.

use std::sync::LazyLock;

use http::StatusCode;
use memchr::memmem::Finder;
use serde::Serialize;

use super::{
    tally::Tally,
    workload::{Focus, Picker, Random},
};

/// The account ids of a bench. They are the same in every run, so a second run finds the accounts open.
pub fn account_id(number: usize) -> String {
    format!("bench:{number}")
}

pub const ASSET: &str = "USD";
/// Amounts are below this many minor units.
const AMOUNTS: usize = 10_000;
/// The number of transfers that are kept to be sent again.
const KEPT: usize = 256;

/// How transfer ids are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Ids {
    /// Version 7 UUIDs, which begin with the time, as the API advises: the database's index grows at one edge
    TimeOrdered,
    /// Version 4 UUIDs: each id falls on another page of the index
    Random,
}

/// Writes the requests of one connection.
#[derive(Debug)]
pub struct RequestWriter {
    random: Random,
    ids: Ids,
    /// The share of transfers that are sent a second time.
    replays: f64,
    /// Transfers of earlier requests, which the router has answered.
    answered: Vec<Vec<u8>>,
    /// Transfers of the request that is written now.
    unanswered: Vec<Vec<u8>>,
    focus: Focus,
}

impl RequestWriter {
    pub fn new(random: Random, ids: Ids, replays: f64) -> Self {
        let (answered, unanswered, focus) = (Vec::new(), Vec::new(), Focus::default());
        Self { random, ids, replays, answered, unanswered, focus }
    }

    /// The body of `POST /v1/transfers`
    pub fn single(&mut self, picker: &Picker, now_ms: u64, body: &mut Vec<u8>) {
        self.begin(picker);
        self.transfer(picker, now_ms, body);
    }

    /// The body of `POST /v1/transfers:batch`
    pub fn batch(&mut self, picker: &Picker, size: usize, now_ms: u64, body: &mut Vec<u8>) {
        self.begin(picker);
        body.extend_from_slice(b"{\"transfers\":[");
        for item in 0..size {
            if item > 0 {
                body.push(b',');
            }
            self.transfer(picker, now_ms, body);
        }
        body.extend_from_slice(b"]}");
    }

    /// Begins a request. A connection has only one request under way, so the request before this one is answered.
    fn begin(&mut self, picker: &Picker) {
        picker.focus(&mut self.random, &mut self.focus);
        for transfer in self.unanswered.drain(..) {
            if self.answered.len() < KEPT {
                self.answered.push(transfer);
            } else {
                let place = self.random.below(KEPT);
                self.answered[place] = transfer;
            }
        }
    }

    fn transfer(&mut self, picker: &Picker, now_ms: u64, body: &mut Vec<u8>) {
        if self.replays > 0.0 && !self.answered.is_empty() && self.random.fraction() < self.replays {
            let place = self.random.below(self.answered.len());
            // Each kept transfer is sent once, because a batch that names an id twice is an error of the client.
            body.extend_from_slice(&self.answered.swap_remove(place));
            return;
        }
        let begin = body.len();
        let (debit, credit) = picker.pick(&mut self.random, &mut self.focus);
        let minor = self.random.below(AMOUNTS - 1) + 1;
        body.extend_from_slice(b"{\"id\":\"");
        push_uuid(body, self.id(now_ms));
        body.extend_from_slice(b"\",\"debit\":\"bench:");
        push_number(body, debit);
        body.extend_from_slice(b"\",\"credit\":\"bench:");
        push_number(body, credit);
        body.extend_from_slice(b"\",\"amount\":\"");
        push_number(body, minor / 100);
        body.extend_from_slice(&[b'.', b'0' + (minor / 10 % 10) as u8, b'0' + (minor % 10) as u8]);
        body.extend_from_slice(b"\",\"asset\":\"");
        body.extend_from_slice(ASSET.as_bytes());
        body.extend_from_slice(b"\"}");
        // Twice as many transfers are kept as are sent again, so that the kept transfers change.
        if self.replays > 0.0 && self.random.fraction() < 2.0 * self.replays {
            self.unanswered.push(body[begin..].to_vec());
        }
    }

    fn id(&mut self, now_ms: u64) -> [u8; 16] {
        match self.ids {
            Ids::TimeOrdered => time_ordered_id(now_ms, &mut self.random),
            Ids::Random => random_id(&mut self.random),
        }
    }
}

/// The bytes of a version 7 UUID.
pub fn time_ordered_id(now_ms: u64, random: &mut Random) -> [u8; 16] {
    let mut bytes = random_id(random);
    bytes[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes
}

/// The bytes of a version 4 UUID.
pub fn random_id(random: &mut Random) -> [u8; 16] {
    let bits = (u128::from(random.next()) << 64) | u128::from(random.next());
    let mut bytes = bits.to_be_bytes();
    bytes[6] = 0x40 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    bytes
}

fn push_uuid(body: &mut Vec<u8>, id: [u8; 16]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (index, byte) in id.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            place += 1;
        }
        text[place] = HEX[usize::from(byte >> 4)];
        text[place + 1] = HEX[usize::from(byte & 15)];
        place += 2;
    }
    body.extend_from_slice(&text);
}

fn push_number(body: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut place = digits.len();
    loop {
        place -= 1;
        digits[place] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    body.extend_from_slice(&digits[place..]);
}

static POSTED: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"status\":\"posted\""));
static PENDING: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"status\":\"pending\""));
static STATUS: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"status\":\""));
static REPLAYED: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"replayed\":true"));
static CODE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"code\":\""));

/// Counts the outcomes in the answer to `items` transfers. The answer is compact JSON. Its statuses and codes are searched for without parsing.
pub fn count(status: StatusCode, answer: &[u8], items: u64, tally: &mut Tally) {
    let occurrences = |finder: &Finder<'_>| finder.find_iter(answer).count() as u64;
    let (posted, pending) = (occurrences(&POSTED), occurrences(&PENDING));
    tally.posted += posted;
    tally.pending += pending;
    tally.replayed += occurrences(&REPLAYED);
    if status.is_success() && posted + pending == items {
        return;
    }
    let mut codes = 0;
    for place in CODE.find_iter(answer) {
        let word = &answer[place + CODE.needle().len()..];
        let end = memchr::memchr(b'"', word).unwrap_or(word.len());
        tally.count_code(&String::from_utf8_lossy(&word[..end]));
        codes += 1;
    }
    if !status.is_success() && codes == 0 {
        tally.count_code(status.as_str());
    } else if status.is_success() && occurrences(&STATUS) != items {
        tally.count_code("unreadable_answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::{Locality, Workload};

    fn picker() -> Picker {
        Picker::new(Workload::Uniform, Locality::Any, vec![0; 10]).unwrap()
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> serde_json::Value {
        let mut body = Vec::new();
        write(&mut body);
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn requests_are_the_apis() {
        for (ids, version) in [(Ids::TimeOrdered, 7), (Ids::Random, 4)] {
            let mut writer = RequestWriter::new(Random::new(1, 1), ids, 0.0);
            let batch = written(|body| writer.batch(&picker(), 3, 1_000, body));
            let transfers = batch["transfers"].as_array().unwrap();
            assert_eq!(transfers.len(), 3);
            for transfer in transfers {
                let id = uuid::Uuid::parse_str(transfer["id"].as_str().unwrap()).unwrap();
                assert_eq!(id.get_version_num(), version);
                assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
                assert_ne!(transfer["debit"], transfer["credit"]);
                assert!(ledger::parse_minor(transfer["amount"].as_str().unwrap(), 2).unwrap() > 0);
            }
            assert_ne!(transfers[0]["id"], transfers[1]["id"]);
            let single = written(|body| writer.single(&picker(), 1_000, body));
            assert_eq!(single["asset"], ASSET);
        }
    }

    #[test]
    fn a_time_ordered_id_begins_with_the_time() {
        let id = uuid::Uuid::from_bytes(time_ordered_id(0x0123_4567_89ab, &mut Random::new(1, 1)));
        assert!(id.to_string().starts_with("01234567-89ab-7"), "{id}");
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 99_999, usize::MAX] {
            let mut body = Vec::new();
            push_number(&mut body, number);
            assert_eq!(String::from_utf8(body).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_share_of_the_transfers_is_sent_again_after_it_was_answered() {
        let mut writer = RequestWriter::new(Random::new(1, 1), Ids::TimeOrdered, 0.1);
        let mut sent = std::collections::BTreeSet::new();
        let mut again = 0;
        for _ in 0..20 {
            let batch = written(|body| writer.batch(&picker(), 500, 1_000, body));
            let transfers: Vec<String> =
                batch["transfers"].as_array().unwrap().iter().map(ToString::to_string).collect();
            again += transfers.iter().filter(|transfer| sent.contains(*transfer)).count();
            sent.extend(transfers);
        }
        assert!((800..1_100).contains(&again), "{again} of 10,000");
    }

    #[test]
    fn answers_are_counted_by_outcome() {
        let mut tally = Tally::new().unwrap();
        let answer = br#"{"results":[{"id":"1","status":"posted","replayed":false},{"id":"2","status":"rejected",
            "replayed":false,"code":"insufficient_funds"},{"id":"3","status":"pending","replayed":true}]}"#;
        count(StatusCode::OK, answer, 3, &mut tally);
        count(StatusCode::OK, br#"{"status":"posted"}"#, 1, &mut tally);
        count(StatusCode::SERVICE_UNAVAILABLE, br#"{"status":503,"code":"overloaded"}"#, 3, &mut tally);
        count(StatusCode::BAD_GATEWAY, b"", 1, &mut tally);
        assert_eq!((tally.posted, tally.pending, tally.replayed), (2, 1, 1));
        let codes: Vec<(&str, u64)> = tally.codes.iter().map(|(code, count)| (code.as_str(), *count)).collect();
        assert_eq!(codes, [("502", 1), ("insufficient_funds", 1), ("overloaded", 1)]);
        count(StatusCode::OK, b"{}", 1, &mut tally);
        assert_eq!(tally.codes["unreadable_answer"], 1);
    }
}
